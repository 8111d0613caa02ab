package consul

import (
	"encoding/base64"
	"encoding/json"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"
)

// session makes one that nothing but its end takes away.
func (w *world) session(body string) string {
	w.Helper()
	id, _ := w.put("/v1/session/create", body).field("ID").(string)
	if id == "" {
		w.Fatal("a session without an ID")
	}
	return id
}

func TestKeys(t *testing.T) {
	w := newWorld(t)
	missing := w.send("GET", "/v1/kv/a/b", "").want(404)
	if missing.body != "" || missing.index() == 0 {
		t.Errorf("a missing key: %q, index %d", missing.body, missing.index())
	}
	for key, value := range map[string]string{"a/b": "1", "a/c/d": "", "a/c/e": "\x00\xff", "a%2F%2Fx": "y", "z/": "dir"} {
		if a := w.send("PUT", "/v1/kv/"+key+"?flags=7", value, "Content-Type", "application/json").want(200); a.body != "true\n" {
			t.Errorf("put %s: %q", key, a.body)
		}
	}
	w.get("/v1/kv/a/b").wantJSON(`[{"LockIndex":0,"Key":"a/b","Flags":7,"Value":"MQ=="}]`)
	w.get("/v1/kv/a/c/d").wantJSON(`[{"LockIndex":0,"Key":"a/c/d","Flags":7,"Value":null}]`)
	w.get("/v1/kv/a//x").wantJSON(`[{"LockIndex":0,"Key":"a//x","Flags":7,"Value":"eQ=="}]`)
	raw := w.get("/v1/kv/a/c/e?raw")
	if raw.body != "\x00\xff" || raw.header.Get("X-Content-Type-Options") != "nosniff" {
		t.Errorf("raw: %q, %v", raw.body, raw.header)
	}
	for path, want := range map[string]string{
		"/v1/kv/?keys":                   `["a//x","a/b","a/c/d","a/c/e","z/"]`,
		"/v1/kv/a/?keys&separator=/":     `["a//","a/b","a/c/"]`,
		"/v1/kv/a/c?keys&separator=/":    `["a/c/"]`,
		"/v1/kv/?keys=&separator=%2Fc":   `["a//x","a/b","a/c","z/"]`,
		"/v1/kv/z?keys&separator=none":   `["z/"]`,
		"/v1/kv/?keys&separator=&stale=": `["a//x","a/b","a/c/d","a/c/e","z/"]`,
	} {
		w.get(path).wantJSON(want)
	}
	if got := w.get("/v1/kv/a/c?recurse").field("1.Key"); got != "a/c/e" {
		t.Errorf("recurse: %v", got)
	}
	for _, path := range []string{"/v1/kv/none?recurse", "/v1/kv/none?keys", "/v1/kv/none?raw", "/v1/kv/a/b?ns=other"} {
		if a := w.send("GET", path, "").want(404); a.body != "" {
			t.Errorf("%s: %q", path, a.body)
		}
	}
	w.send("DELETE", "/v1/kv/a/c?recurse", "").want(200)
	w.send("DELETE", "/v1/kv/none", "").want(200)
	w.get("/v1/kv/?keys").wantJSON(`["a//x","a/b","z/"]`)
	w.send("DELETE", "/v1/kv/?recurse", "").want(200)
	w.send("GET", "/v1/kv/?keys", "").want(404)
}

// What others have changed meanwhile is not written over.
func TestCompareAndSet(t *testing.T) {
	w := newWorld(t)
	index := func() string {
		b, err := json.Marshal(w.get("/v1/kv/k").field("0.ModifyIndex"))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	n := 0
	step := func(method, path, want string) {
		t.Helper()
		n++
		if a := w.send(method, path, strconv.Itoa(n)).want(200); a.body != want+"\n" {
			t.Errorf("%s %s: %q, want %s", method, path, a.body, want)
		}
	}
	step("PUT", "/v1/kv/k?cas=5", "false")
	step("PUT", "/v1/kv/k?cas=0", "true")
	step("PUT", "/v1/kv/k?cas=0", "false")
	old := index()
	step("PUT", "/v1/kv/k?cas="+old, "true")
	step("PUT", "/v1/kv/k?cas="+old, "false")
	step("DELETE", "/v1/kv/k?cas="+old, "false")
	step("DELETE", "/v1/kv/k?cas="+index(), "true")
	w.send("GET", "/v1/kv/k", "").want(404)
}

func TestLocks(t *testing.T) {
	w := newWorld(t)
	one, other := w.session(`{"LockDelay":"0s"}`), w.session(`{"Behavior":"delete","LockDelay":0}`)
	step := func(path, want string) {
		t.Helper()
		if a := w.put(path, "v"); a.body != want+"\n" {
			t.Errorf("%s: %q, want %s", path, a.body, want)
		}
	}
	step("/v1/kv/l?acquire="+one, "true")
	step("/v1/kv/l?acquire="+one, "true") // again: it may write what it holds
	step("/v1/kv/l?acquire="+other, "false")
	step("/v1/kv/l?release="+other, "false")
	if a := w.get("/v1/kv/l"); a.field("0.Session") != one || a.field("0.LockIndex") != 1.0 {
		t.Errorf("the lock: %s", a.body)
	}
	step("/v1/kv/l?release="+one, "true")
	if a := w.get("/v1/kv/l"); a.field("0.Session") != nil {
		t.Errorf("released: %s", a.body)
	}
	step("/v1/kv/l?acquire="+other, "true")
	w.put("/v1/session/destroy/"+other, "")
	w.send("GET", "/v1/kv/l", "").want(404) // its behaviour is to delete
	// An ended session can lock nothing. Clients take it for a 500 that they know.
	for _, id := range []string{other, "no-session"} {
		if a := w.send("PUT", "/v1/kv/l?acquire="+id, "v"); a.status != 500 || !strings.Contains(a.body, "invalid session") {
			t.Errorf("acquire with %q: %d %s", id, a.status, a.body)
		}
	}
}

func TestWrongKeyRequests(t *testing.T) {
	w := newWorld(t)
	for _, c := range []struct {
		method, path, body string
		status             int
		says               string
	}{
		{"GET", "/v1/kv/", "", 400, "Missing key name"},
		{"PUT", "/v1/kv/", "v", 400, "Missing key name"},
		{"DELETE", "/v1/kv/", "", 400, "Missing key name"},
		{"PUT", "/v1/kv/k?cas=x", "v", 400, "read cas"},
		{"PUT", "/v1/kv/k?cas=-1", "v", 400, "read cas"},
		{"PUT", "/v1/kv/k?flags=-1", "v", 400, "read flags"},
		{"PUT", "/v1/kv/k?cas=1&acquire=x", "v", 400, "Conflicting flags"},
		{"PUT", "/v1/kv/k?acquire=x&release=x", "v", 400, "Conflicting flags"},
		{"DELETE", "/v1/kv/k?recurse&cas=1", "", 400, "Conflicting flags"},
		{"DELETE", "/v1/kv/k?cas=x", "", 400, "read cas"},
		{"DELETE", "/v1/kv/k?recurse=perhaps", "", 400, "recurse"},
		{"GET", "/v1/kv/k?keys=perhaps", "", 400, "keys"},
		{"GET", "/v1/kv/k?raw=perhaps", "", 400, "raw"},
		{"GET", "/v1/kv/k?index=x", "", 400, "index"},
		{"POST", "/v1/kv/k", "v", 405, "PUT"},
		{"PUT", "/v1/kv/k", strings.Repeat("v", maxValue+1), 413, "over 524288 bytes"},
		{"PUT", "/v1/kv/" + strings.Repeat("k", 3<<10), "v", 413, "the limit is"},
		{"PUT", "/v1/kv/k?acquire=", "v", 400, "missing session"},
	} {
		if a := w.send(c.method, c.path, c.body); a.status != c.status || !strings.Contains(a.body, c.says) {
			t.Errorf("%s %.60s: %d %.200s, want %d with %q", c.method, c.path, a.status, a.body, c.status, c.says)
		}
	}
	w.send("GET", "/v1/kv/?keys", "").want(404)
	w.put("/v1/kv/k", strings.Repeat("v", maxValue))
}

// Whatever a key and a value consist of, they come back as they were put.
func FuzzKeyRoundTrip(f *testing.F) {
	f.Add("a/b", []byte("1"))
	f.Add("//", []byte{0, 255})
	f.Add("%2F?#", []byte("\n"))
	f.Add("ä\x00", []byte(nil))
	api := New(newRegistry(f), Config{})
	f.Fuzz(func(t *testing.T, key string, value []byte) {
		if key == "" || len(value) > maxValue {
			return
		}
		path := "/v1/kv/" + url.PathEscape(key)
		put := httptest.NewRecorder()
		api.ServeHTTP(put, httptest.NewRequest("PUT", path, strings.NewReader(string(value))))
		get := httptest.NewRecorder()
		api.ServeHTTP(get, httptest.NewRequest("GET", path, nil))
		if put.Code == 400 {
			if get.Code != 404 {
				t.Fatalf("refused, and then %d", get.Code)
			}
			return
		}
		var pairs []struct{ Key, Value string }
		if put.Code != 200 || get.Code != 200 || json.Unmarshal(get.Body.Bytes(), &pairs) != nil || len(pairs) != 1 {
			t.Fatalf("put %d %s, get %d %s", put.Code, put.Body, get.Code, get.Body)
		}
		if got, err := base64.StdEncoding.DecodeString(pairs[0].Value); err != nil || string(got) != string(value) ||
			pairs[0].Key != key && utf8.ValidString(key) { // JSON has no other texts
			t.Fatalf("key %q value %q, want %q %q", pairs[0].Key, got, key, value)
		}
	})
}
