package resource

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/resilience"
)

// The specs of weft's own kinds are structs that read and write their JSON
// themselves, and say what is wrong with it as *resilience.FieldErrors.

// ResiliencePolicy is the spec of the kind of that name (weft.dev/v1): what calls of
// its targets are given.
type ResiliencePolicy struct {
	Targets []TargetRef // written as targetRef, or as targetRefs
	Spec    resilience.Spec
}

// TargetRef is what a policy is for: a service, or the http rules of a
// VirtualService.
type TargetRef struct {
	Kind        string `json:"kind"` // "Service" or "VirtualService"
	Name        string `json:"name"`
	Namespace   string `json:"namespace,omitempty"`   // none but the policy's own
	SectionName string `json:"sectionName,omitempty"` // one rule of a VirtualService, by its name; "": all
}

const serviceTarget = "Service" // the other kind of target is virtualServiceKind

// BreakerOverride is the spec of the kind of that name (weft.dev/v1): the service
// that it is named after has its circuit held in a state.
type BreakerOverride struct {
	State  resilience.Mode // never resilience.ModeAutomatic
	Reason string          // for people
}

// MarshalJSON writes what UnmarshalJSON reads.
func (p *ResiliencePolicy) MarshalJSON() ([]byte, error) {
	head := map[string]any{"targetRefs": p.Targets}
	switch len(p.Targets) {
	case 0:
		delete(head, "targetRefs")
	case 1:
		head = map[string]any{"targetRef": p.Targets[0]}
	}
	targets, err := json.Marshal(head)
	if err != nil {
		return nil, err
	}
	spec, err := json.Marshal(p.Spec)
	switch {
	case err != nil:
		return nil, err
	case len(spec) <= len("{}"):
		return targets, nil
	case len(p.Targets) == 0:
		return spec, nil
	}
	return slices.Concat(targets[:len(targets)-1], []byte(","), spec[1:]), nil
}

// UnmarshalJSON reads a spec. After an error p has what could be read.
func (p *ResiliencePolicy) UnmarshalJSON(data []byte) error {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(data, &fields); err != nil {
		return err
	}
	var problems []error
	*p = ResiliencePolicy{}
	if one, written := fields["targetRef"]; written {
		p.Targets = append(p.Targets, readTarget("targetRef", one, &problems))
	}
	if all, written := fields["targetRefs"]; written {
		var list []json.RawMessage
		if json.Unmarshal(all, &list) != nil {
			problems = append(problems, &resilience.FieldError{Field: "targetRefs", Problem: "want a list"})
		}
		for i, one := range list {
			p.Targets = append(p.Targets, readTarget(fmt.Sprintf("targetRefs[%d]", i), one, &problems))
		}
		if _, both := fields["targetRef"]; both {
			problems = append(problems, &resilience.FieldError{Field: "targetRefs", Problem: `"targetRefs" cannot stand beside "targetRef"`})
		}
	}
	delete(fields, "targetRef")
	delete(fields, "targetRefs")
	rest, err := json.Marshal(fields)
	if err != nil {
		return err
	}
	if spec, err := resilience.ParseSpec(rest); err == nil {
		p.Spec = *spec
	} else {
		problems = append(problems, mended(err)...)
	}
	return errors.Join(problems...)
}

// mended are the problems of a resilience.Spec, those of names with the nearest name.
func mended(err error) []error {
	problems := apart(err)
	for i, p := range problems {
		var f *resilience.FieldError
		if !errors.As(p, &f) {
			continue
		}
		if name, known := unknownField(f.Field); known != nil {
			problems[i] = unknownNamed(f.Field, name, known)
		}
	}
	return problems
}

func unknownNamed(field, name string, known []string) error {
	return &resilience.FieldError{Field: field, Problem: fmt.Sprintf("unknown field %q; %s", name, mendName(name, known))}
}

func readTarget(at string, data json.RawMessage, problems *[]error) TargetRef {
	var t TargetRef
	*problems = append(*problems, readTexts(at, data, map[string]*string{
		"kind": &t.Kind, "name": &t.Name, "namespace": &t.Namespace, "sectionName": &t.SectionName,
	})...)
	return t
}

// MarshalJSON writes what UnmarshalJSON reads.
func (o *BreakerOverride) MarshalJSON() ([]byte, error) {
	return json.Marshal(struct {
		State  resilience.Mode `json:"state"`
		Reason string          `json:"reason,omitempty"`
	}{o.State, o.Reason})
}

// UnmarshalJSON reads a spec. After an error o has what could be read.
func (o *BreakerOverride) UnmarshalJSON(data []byte) error {
	*o = BreakerOverride{}
	return errors.Join(readTexts("", data, map[string]*string{"state": (*string)(&o.State), "reason": &o.Reason})...)
}

// readTexts reads an object of which every field is text.
func readTexts(at string, data json.RawMessage, fields map[string]*string) []error {
	var written map[string]json.RawMessage
	if json.Unmarshal(data, &written) != nil {
		return []error{&resilience.FieldError{Field: at, Problem: "want an object"}}
	}
	var problems []error
	for _, name := range slices.Sorted(maps.Keys(written)) {
		field := strings.TrimPrefix(at+"."+name, ".")
		into, known := fields[name]
		switch {
		case !known:
			problems = append(problems, unknownNamed(field, name, slices.Sorted(maps.Keys(fields))))
		case json.Unmarshal(written[name], into) != nil:
			problems = append(problems, &resilience.FieldError{Field: field, Problem: fmt.Sprintf("want text, got %s", written[name])})
		}
	}
	return problems
}

// encodeSpec and decodeSpec are for specs of all kinds.
func encodeSpec(spec any) ([]byte, error) {
	if m, ok := spec.(proto.Message); ok {
		return protojson.Marshal(m)
	}
	return json.Marshal(spec)
}

func decodeSpec(data []byte, spec any) error {
	if m, ok := spec.(proto.Message); ok {
		return protojson.Unmarshal(data, m)
	}
	return json.Unmarshal(data, spec)
}

// SameSpec reports whether the specs of two resources of one kind say the same.
func (r *Resource) SameSpec(other *Resource) bool {
	if m, ok := r.Spec.(proto.Message); ok {
		o, ok := other.Spec.(proto.Message)
		return ok && proto.Equal(m, o)
	}
	a, errA := encodeSpec(r.Spec)
	b, errB := encodeSpec(other.Spec)
	return errA == nil && errB == nil && bytes.Equal(a, b)
}

// plain is the JSON of a value whose form its kind looks at, and notes the lines.
func (w walker) plain(n *node, path string) any {
	switch n.form {
	case object:
		out := map[string]any{}
		for _, f := range n.fields {
			at := path + "." + f.name
			w.lines[at] = f.line
			if f.value.form != nothing {
				out[f.name] = w.plain(f.value, at)
			}
		}
		return out
	case list:
		out := make([]any, len(n.items))
		for i, item := range n.items {
			at := fmt.Sprintf("%s[%d]", path, i)
			w.lines[at] = item.line
			out[i] = w.plain(item, at)
		}
		return out
	case number:
		if !json.Valid([]byte(n.text)) { // an infinite one
			return n.text
		}
		return json.Number(n.text)
	case boolean:
		return n.text == "true"
	case nothing:
		return nil
	}
	return n.text
}

// own reads the spec of one of weft's own kinds, and reports what is wrong with it.
func (w walker) own(n *node, spec any) {
	if n.form == nothing {
		n = &node{form: object, line: n.line}
	}
	if !w.is(object, n, "spec") {
		return
	}
	data, err := json.Marshal(w.plain(n, "spec"))
	if err == nil {
		err = json.Unmarshal(data, spec)
	}
	for _, problem := range apart(err) {
		var f *resilience.FieldError
		if !errors.As(problem, &f) {
			w.errorf("spec", "", "%v", problem)
			continue
		}
		w.errorf(strings.TrimSuffix("spec."+f.Field, "."), "", "%s", f.Problem)
	}
}

// apart takes apart what errors.Join joined.
func apart(err error) []error {
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		if err == nil {
			return nil
		}
		return []error{err}
	}
	var out []error
	for _, e := range joined.Unwrap() {
		out = append(out, apart(e)...)
	}
	return out
}

// unknownField returns the last name of a path into a resilience.Spec, and those
// that could stand there, if that name is none of them.
func unknownField(path string) (name string, known []string) {
	t := reflect.TypeFor[resilience.Spec]()
	names := []string{"targetRef", "targetRefs"}
	for name = range strings.SplitSeq(path, ".") {
		if t.Kind() == reflect.Pointer {
			t = t.Elem()
		}
		if t.Kind() != reflect.Struct || name == "" {
			return name, nil
		}
		var next reflect.Type
		for f := range t.NumField() {
			tag, _, _ := strings.Cut(t.Field(f).Tag.Get("json"), ",")
			names = append(names, tag)
			if bare, _, _ := strings.Cut(name, "["); tag == bare {
				next = t.Field(f).Type
			}
		}
		if next == nil {
			return name, names
		}
		t, names = next, nil
	}
	return name, nil
}

// fallback is the service that a policy's callers are answered by, and whether there
// is one. Its name is read as seen from the policy.
func fallback(r *Resource, p *ResiliencePolicy) (n weft.ServiceName, ok bool) {
	if p.Spec.Fallback == nil || p.Spec.Fallback.Service == "" {
		return n, false
	}
	return serviceOf(p.Spec.Fallback.Service, r.Namespace)
}

// compileResilience makes what a proxy gets of a policy. Where it is going, the
// names of services are whole.
func compileResilience(r *Resource, p *ResiliencePolicy) *weft.Resilience {
	spec := p.Spec
	if n, ok := fallback(r, p); ok {
		f := *spec.Fallback
		f.Service = n.String()
		spec.Fallback = &f
	}
	data, err := json.Marshal(spec)
	if err != nil {
		return nil // cannot be: it came from JSON
	}
	return &weft.Resilience{Source: r.Source, Spec: data}
}
