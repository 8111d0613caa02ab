package resource

import (
	"cmp"
	"encoding/json"
	"regexp"
	"slices"
	"strings"

	"github.com/weftmesh/weft"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// File is one file of resources.
type File struct {
	Name string // as problems and sources name it
	Data []byte // YAML or JSON, any number of documents, at most 1 MiB
}

// Parse reads files strictly and returns the resources without errors, and
// every problem of all files at once: errors, and warnings of what was accepted.
func Parse(files []File) ([]*Resource, weft.Problems) {
	p := parsing{first: map[string]weft.SourceRef{}}
	for _, f := range files {
		for _, d := range documents(f.Data) {
			p.document(f.Name, d)
		}
	}
	return p.resources, p.problems
}

// parsing is one call of Parse.
type parsing struct {
	resources []*Resource
	problems  weft.Problems
	first     map[string]weft.SourceRef // by kind, namespace and name
}

func (p *parsing) document(file string, d document) {
	if d.root != nil && d.root.form == object && d.root.str("kind") == "List" && d.root.str("apiVersion") == "v1" {
		p.list(file, d)
		return
	}
	p.resource(file, d)
}

// list takes apart what "kubectl get -o yaml" prints of several resources.
func (p *parsing) list(file string, d document) {
	if items := d.root.get("items"); items != nil && items.form == list && len(d.bad) == 0 {
		for _, item := range items.items {
			p.resource(file, document{root: item})
		}
		return
	}
	r := &report{source: weft.SourceRef{File: file, Line: d.root.line}, lines: fieldLines{}}
	if len(d.bad) == 0 {
		r.errorf("items", "", "a List needs a list of items")
	}
	p.finish(r, d)
}

// finish keeps a report's problems, in the order of their lines.
func (p *parsing) finish(r *report, d document) {
	for _, c := range d.bad {
		at := r.source
		at.Line = c.line
		r.problems = append(r.problems, weft.Problem{Source: at, Message: c.message, Mend: c.mend})
	}
	slices.SortStableFunc(r.problems, func(a, b weft.Problem) int {
		return cmp.Or(a.Source.Line-b.Source.Line, strings.Compare(a.Source.Field, b.Source.Field))
	})
	p.problems = append(p.problems, r.problems...)
}

func (p *parsing) resource(file string, d document) {
	r := &report{source: weft.SourceRef{File: file}, lines: fieldLines{}}
	res := &Resource{}
	if d.root != nil {
		r.source.Line = d.root.line
		p.read(r, res, d.root)
	}
	p.finish(r, d)
	if len(r.problems.Errors()) == 0 {
		p.resources = append(p.resources, res)
	}
}

// read fills res from a document, and reports all that is wrong with it.
func (p *parsing) read(r *report, res *Resource, root *node) {
	w := walker{r}
	if root.form != object {
		r.errorf("", "a resource has apiVersion, kind, metadata and spec", "want an object, got %s", root)
		return
	}
	for _, f := range root.fields {
		r.lines[f.name] = f.line
	}
	meta := root.get("metadata")
	if meta != nil && meta.str("name") != "" { // without a name, problems name the place only
		r.source.Kind, r.source.Name = root.str("kind"), meta.str("name")
		r.source.Namespace = cmp.Or(meta.str("namespace"), weft.DefaultNamespace)
	}
	for _, f := range root.fields {
		if !slices.Contains(topFields, f.name) && !slices.Contains(topDropped, f.name) {
			r.errorf(f.name, mendName(f.name, topFields), "unknown field %q", f.name)
		}
	}
	k := w.kind(root)
	w.metadata(meta, res)
	if k == nil {
		return
	}
	spec := root.get("spec")
	if spec == nil {
		spec = &node{form: nothing}
	}
	res.Kind, res.APIVersion = k.name, root.str("apiVersion")
	res.Namespace, res.Name = r.source.Namespace, r.source.Name
	res.Source, res.Spec = r.source, k.spec()
	p.once(r, res)
	w.spec(spec, k, res)
}

var (
	topFields  = []string{"apiVersion", "kind", "metadata", "spec"}
	topDropped = []string{"status", "source"} // the server's, and our own JSON form's
)

// str returns the text of a field, or "".
func (n *node) str(name string) string {
	if v := n.get(name); v != nil && v.form == text {
		return v.text
	}
	return ""
}

// kind finds the document's kind, or reports why there is none.
func (w walker) kind(root *node) *kind {
	for _, name := range []string{"apiVersion", "kind"} {
		v := root.get(name)
		if v == nil || v.form == nothing {
			w.errorf(name, "", "%s is missing", name)
			return nil
		}
		if !w.is(text, v, name) {
			return nil
		}
	}
	apiVersion, name := root.str("apiVersion"), root.str("kind")
	k, mend := findKind(apiVersion, name)
	if k != nil {
		return k
	}
	for i := range kinds {
		if kinds[i].name == name {
			w.errorf("apiVersion", mend, "unknown apiVersion %q of %s", apiVersion, name)
			return nil
		}
	}
	w.errorf("kind", mend, "unknown kind %q", name)
	return nil
}

// dropped are the metadata that Kubernetes' server adds, and that say nothing here.
var dropped = []string{"generateName", "uid", "resourceVersion", "creationTimestamp", "deletionTimestamp",
	"deletionGracePeriodSeconds", "managedFields", "ownerReferences", "finalizers", "generation", "selfLink"}

var (
	label     = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)
	subdomain = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$`)
)

func (w walker) metadata(meta *node, res *Resource) {
	if meta == nil || meta.form == nothing {
		w.errorf("metadata", "", "metadata.name is missing")
		return
	}
	if !w.is(object, meta, "metadata") {
		return
	}
	named := false
	for _, f := range meta.fields {
		at := "metadata." + f.name
		w.lines[at] = f.line
		switch {
		case slices.Contains(dropped, f.name) || f.value.form == nothing:
		case f.name == "name":
			named = true
			if w.is(text, f.value, at) && (len(f.value.text) > 253 || !subdomain.MatchString(f.value.text)) {
				w.errorf(at, "write small letters, digits, \"-\" and \".\", at most 253", "%q is no name", f.value.text)
			}
		case f.name == "namespace":
			if w.is(text, f.value, at) && !label.MatchString(f.value.text) {
				w.errorf(at, "write small letters, digits and \"-\", at most 63", "%q is no name of a namespace", f.value.text)
			}
		case f.name == "labels":
			res.Labels = w.texts(f.value, at)
		case f.name == "annotations":
			res.Annotations = w.texts(f.value, at)
		default:
			w.errorf(at, mendName(f.name, []string{"name", "namespace", "labels", "annotations"}), "unknown field %q", f.name)
		}
	}
	if !named {
		w.errorf("metadata", "", "metadata.name is missing")
	}
}

// texts walks a map from text to text.
func (w walker) texts(n *node, path string) map[string]string {
	if !w.is(object, n, path) {
		return nil
	}
	out := make(map[string]string, len(n.fields))
	for _, f := range n.fields {
		at := path + "[" + f.name + "]"
		w.lines[at] = f.line
		if w.is(text, f.value, at) {
			out[f.name] = f.value.text
		}
	}
	return out
}

// once refuses a second resource of the same name.
func (p *parsing) once(r *report, res *Resource) {
	key := res.Kind + " " + res.Namespace + "/" + res.Name
	first, twice := p.first[key]
	if twice && res.Name != "" {
		r.errorf("metadata.name", "the first is at "+first.Position(), "the resource is written twice")
		return
	}
	p.first[key] = res.Source
}

// spec walks and checks the spec. The meaning is checked even of what is
// misspelt in places; but nothing is said of a place of which something was said.
func (w walker) spec(n *node, k *kind, res *Resource) {
	if !w.fill(n, res.Spec) {
		return
	}
	said := w.problems.Errors()
	checked := &report{source: w.source, lines: w.lines}
	k.check(checked, res)
	checkAnnotations(checked, res)
	for _, p := range checked.problems {
		if !slices.ContainsFunc(said, func(s weft.Problem) bool { return sameplace(s.Source.Field, p.Source.Field) }) {
			w.problems = append(w.problems, p)
		}
	}
	res.lines = w.lines.lasting()
	var err error
	if res.JSON, err = res.encode(&origin{res.Source.File, res.Source.Line, res.lines}); err != nil {
		w.errorf("spec", "", "%v", err)
	}
	if len(w.problems.Errors()) == 0 {
		res.compile()
	}
}

// fill reads a spec, and reports what is wrong with its form. ok is false when there
// is nothing that could be checked.
func (w walker) fill(n *node, spec any) (ok bool) {
	m, isProto := spec.(proto.Message)
	if !isProto {
		w.own(n, spec)
		return true
	}
	tree, _ := w.object(n, m.ProtoReflect().Descriptor(), "spec")
	data, err := json.Marshal(tree)
	if err == nil {
		err = protojson.Unmarshal(data, m)
	}
	if err != nil && len(w.problems.Errors()) == 0 {
		w.errorf("spec", "", "%v", err)
	}
	return err == nil
}

// sameplace reports whether a problem of form at said may be the cause of one of
// meaning at path: one is inside the other, or beside it in the same object.
func sameplace(said, path string) bool {
	inside := func(inner, outer string) bool {
		rest, ok := strings.CutPrefix(inner, outer)
		return ok && (rest == "" || rest[0] == '.' || rest[0] == '[')
	}
	beside := enclosing(said) == enclosing(path) && !strings.HasSuffix(said, "]")
	return inside(said, path) || inside(path, said) || beside
}
