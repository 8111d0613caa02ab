package registry

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/weftmesh/weft"
)

// fill sets every field of a value to something.
func fill(v reflect.Value, n *int) {
	*n++
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem(), n)
	case reflect.Struct:
		for i := range v.NumField() {
			fill(v.Field(i), n)
		}
	case reflect.Slice:
		if v.Type() == reflect.TypeFor[json.RawMessage]() {
			v.SetBytes([]byte(`{"a":"b"}`))
			return
		}
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		fill(v.Index(0), n)
		fill(v.Index(1), n)
	case reflect.Map:
		key, value := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
		fill(key, n)
		fill(value, n)
		v.Set(reflect.MakeMap(v.Type()))
		v.SetMapIndex(key, value)
	case reflect.String:
		v.SetString(fmt.Sprint("text ", *n))
	case reflect.Int, reflect.Int64:
		v.SetInt(int64(*n))
	case reflect.Uint8:
		v.SetUint(1)
	case reflect.Uint64:
		v.SetUint(uint64(*n))
	case reflect.Bool:
		v.SetBool(true)
	default:
		panic("a field of kind " + v.Kind().String())
	}
}

// shared returns the paths at which two values have the same memory.
func shared(path string, a, b reflect.Value) (found []string) {
	switch a.Kind() {
	case reflect.Struct:
		for i := range a.NumField() {
			found = append(found, shared(path+"."+a.Type().Field(i).Name, a.Field(i), b.Field(i))...)
		}
	case reflect.Slice:
		if a.Len() > 0 && a.Pointer() == b.Pointer() {
			return []string{path}
		}
		for i := range a.Len() {
			found = append(found, shared(path+"[]", a.Index(i), b.Index(i))...)
		}
	case reflect.Map:
		if a.Len() > 0 && a.Pointer() == b.Pointer() {
			return []string{path}
		}
		for _, k := range a.MapKeys() {
			found = append(found, shared(path+"{}", a.MapIndex(k), b.MapIndex(k))...)
		}
	}
	return found
}

// TestOwnInstance: the copy is what reading the record gives, whatever fields there
// are, and shares nothing with the original.
func TestOwnInstance(t *testing.T) {
	full := new(weft.Instance)
	n := 0
	fill(reflect.ValueOf(full).Elem(), &n)
	plain, bad, empty := *full, *full, weft.Instance{Tags: []string{}, Labels: map[string]string{}, Checks: []weft.Check{}}
	plain.Extra, bad.Extra = nil, nil
	bad.Tags = []string{"\xff"}
	for name, in := range map[string]*weft.Instance{"full": full, "plain": &plain, "bad": &bad, "empty": &empty} {
		record, err := json.Marshal(in)
		if err != nil {
			t.Fatal(err)
		}
		var want weft.Instance
		if err := json.Unmarshal(record, &want); err != nil {
			t.Fatal(err)
		}
		got, err := ownInstance(in, record)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(&want, got); diff != "" {
			t.Errorf("%s: (-read +copied):\n%s", name, diff)
		}
		if found := shared(name, reflect.ValueOf(*in), reflect.ValueOf(*got)); found != nil {
			t.Errorf("shared memory: %v", found)
		}
	}
}

// TestPool: what is shared says the same as before, and only what is equal is shared.
func TestPool(t *testing.T) {
	var p pool
	make := func(tags, labels string) *weft.Instance {
		in := &weft.Instance{Service: weft.NewServiceName("", strings.Clone("web")), Tags: strings.Fields(tags), Labels: map[string]string{}}
		for _, l := range strings.Fields(labels) {
			k, v, _ := strings.Cut(l, "=")
			in.Labels[k] = v
		}
		in.Checks = []weft.Check{{Name: "check", Kind: weft.TTLCheck}}
		return in
	}
	cases := []struct{ tags, labels string }{
		{"a b", "x=1 y=2"}, {"ab", "x=1y=2"}, {"b a", "x=1"}, {"a", "x=2"}, {"", ""}, {"a b c", "y=2"},
	}
	tags, labels := map[uintptr]string{}, map[uintptr]string{}
	for round := range 2 {
		for _, c := range cases {
			in, want := make(c.tags, c.labels), make(c.tags, c.labels)
			p.share(in)
			if diff := cmp.Diff(want, in); diff != "" {
				t.Errorf("(-before +after):\n%s", diff)
			}
			if c.tags == "" {
				continue
			}
			at, to := reflect.ValueOf(in.Tags).Pointer(), reflect.ValueOf(in.Labels).Pointer()
			if round == 0 {
				tags[at], labels[to] = c.tags, c.labels
			} else if tags[at] != c.tags || labels[to] != c.labels {
				t.Errorf("%v are not shared", c)
			}
		}
	}
}

func TestPoolIsBounded(t *testing.T) {
	var p pool
	for i := range 2*maxPool + 10 {
		text := fmt.Sprint(i)
		p.share(&weft.Instance{Zone: text, Tags: []string{text}, Labels: map[string]string{"n": text}})
	}
	if len(p.texts) > maxPool || len(p.tags) > maxPool || len(p.labels) > maxPool {
		t.Errorf("it has %d texts, %d tags and %d labels", len(p.texts), len(p.tags), len(p.labels))
	}
}
