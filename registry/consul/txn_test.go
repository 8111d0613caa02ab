package consul

import (
	"encoding/json"
	"fmt"
	"net/http/httptest"
	"strings"
	"testing"
)

// All operations of a transaction happen at one index, and it tells what they did.
func TestTransaction(t *testing.T) {
	w := newWorld(t)
	id := w.session(`{"LockDelay":"0s"}`)
	a := w.put("/v1/txn", `[
		{"KV":{"Verb":"set","Key":"a","Value":"MQ==","Flags":3}},
		{"KV":{"Verb":"lock","Key":"l","Value":"","Session":"`+id+`"}},
		{"KV":{"Verb":"get","Key":"a"}},
		{"KV":{"Verb":"check-not-exists","Key":"none"}},
		{"Node":{"Verb":"set","Node":{"Node":"far","Address":"10.0.0.9","Meta":{"os":"linux"}}}},
		{"Service":{"Verb":"set","Node":"far","Service":{"ID":"web-1","Service":"web","Port":1,"Tags":["t"]}}},
		{"Check":{"Verb":"set","Check":{"Node":"far","CheckID":"c","Name":"c","ServiceID":"web-1","Status":"passing"}}}
	]`)
	for field, want := range map[string]any{
		"Results.0.KV.Key": "a", "Results.0.KV.Flags": 3.0, "Results.0.KV.Value": nil, "Results.1.KV.Session": id,
		"Results.2.KV.Value": "MQ==", "Results.3.Node.Node": "far", "Results.3.Node.Meta.os": "linux",
		"Results.4.Service.ID": "web-1", "Results.5.Check.ServiceName": "web", "Results.5.Check.ServiceTags.0": "t", "Errors": nil,
	} {
		if got := a.field(field); got != want {
			t.Errorf("%s is %v, want %v in\n%s", field, got, want, a.body)
		}
	}
	index := a.field("Results.0.KV.ModifyIndex")
	for _, field := range []string{"Results.1.KV.ModifyIndex", "Results.3.Node.ModifyIndex", "Results.4.Service.ModifyIndex", "Results.5.Check.ModifyIndex"} {
		if got := a.field(field); got != index || index == nil {
			t.Errorf("%s is %v, not %v", field, got, index)
		}
	}
	if got := w.get("/v1/health/service/web?passing").ids(); got != "web-1" {
		t.Errorf("after it: %q", got)
	}
}

// One operation that fails undoes the others, and each that fails is named.
func TestTransactionRollsBack(t *testing.T) {
	w := newWorld(t)
	a := w.send("PUT", "/v1/txn", `[
		{"KV":{"Verb":"set","Key":"a","Value":"MQ=="}},
		{"KV":{"Verb":"get","Key":"none"}},
		{"KV":{"Verb":"cas","Key":"b","Value":"MQ==","Index":99}},
		{"Service":{"Verb":"get","Node":"none","Service":{"ID":"x","Service":"x"}}}
	]`).want(409)
	if got := a.field("Results"); got != nil {
		t.Errorf("results: %v", got)
	}
	for i, op := range []float64{1, 2, 3} {
		if got := a.field(fmt.Sprintf("Errors.%d.OpIndex", i)); got != op {
			t.Errorf("error %d is of operation %v, want %v", i, got, op)
		}
		if what, _ := a.field(fmt.Sprintf("Errors.%d.What", i)).(string); what == "" {
			t.Errorf("error %d says nothing", i)
		}
	}
	w.send("GET", "/v1/kv/a", "").want(404)
}

func TestWrongTransactions(t *testing.T) {
	w := newWorld(t)
	many := "[" + strings.TrimSuffix(strings.Repeat(`{"KV":{"Verb":"get","Key":"a"}},`, maxTxnOps+1), ",") + "]"
	for _, c := range []struct {
		body   string
		status int
		says   string
	}{
		{``, 400, "empty"},
		{`{}`, 400, "want"},
		{`[{}]`, 400, "no KV, Node, Service or Check"},
		{`[null]`, 400, "no KV, Node, Service or Check"},
		{`[{"KV":{"Verb":"set","Key":"a","Value":"not base64!"}}]`, 400, "base64"},
		{`[{"KV":{"Verb":"teach","Key":"a"}}]`, 409, "teach"},
		{`[{"KV":{"Verb":"set","Key":"a"}},{"KV":{"Verb":"set","Key":""}}]`, 409, `{"Results":null,"Errors":[{"OpIndex":1,"What":"Must provide key"}]}`},
		{`[{"KV":{"Verb":"lock","Key":"a","Session":"none"}}]`, 409, "invalid session"},
		{`[{"Node":{"Verb":"set","Node":{"Address":"10.0.0.1"}}}]`, 409, "OpIndex"},
		{`[{"Service":{"Verb":"set","Node":"none","Service":{"Service":"web","Kind":"teapot"}}}]`, 400, "teapot"},
		{`[{"Check":{"Verb":"set","Check":{"Node":"server-1","CheckID":"c","Status":"fine"}}}]`, 400, "fine"},
		{many, 413, "too many operations (129 > 128)"},
		{strings.Repeat(" ", maxBody+1), 413, "over 1048576 bytes"},
	} {
		if a := w.send("PUT", "/v1/txn", c.body); a.status != c.status || !strings.Contains(a.body, c.says) {
			t.Errorf("%.80s: %d %.200s, want %d with %q", c.body, a.status, a.body, c.status, c.says)
		}
	}
	w.send("GET", "/v1/kv/?keys", "").want(404)
	w.send("GET", "/v1/txn", "").want(405)
}

// Whatever a body is, it is done whole, refused whole, or wrong; and an answer is JSON
// or one line of text.
func FuzzTransaction(f *testing.F) {
	f.Add(`[{"KV":{"Verb":"set","Key":"a","Value":"MQ=="}},{"KV":{"Verb":"get","Key":"a"}}]`)
	f.Add(`[{"kv":{"verb":"delete-tree","key":""}}]`)
	f.Add(`[{"Node":{"Verb":"set","Node":{"Node":"n","Address":"10.0.0.1"}}},{"Check":{"Verb":"cas","Check":{"Node":"n","CheckID":"c"}}}]`)
	f.Add(`[{"Service":{"Verb":"delete","Node":"n","Service":{"ID":"x","Service":"x"}}}]`)
	api := New(newRegistry(f), Config{})
	f.Fuzz(func(t *testing.T, body string) {
		w := httptest.NewRecorder()
		api.ServeHTTP(w, httptest.NewRequest("PUT", "/v1/txn", strings.NewReader(body)))
		var answer txnAnswer
		switch w.Code {
		case 200, 409:
			if err := json.Unmarshal(w.Body.Bytes(), &answer); err != nil {
				t.Fatalf("%d %s: %v", w.Code, w.Body, err)
			}
			if (len(answer.Errors) > 0) != (w.Code == 409) || len(answer.Errors) > 0 && len(answer.Results) > 0 {
				t.Fatalf("%d %s", w.Code, w.Body)
			}
		case 400, 413:
			if strings.Count(strings.TrimSpace(w.Body.String()), "\n") > 0 || w.Body.Len() < 2 {
				t.Fatalf("%d %q", w.Code, w.Body)
			}
		default:
			t.Fatalf("%d %s", w.Code, w.Body)
		}
	})
}
