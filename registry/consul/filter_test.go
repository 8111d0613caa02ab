package consul

import (
	"reflect"
	"strings"
	"testing"

	"github.com/weftmesh/weft"
)

var filterEntry = entryRecord{
	Node: nodeRecord{Node: "host-1", Address: "10.0.0.1", Meta: map[string]string{"os": "linux", "a.b": "dotted"}},
	Service: serviceRecord{
		ID: "web-1", Service: "web", Tags: []string{"a", "v2"}, Port: 8080, EnableTagOverride: true,
		Meta: map[string]string{"version": "2", "empty": ""}, ModifyIndex: 7,
		TaggedAddresses: map[string]addressRecord{"lan": {Address: "10.0.0.9", Port: 80}},
	},
	Checks: []checkRecord{{CheckID: "serfHealth", Status: "passing"}, {CheckID: "service:web-1", Status: "warning", ServiceTags: []string{"a"}}},
}

func TestFilter(t *testing.T) {
	for _, c := range []struct {
		text string
		want bool
	}{
		{`Service.Meta.version == 2`, true},
		{`Service.Meta.version == "2"`, true},
		{"Service.Meta.version == `2`", true},
		{`Service.Meta.version != 2`, false},
		{`Service.Meta.missing == ""`, false},
		{`Service.Meta.missing != 2`, true},
		{`Service.Meta["version"] == 2`, true},
		{`Node.Meta["a.b"] == dotted`, true},
		{`Node.Meta.os == linux`, true},
		{`"a" in Service.Tags`, true},
		{`v2 in Service.Tags`, true},
		{`"b" in Service.Tags`, false},
		{`"b" not in Service.Tags`, true},
		{`Service.Tags contains a`, true},
		{`Service.Tags not contains a`, false},
		{`version in Service.Meta`, true},
		{`"8" in Service.ID`, false},
		{`web in Service.ID`, true},
		{`Service.Tags is empty`, false},
		{`Service.Tags is not empty`, true},
		{`Service.Meta.empty is empty`, true},
		{`Service.Meta.missing is empty`, true},
		{`Service.Meta.missing is not empty`, false},
		{`Service.ID matches "^web-[0-9]+$"`, true},
		{`Service.ID not matches "^db"`, true},
		{`Service.Port == 8080`, true},
		{`Service.Port!=8080`, false},
		{`Service.EnableTagOverride == true`, true},
		{`Service.ModifyIndex == 7`, true},
		{`Service.TaggedAddresses.lan.Address == 10.0.0.9`, true},
		{`Service.TaggedAddresses["lan"].Port == 80`, true},
		{`Service.Locality.Zone == a`, false},
		{`Checks.Status == warning`, true},
		{`Checks.Status == critical`, false},
		{`Checks.Status != passing`, true},
		{`Checks is empty`, false},
		{`a in Checks.ServiceTags`, true},
		{`not Service.Port == 8080`, false},
		{`not (Service.Port == 1 or Service.ID == web-1)`, false},
		{`not not Service.Port == 8080`, true},
		{`Service.Port == 1 and Service.Port == 2 or Service.Port == 8080`, true},
		{`Service.Port == 8080 or Service.Port == 2 and Service.Port == 1`, true},
		{`(Service.Port == 8080 or Service.Port == 2) and Service.Port == 1`, false},
		{`((Service.Port == 8080))`, true},
		{"\n Node.Node\t==\r\n\"host-1\" ", true},
		{`Node.Node == "ho\x73t-1"`, true},
	} {
		f, err := parseFilter(c.text, reflect.TypeFor[entryRecord]())
		if err != nil {
			t.Errorf("%s: %v", c.text, err)
			continue
		}
		if got := f.match(reflect.ValueOf(&filterEntry)); got != c.want {
			t.Errorf("%s: got %v", c.text, got)
		}
	}
}

func TestFilterErrorsNameThePosition(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{`   `, "at 4"},
		{`Service.Port`, "at 13"},
		{`Service.Port == `, "at 17"},
		{`Service.Port = 80`, "at 14"},
		{`Service.Prot == 80`, "at 1: there is no Service.Prot"},
		{`Node.Meta is empty and Service.Prot == 80`, "at 24: there is no Service.Prot"},
		{`Service.Port == eighty`, "at 17"},
		{`Service.EnableTagOverride == perhaps`, "at 30"},
		{`Service.Port contains 8`, "at 1"},
		{`Service.Port is empty`, "at 1"},
		{`Service.Tags == a`, "at 1"},
		{`Service.ID matches "("`, "at 20"},
		{`Service.ID == "x`, "at 15"},
		{`(Service.Port == 80`, "at 20"},
		{`Service.Port == 80)`, "at 19"},
		{`Service.Port == 80 81`, "at 20"},
		{`Service.Port is full`, "at 17"},
		{`Service.Port like 80`, "at 14"},
		{`a in "Service.Tags"`, "at 6"},
		{`and`, "at 4"},
		{`Service.Meta["a" == 2`, `want "]"`},
		{strings.Repeat("(", 100) + "Service.Port == 80", "nested"},
		{strings.Repeat("not ", 100) + "Service.Port == 80", "nested"},
		{"Service.ID == " + strings.Repeat("x", maxFilter), "longer"},
	} {
		_, err := parseFilter(c.text, reflect.TypeFor[entryRecord]())
		if weft.KindOf(err) != weft.Invalid || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%.60q: %v, want one that says %q", c.text, err, c.want)
		}
	}
}

// A filter that parses obeys the laws of logic, and one that does not says so.
func FuzzFilter(f *testing.F) {
	f.Add(`Service.Meta.version == 2 and "a" in Service.Tags`)
	f.Add(`not (Checks.Status != passing or Node.Meta["a.b"] is not empty)`)
	f.Add("Service.ID matches `^web` and Service.Port!=80")
	f.Fuzz(func(t *testing.T, text string) {
		eval := func(text string) (bool, error) {
			m, err := parseFilter(text, reflect.TypeFor[entryRecord]())
			if err != nil {
				return false, err
			}
			return m.match(reflect.ValueOf(&filterEntry)), nil
		}
		got, err := eval(text)
		if err != nil {
			if weft.KindOf(err) != weft.Invalid || !strings.Contains(err.Error(), "filter at ") {
				t.Fatalf("error without a place: %v", err)
			}
			return
		}
		for form, want := range map[string]bool{
			"not (" + text + ")":                    !got,
			"(" + text + ") and (" + text + ")":     got,
			"(" + text + ") or not (" + text + ")":  true,
			"(" + text + ") and not (" + text + ")": false,
		} {
			again, err := eval(form)
			if err != nil && !strings.Contains(err.Error(), "nested") && !strings.Contains(err.Error(), "longer") {
				t.Fatalf("%s: %v", form, err)
			}
			if err == nil && again != want {
				t.Fatalf("%s: %v, but %s: %v", text, got, form, again)
			}
		}
	})
}
