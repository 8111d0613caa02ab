package api

import (
	"context"
	"net/http"
	"slices"
	"strings"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/client"
	"github.com/weftmesh/weft/control"
	"github.com/weftmesh/weft/control/resource"
)

// kinds lists the kinds of which something is applied, sorted.
func (a *api) kinds(*http.Request) (any, error) {
	out := []string{}
	for _, r := range a.Control.Resources() {
		out = append(out, r.Kind)
	}
	return sortedSet(out), nil
}

// sameKind reports whether asked names kind: as in the YAML, in lower case, or in
// the plural.
func sameKind(kind, asked string) bool {
	kind, asked = strings.ToLower(kind), strings.ToLower(asked)
	singularY, wasY := strings.CutSuffix(asked, "ies")
	return asked == kind || asked == kind+"s" || wasY && singularY+"y" == kind
}

func (a *api) resources(r *http.Request) (any, error) {
	asked := r.URL.Query()["kind"]
	out := []client.Resource{}
	for _, res := range a.Control.Resources() {
		if len(asked) > 0 && !slices.ContainsFunc(asked, func(k string) bool { return sameKind(res.Kind, k) }) {
			continue
		}
		one, err := resourceOf(&res)
		if err != nil {
			return nil, err
		}
		out = append(out, one)
	}
	return out, nil
}

func resourceOf(r *resource.Resource) (client.Resource, error) {
	object, err := r.Manifest()
	return client.Resource{Kind: r.Kind, APIVersion: r.APIVersion, Namespace: r.Namespace, Name: r.Name,
		File: r.Source.File, Line: r.Source.Line, Object: object}, err
}

// find returns the resource that a path names.
func (a *api) find(r *http.Request, op string) (*resource.Resource, error) {
	kind, namespace, name := r.PathValue("kind"), r.PathValue("namespace"), r.PathValue("name")
	for _, res := range a.Control.Resources() {
		if sameKind(res.Kind, kind) && res.Namespace == namespace && res.Name == name {
			return &res, nil
		}
	}
	return nil, weft.Errorf(weft.NotFound, op, kind+" "+namespace+"/"+name,
		"no such resource is applied; \"weft get %s\" lists those that are", strings.ToLower(kind))
}

func (a *api) resource(r *http.Request) (any, error) {
	res, err := a.find(r, "get")
	if err != nil {
		return nil, err
	}
	return resourceOf(res)
}

func (a *api) apply(r *http.Request) (any, error) {
	var in client.ApplyRequest
	if err := decode(r, "apply", &in); err != nil {
		return nil, err
	}
	if len(in.Files) == 0 {
		return nil, weft.Errorf(weft.Invalid, "apply", "", "the request has no files")
	}
	files := make([]resource.File, len(in.Files))
	for i, f := range in.Files {
		files[i] = resource.File{Name: f.Name, Data: []byte(f.Data)}
	}
	return a.applyFiles(r.Context(), files, control.ApplyOptions{Partial: in.Partial, DryRun: in.DryRun})
}

func (a *api) applyFiles(ctx context.Context, files []resource.File, o control.ApplyOptions) (any, error) {
	done, err := a.Control.Apply(ctx, files, o)
	if err != nil {
		return nil, err
	}
	out := client.ApplyResult{Resources: []client.AppliedResource{}, Problems: done.Problems}
	for _, c := range done.Changes {
		out.Resources = append(out.Resources, client.AppliedResource{Kind: c.Kind, Namespace: c.Namespace, Name: c.Name,
			Action: actionWord(c.Action), File: c.Source.File, Line: c.Source.Line})
	}
	return out, nil
}

// actionWord is what people know from kubectl.
func actionWord(a control.ApplyAction) string {
	if a == control.Updated {
		return "configured"
	}
	return string(a)
}

func (a *api) delete(r *http.Request) (any, error) {
	res, err := a.find(r, "delete")
	if err != nil {
		return nil, err
	}
	_, err = a.Control.Delete(r.Context(), res.Kind, res.Namespace, res.Name)
	return nil, err
}
