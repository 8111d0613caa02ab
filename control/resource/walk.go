package resource

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math"
	"strconv"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"
)

// walker checks a YAML tree against the descriptor of a protobuf message, and
// makes of it what protojson reads. What it accepts, protojson accepts; what it
// complains of is left out of the result, so that the rest can be checked too.
//
// It is stricter than protojson where protojson would guess (text for numbers),
// and as lenient as Istio with durations ("1m30s").
type walker struct{ *report }

// object walks the fields of a message. Nothing is an empty message.
func (w walker) object(n *node, md protoreflect.MessageDescriptor, path string) (any, bool) {
	out := map[string]any{}
	if n.form != object {
		if n.form != nothing {
			w.want("an object", n, path)
		}
		return out, n.form == nothing
	}
	written := map[protoreflect.Name]string{} // fields and oneofs, and as what
	for _, f := range n.fields {
		fd := fieldNamed(md, f.name)
		if fd == nil {
			at := path + "." + f.name
			w.lines[at] = f.line
			w.errorf(at, mendName(f.name, fieldNames(md)), "unknown field %q", f.name)
			continue
		}
		at := path + "." + fd.JSONName()
		if first, twice := written[fd.Name()]; twice {
			w.errorf(at, "keep one", "%q is also written as %q", f.name, first)
			continue
		}
		written[fd.Name()] = f.name
		w.lines[at] = f.line
		if f.value.form == nothing || !w.supported(fd, at) {
			continue
		}
		if one := fd.ContainingOneof(); one != nil {
			if first, twice := written[one.Name()]; twice {
				w.errorf(at, fmt.Sprintf("keep %s or %s", first, f.name), "%q cannot stand beside %q", f.name, first)
				continue
			}
			written[one.Name()] = f.name
		}
		if v, ok := w.value(f.value, fd, at); ok {
			out[fd.JSONName()] = v
		}
	}
	return out, true
}

func fieldNamed(md protoreflect.MessageDescriptor, name string) protoreflect.FieldDescriptor {
	if fd := md.Fields().ByJSONName(name); fd != nil {
		return fd
	}
	return md.Fields().ByName(protoreflect.Name(name))
}

// value walks a field's value: a map, a list or one thing.
func (w walker) value(n *node, fd protoreflect.FieldDescriptor, path string) (any, bool) {
	switch {
	case fd.IsMap():
		return w.mapping(n, fd, path)
	case fd.IsList():
		if n.form != list {
			w.want("a list", n, path)
			return nil, false
		}
		if len(n.items) == 0 {
			w.emptyList(fd, path)
		}
		out := []any{}
		for i, item := range n.items {
			at := fmt.Sprintf("%s[%d]", path, i)
			w.lines[at] = item.line
			// A bad element leaves its place, so that the paths of later problems hold.
			v, _ := w.single(item, fd, at)
			out = append(out, v)
		}
		return out, true
	}
	return w.single(n, fd, path)
}

func (w walker) mapping(n *node, fd protoreflect.FieldDescriptor, path string) (any, bool) {
	if n.form != object {
		w.want("an object", n, path)
		return nil, false
	}
	out := map[string]any{}
	for _, f := range n.fields {
		at := path + "[" + f.name + "]"
		w.lines[at] = f.line
		if fd.MapKey().Kind() != protoreflect.StringKind {
			if _, err := strconv.ParseUint(f.name, 10, 32); err != nil {
				w.errorf(at, "", "want a number as the key, got %q", f.name)
				continue
			}
		}
		if v, ok := w.single(f.value, fd.MapValue(), at); ok {
			out[f.name] = v
		}
	}
	return out, true
}

// single walks one value: a field's, or one of a list's or a map's.
func (w walker) single(n *node, fd protoreflect.FieldDescriptor, path string) (any, bool) {
	switch fd.Kind() {
	case protoreflect.MessageKind:
		return w.message(n, fd.Message(), path)
	case protoreflect.EnumKind:
		return w.enum(n, fd.Enum(), path)
	case protoreflect.BoolKind:
		return n.text == "true", w.is(boolean, n, path)
	case protoreflect.StringKind:
		return n.text, w.is(text, n, path)
	case protoreflect.BytesKind:
		_, err := base64.StdEncoding.DecodeString(n.text)
		if w.is(text, n, path) && err != nil {
			w.errorf(path, "", "want text in base64")
		}
		return n.text, n.form == text && err == nil
	case protoreflect.DoubleKind:
		f, err := strconv.ParseFloat(n.text, 64)
		if n.form != number || err != nil || math.IsInf(f, 0) || math.IsNaN(f) {
			w.want(string(number), n, path)
			return 0, false
		}
		return f, true
	}
	return w.whole(n, fd.Kind(), path)
}

// whole walks an integer. One of 64 bits may be text: so protojson writes it.
func (w walker) whole(n *node, kind protoreflect.Kind, path string) (any, bool) {
	bits, what := 32, "a whole number"
	if kind == protoreflect.Int64Kind || kind == protoreflect.Uint64Kind {
		bits = 64
	}
	if n.form != number && (n.form != text || bits == 32) {
		w.want(what, n, path)
		return 0, false
	}
	_, err := strconv.ParseInt(n.text, 10, bits)
	if kind == protoreflect.Uint32Kind || kind == protoreflect.Uint64Kind {
		what += " from 0"
		_, err = strconv.ParseUint(n.text, 10, bits)
	}
	if err != nil {
		w.errorf(path, "", "want %s, in %d bits, got %s", what, bits, n.text)
		return 0, false
	}
	return json.Number(n.text), true
}

func (w walker) message(n *node, md protoreflect.MessageDescriptor, path string) (any, bool) {
	if n.form == nothing {
		w.want("an object", n, path) // fields without a value are left out before: this is an element
		return map[string]any{}, false
	}
	if md.FullName().Parent() != "google.protobuf" {
		return w.object(n, md, path)
	}
	if md.Name() == "Duration" {
		return w.duration(n, path)
	}
	return w.single(n, md.Fields().ByName("value"), path) // UInt32Value and the like
}

func (w walker) duration(n *node, path string) (any, bool) {
	d, err := time.ParseDuration(n.text)
	if n.form != text || err != nil {
		w.errorf(path, "write a number and a unit, such as \"10s\" or \"1m30s\"", "want a duration, got %s", n)
		return "0s", false
	}
	b, err := protojson.Marshal(durationpb.New(d))
	return json.RawMessage(b), err == nil // every time.Duration fits
}

// enum walks a value that is one of some words, or its number.
func (w walker) enum(n *node, ed protoreflect.EnumDescriptor, path string) (any, bool) {
	v := ed.Values().ByName(protoreflect.Name(n.text))
	if i, err := strconv.ParseInt(n.text, 10, 32); err == nil && n.form == number {
		v = ed.Values().ByNumber(protoreflect.EnumNumber(i))
	}
	if v == nil {
		var names []string
		for i := range ed.Values().Len() {
			if d := ed.Values().Get(i); !limits[d.FullName()].refused {
				names = append(names, string(d.Name()))
			}
		}
		w.errorf(path, "write "+anyOf(names), "unknown value %q", n.text)
		return 0, false
	}
	return string(v.Name()), w.supported(v, path)
}

// is complains unless the value has the form.
func (w walker) is(f form, n *node, path string) bool {
	if n.form != f {
		w.want(string(f), n, path)
	}
	return n.form == f
}

func (w walker) want(what string, n *node, path string) {
	mend := ""
	if what == string(text) && (n.form == number || n.form == boolean) {
		mend = fmt.Sprintf("write %q", n.text)
	}
	if _, err := strconv.ParseFloat(n.text, 64); err == nil && n.form == text {
		mend = "write it without quotes"
	}
	w.errorf(path, mend, "want %s, got %s", what, n)
}
