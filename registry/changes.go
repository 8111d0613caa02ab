package registry

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/weftmesh/weft"
)

// whatChanged says in plain words what of an instance is different, seen by a
// service. Nil is an instance that is not there.
func whatChanged(service weft.ServiceName, before, after *weft.Instance) []string {
	was, is := before != nil && before.Service == service, after != nil && after.Service == service
	switch {
	case !was && !is:
		return nil
	case !was:
		text := "registered: " + place(after) + ", " + after.Health().String()
		if before != nil {
			text += ", was of " + before.Service.String()
		}
		return []string{text}
	case !is && after != nil:
		return []string{"is of " + after.Service.String() + " now"}
	case !is:
		return []string{"deregistered"}
	}
	return slices.Concat(checksChanges(before.Checks, after.Checks), fieldChanges(*before, *after))
}

func place(in *weft.Instance) string {
	return fmt.Sprintf("%s:%d", orElse(in.Address, "node's address"), in.Port)
}

// whatNodeChanged says the same of a node. That it comes or goes is told by what comes
// and goes with it.
func whatNodeChanged(before, after *weft.Node) []string {
	if before == nil || after == nil {
		return nil
	}
	var what []string
	for _, text := range slices.Concat(checksChanges(before.Checks, after.Checks), fieldChanges(*before, *after)) {
		what = append(what, "node: "+text)
	}
	return what
}

// checksChanges compares checks: "check service:web: passing → critical: connection
// refused".
func checksChanges(before, after []weft.Check) (what []string) {
	for i := range after {
		c := &after[i]
		old := findCheck(before, c.ID)
		if old == nil {
			what = append(what, "check "+c.ID+" added: "+c.Status.String()+says(c))
			continue
		}
		if old.Status != c.Status {
			what = append(what, "check "+c.ID+": "+old.Status.String()+" → "+c.Status.String()+says(c))
		} else if old.Output != c.Output && c.Output != "" {
			what = append(what, "check "+c.ID+says(c))
		}
		was, is := *old, *c
		was.Status, was.Output, is.Status, is.Output = 0, "", 0, ""
		for _, text := range fieldChanges(was, is) {
			what = append(what, "check "+c.ID+": "+text)
		}
	}
	for i := range before {
		if findCheck(after, before[i].ID) == nil {
			what = append(what, "check "+before[i].ID+" removed")
		}
	}
	return what
}

func says(c *weft.Check) string {
	if line := firstLine(orElse(c.Output, c.Notes)); line != "" {
		return ": " + line
	}
	return ""
}

// fieldChanges compares the fields of two nouns of one type by reflection, so that a
// new one is not forgotten. Checks are compared elsewhere, and indexes say nothing.
func fieldChanges(before, after any) (what []string) {
	a, b := reflect.ValueOf(before), reflect.ValueOf(after)
	for i := range a.NumField() {
		field := a.Type().Field(i)
		switch field.Name {
		case "Checks", "CreateIndex", "ModifyIndex":
			continue
		}
		was, is := a.Field(i), b.Field(i)
		if field.Name == "Header" || field.Name == "Body" { // of a probe: may have secrets
			if !reflect.DeepEqual(was.Interface(), is.Interface()) {
				what = append(what, words(field.Name)+" changed")
			}
			continue
		}
		if was.Kind() == reflect.Map {
			what = append(what, mapChanges(field.Name, was, is)...)
		} else if !reflect.DeepEqual(was.Interface(), is.Interface()) {
			what = append(what, fmt.Sprintf("%s %s → %s", words(field.Name), told(was), told(is)))
		}
	}
	return what
}

// mapChanges compares maps of texts by their keys.
func mapChanges(field string, before, after reflect.Value) (what []string) {
	keys := make(map[string]reflect.Value)
	for _, m := range []reflect.Value{before, after} {
		for _, k := range m.MapKeys() {
			keys[k.String()] = k
		}
	}
	for _, name := range slices.Sorted(maps.Keys(keys)) {
		was, is := before.MapIndex(keys[name]), after.MapIndex(keys[name])
		switch {
		case !was.IsValid():
			what = append(what, fmt.Sprintf("%s %s: %s added", words(field), name, told(is)))
		case !is.IsValid():
			what = append(what, fmt.Sprintf("%s %s: %s removed", words(field), name, told(was)))
		case !reflect.DeepEqual(was.Interface(), is.Interface()):
			what = append(what, fmt.Sprintf("%s %s: %s → %s", words(field), name, told(was), told(is)))
		}
	}
	return what
}

// maxTold bounds what is told of one value, in bytes.
const maxTold = 200

// told writes a value for people.
func told(v reflect.Value) string {
	text := fmt.Sprint(v.Interface())
	if v.Kind() == reflect.Slice && v.Type().Elem().Kind() == reflect.Uint8 {
		text = string(v.Bytes()) // JSON of a dialect
	}
	if len(text) > maxTold {
		text = strings.ToValidUTF8(text[:maxTold], "") + "…"
	}
	if text == "" {
		return "none"
	}
	return text
}

// words writes the name of a field for people: "MeshAddr" is "mesh addr".
func words(field string) string {
	var b strings.Builder
	for i, c := range field {
		upper := c >= 'A' && c <= 'Z'
		if upper && i > 0 && field[i-1] >= 'a' && field[i-1] <= 'z' {
			b.WriteByte(' ')
		}
		b.WriteRune(c)
	}
	return strings.ToLower(b.String())
}
