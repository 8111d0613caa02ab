package eureka

import (
	"encoding/json"
	"encoding/xml"
	"reflect"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/weftmesh/weft"
)

// told is what an instance, registered by r, is told as in a form, read again.
func told(t *testing.T, f form, r *record) *record {
	t.Helper()
	b := f.appendInstance(nil, r)
	kind := "application/xml"
	if f.json() {
		kind = "application/json"
		if !json.Valid(b) {
			t.Fatalf("no JSON: %s", b)
		}
	}
	got, err := decodeInstance(kind, b)
	if err != nil {
		t.Fatalf("what was written cannot be read: %v: %s", err, b)
	}
	return got
}

// checkRoundTrips tells what was registered in both forms, and keeps it as a part of
// an instance: each time the same must come back.
func checkRoundTrips(t *testing.T, r *record) {
	if r.DataCenter == nil || !plain(reflect.ValueOf(r)) {
		return // refused, or with characters that a form cannot carry
	}
	r.DataCenter.Class = r.DataCenter.class()
	r.Lease.LastRenewal = 0
	r.InstanceID += "i"
	for f := range form(forms) {
		got := told(t, f, r)
		if f.compact() {
			if got.InstanceID != r.InstanceID || got.Status != r.Status || !reflect.DeepEqual(got.Port, r.Port) {
				t.Errorf("form %d: got %+v, want %+v", f, got, r)
			}
			continue
		}
		if got.Metadata = sameIfEmpty(got.Metadata, r.Metadata); !reflect.DeepEqual(got, r) {
			t.Errorf("form %d:\ngot  %+v\nwant %+v", f, got, r)
		}
	}
	in, err := r.instance(serviceOf(r.App), weft.InstanceKey{Node: nodeName, ID: r.InstanceID}, nil)
	if err != nil {
		t.Fatal(err)
	}
	kept := keptOf(&in)
	if kept == nil {
		t.Fatalf("nothing is kept of %+v", r)
	}
	back := complete(&in, kept)
	back.App = r.App // a service's name has no case to come back from
	if back.Metadata = sameIfEmpty(back.Metadata, r.Metadata); !reflect.DeepEqual(back, r) {
		t.Errorf("kept:\ngot  %+v\nwant %+v", back, r)
	}
}

func sameIfEmpty(got, want metadata) metadata {
	if len(got) == 0 && len(want) == 0 {
		return want
	}
	return got
}

// plain reports whether all texts in v are such that JSON and XML can carry them.
func plain(v reflect.Value) bool {
	switch v.Kind() {
	case reflect.String:
		s := v.String()
		return utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return !inXML(r) || r == utf8.RuneError })
	case reflect.Pointer:
		return v.IsNil() || plain(v.Elem())
	case reflect.Struct:
		for i := range v.NumField() {
			if !plain(v.Field(i)) {
				return false
			}
		}
	case reflect.Map:
		for _, k := range v.MapKeys() {
			if k.String() == "@class" || !plain(k) || !plain(v.MapIndex(k)) {
				return false // the class is Java's, and not told
			}
		}
	}
	return true
}

func FuzzDecodeJSON(f *testing.F) {
	f.Add([]byte(amazonInstance))
	f.Add([]byte(body("A", "a-1", `"metadata":{"@class":"java.util.Collections$EmptyMap"}`)))
	f.Add([]byte(`{"instance":{"port":8080,"securePort":{"$":"1"},"leaseInfo":null,"metadata":{"a b":{"c":1},"_x0041_":"","_x_":"1","":"2"},"dataCenterInfo":{"name":"x"}}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if r, err := decodeInstance("application/json", b); err == nil {
			checkRoundTrips(t, r)
		}
	})
}

func FuzzDecodeXML(f *testing.F) {
	f.Add([]byte(`<?xml version="1.0" encoding="UTF-8"?><instance><instanceId>a</instanceId><app>A</app><port enabled="true"> 80 </port><securePort>443</securePort><dataCenterInfo class="c"><name>MyOwn</name><metadata><a>1</a></metadata></dataCenterInfo><metadata><p:q>1</p:q><e/><_x0020_>2</_x0020_><n>a<i>b</i>c</n></metadata></instance>`))
	f.Add([]byte(`<instance><dataCenterInfo/><leaseInfo><durationInSecs>5</durationInSecs></leaseInfo><metadata class="java.util.Collections$EmptyMap"/><overriddenStatus>down</overriddenStatus></instance>`))
	f.Add([]byte(`<instance><dataCenterInfo><name>&#13;&lt;&quot;</name></dataCenterInfo><hostName><![CDATA[<&>]]></hostName></instance>`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if r, err := decodeInstance("application/xml", b); err == nil {
			checkRoundTrips(t, r)
		}
	})
}

func FuzzXMLName(f *testing.F) {
	for _, s := range []string{"", "zone", "a.b-c_d", "1st", "_x_", "a_x_", "_x0041_", "x:y", "ä", "_x", "_x004_", "a b", "\U0010ffff", "_x_x0041_"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if !utf8.ValidString(s) {
			return
		}
		name := toXMLName(s)
		if got := fromXMLName(name); got != s {
			t.Errorf("%q is written %q, and read %q", s, name, got)
		}
		var v struct{ XMLName xml.Name }
		if err := xml.Unmarshal([]byte("<"+name+"/>"), &v); err != nil || v.XMLName.Local != name {
			t.Errorf("%q is written %q, which is no name: %v", s, name, err)
		}
	})
}
