package consul

import (
	"strings"
	"testing"
	"time"
)

func TestSessions(t *testing.T) {
	w := newWorld(t)
	id := w.session(`{"Name":"n","ttl":"30s","lock_delay":"5s","Behavior":"delete"}`)
	want := `[{"ID":"` + id + `","Name":"n","Node":"server-1","LockDelay":5000000000,"Behavior":"delete","TTL":"30s","NodeChecks":["serfHealth"],"ServiceChecks":null}]`
	for _, path := range []string{"/v1/session/info/" + id, "/v1/session/node/server-1", "/v1/session/list"} {
		w.get(path).wantJSON(want)
	}
	w.put("/v1/session/renew/"+id, "").wantJSON(want)
	w.get("/v1/session/node/other").wantJSON(`[]`)
	w.get("/v1/session/info/none").wantJSON(`[]`)
	w.put("/v1/session/destroy/"+id, "").wantJSON(`true`)
	w.put("/v1/session/destroy/"+id, "").wantJSON(`true`)
	w.get("/v1/session/list").wantJSON(`[]`)
	// Clients take a 404 for the end of their session, and nothing else.
	if a := w.send("PUT", "/v1/session/renew/"+id, ""); a.status != 404 || !strings.Contains(a.body, id) {
		t.Errorf("renew an ended session: %d %s", a.status, a.body)
	}
}

// A body may be missing, and a lock delay may be a text, nanoseconds or seconds.
func TestSessionLockDelay(t *testing.T) {
	w := newWorld(t)
	for body, want := range map[string]time.Duration{
		``:                          15 * time.Second,
		`{}`:                        15 * time.Second,
		`{"LockDelay":""}`:          15 * time.Second,
		`{"LockDelay":null}`:        15 * time.Second,
		`{"LockDelay":"0s"}`:        0,
		`{"LockDelay":0}`:           0,
		`{"LockDelay":"7s"}`:        7 * time.Second,
		`{"LockDelay":7}`:           7 * time.Second,
		`{"LockDelay":7000000000}`:  7 * time.Second,
		`{"LockDelay":"10m"}`:       time.Minute,
		`{"LockDelay":700}`:         time.Minute,
		`{"LockDelay":90000000000}`: time.Minute,
	} {
		id := w.session(body)
		if got := w.get("/v1/session/info/" + id).field("0.LockDelay"); got != float64(want) {
			t.Errorf("%s: %v, want %v", body, got, want)
		}
	}
}

func TestWrongSessions(t *testing.T) {
	w := newWorld(t)
	for _, c := range []struct {
		method, path, body string
		status             int
		says               string
	}{
		{"PUT", "/v1/session/create", `{`, 400, "malformed"},
		{"PUT", "/v1/session/create", `[]`, 400, "want"},
		{"PUT", "/v1/session/create", `{"TTL":"soon"}`, 400, "TTL"},
		{"PUT", "/v1/session/create", `{"TTL":"9s"}`, 400, "must be between"},
		{"PUT", "/v1/session/create", `{"TTL":"25h"}`, 400, "must be between"},
		{"PUT", "/v1/session/create", `{"TTL":"-10s"}`, 400, "must be between"},
		{"PUT", "/v1/session/create", `{"Behavior":"keep"}`, 400, "Invalid Behavior"},
		{"PUT", "/v1/session/create", `{"LockDelay":"-1s"}`, 400, "negative"},
		{"PUT", "/v1/session/create", `{"LockDelay":"later"}`, 400, "LockDelay"},
		{"PUT", "/v1/session/create", `{"Node":"none"}`, 400, "Missing node registration"},
		{"PUT", "/v1/session/create", `{"Checks":["none"]}`, 400, "none"},
		{"PUT", "/v1/session/create", `{"Datacenter":"dc2"}`, 500, "No path to datacenter"},
		{"PUT", "/v1/session/create", strings.Repeat(" ", maxBody+1), 413, "over 1048576 bytes"},
		{"PUT", "/v1/session/destroy/", ``, 400, "missing session"},
		{"PUT", "/v1/session/renew/", ``, 400, "missing session"},
		{"GET", "/v1/session/info/", ``, 400, "missing session"},
		{"GET", "/v1/session/node/", ``, 400, "missing node name"},
		{"GET", "/v1/session/create", ``, 405, "PUT"},
	} {
		if a := w.send(c.method, c.path, c.body); a.status != c.status || !strings.Contains(a.body, c.says) {
			t.Errorf("%s %s %.60s: %d %.200s, want %d with %q", c.method, c.path, c.body, a.status, a.body, c.status, c.says)
		}
	}
	w.get("/v1/session/list").wantJSON(`[]`)
}

// A session ends with a check that it depends on, and lets its locks go.
func TestSessionEndsWithItsCheck(t *testing.T) {
	w := newWorld(t)
	w.put("/v1/agent/check/register", `{"ID":"disk","Name":"disk","TTL":"1h","Status":"passing"}`)
	id := w.session(`{"NodeChecks":["serfHealth","disk"],"LockDelay":"0s"}`)
	w.put("/v1/kv/l?acquire="+id, "")
	w.put("/v1/agent/check/fail/disk", "")
	eventually(t, "the session ends", func() bool { return w.get("/v1/session/info/"+id).body == "[]\n" })
	if a := w.get("/v1/kv/l"); a.field("0.Session") != nil {
		t.Errorf("the lock is still held: %s", a.body)
	}
	if a := w.send("PUT", "/v1/session/create", `{"NodeChecks":["disk"]}`); a.status < 400 || !strings.Contains(a.body, "disk") {
		t.Errorf("a session on a critical check: %d %s", a.status, a.body)
	}
}
