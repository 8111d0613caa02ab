package consul

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestKeysInAnySpelling(t *testing.T) {
	want := agentServiceBody{Name: "web"}
	want.ID, want.EnableTagOverride = "web-1", true
	want.Meta = map[string]string{"snake_case": "stays"}
	want.TaggedAddresses = map[string]addressRecord{"lan_ipv4": {Address: "10.0.0.1", Port: 1}}
	want.Check = &checkBody{CheckID: "c_1", HTTP: "http://x/a_b", DeregisterCriticalServiceAfter: `"30s"`,
		Header: map[string][]string{"X_Trace": {"a_b"}}}
	for _, body := range []string{
		`{"Name":"web","ID":"web-1","EnableTagOverride":true,"Meta":{"snake_case":"stays"},
		  "TaggedAddresses":{"lan_ipv4":{"Address":"10.0.0.1","Port":1}},
		  "Check":{"CheckID":"c_1","HTTP":"http://x/a_b","Header":{"X_Trace":["a_b"]},"DeregisterCriticalServiceAfter":"30s"}}`,
		`{"name":"web","id":"web-1","enable_tag_override":true,"meta":{"snake_case":"stays"},
		  "tagged_addresses":{"lan_ipv4":{"address":"10.0.0.1","port":1}},
		  "check":{"check_id":"c_1","http":"http://x/a_b","header":{"X_Trace":["a_b"]},"deregister_critical_service_after":"30s"}}`,
		`{"NAME":"web","ID":"web-1","enableTagOverride":true,"META":{"snake_case":"stays"},
		  "Tagged_Addresses":{"lan_ipv4":{"ADDRESS":"10.0.0.1","PORT":1}},
		  "CHECK":{"Check_ID":"c_1","hTTP":"http://x/a_b","HEADER":{"X_Trace":["a_b"]},"deregisterCriticalServiceAfter":"30s"}}`,
	} {
		var got agentServiceBody
		if err := unmarshal([]byte(body), &got); err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s\ngives %+v", body, got)
		}
	}
}

func TestJSONErrorsNameTheByte(t *testing.T) {
	for _, c := range []struct{ body, want string }{
		{`{"Name": web}`, "at byte 10"},
		{`{"Name":"web"`, "at byte 13"},
		{`{"Name":"web"} x`, "at byte 16"},
		{`{"Name":7}`, "field Name: at byte 9: want string, not number"},
		{`{"Port":"x"}`, "field Port: at byte 11: want int, not string"},
		{`{"check_id":"x","check":{"tls_skip_verify":"yes"}}`, "field Check.TLSSkipVerify: at byte 48"},
		{`[]`, "want an object, not array"},
	} {
		err := unmarshal([]byte(c.body), new(agentServiceBody))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want one that says %q", c.body, err, c.want)
		}
	}
}

func TestDurations(t *testing.T) {
	for _, c := range []struct {
		sent string
		want time.Duration
		ok   bool
	}{
		{`"10s"`, 10 * time.Second, true},
		{`"1500ms"`, 1500 * time.Millisecond, true},
		{`10000000000`, 10 * time.Second, true},
		{`""`, 0, true},
		{`null`, 0, true},
		{`"10"`, 0, false},
		{`"often"`, 0, false},
		{`1.5`, 0, false},
		{`true`, 0, false},
	} {
		var body checkBody
		if err := json.Unmarshal([]byte(`{"Interval":`+c.sent+`}`), &body); err != nil {
			t.Fatal(err)
		}
		got, err := body.Interval.parse("check interval")
		if got.Std() != c.want || (err == nil) != c.ok {
			t.Errorf("%s: %v, %v", c.sent, got, err)
		}
		if err != nil && !strings.Contains(err.Error(), "check interval") {
			t.Errorf("%s: %v does not name the field", c.sent, err)
		}
	}
}

// Folding keys changes no byte outside the keys, and no length.
func FuzzFoldKeys(f *testing.F) {
	f.Add(`{"a_b":{"c_d":[{"e_\"f":"g_h"}]},"meta":{"i_j":1},"k":"_"}`)
	f.Add(`[[],{},"_",{"_":{"_":null}}]`)
	f.Fuzz(func(t *testing.T, text string) {
		if !json.Valid([]byte(text)) {
			return
		}
		folded := []byte(text)
		foldKeys(folded)
		if !json.Valid(folded) || len(folded) != len(text) {
			t.Fatalf("%s became %s", text, folded)
		}
		again := append([]byte(nil), folded...)
		foldKeys(again)
		if string(again) != string(folded) {
			t.Fatalf("%s, folded again %s", folded, again)
		}
	})
}
