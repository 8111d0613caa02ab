package consul

import (
	"bytes"
	"compress/gzip"
	"io"
	"strings"
	"testing"
)

// A snapshot that is restored makes the state as it was, here and on another server.
func TestSnapshot(t *testing.T) {
	w := fleet(t)
	w.put("/v1/kv/a?flags=5", "1")
	w.put("/v1/kv/b", "2")
	w.put("/v1/event/fire/deploy", "x")
	saved := w.get("/v1/snapshot")
	if saved.header.Get("Content-Type") != "application/x-gzip" || saved.index() == 0 {
		t.Errorf("headers: %v", saved.header)
	}
	reads := []string{"/v1/catalog/services", "/v1/health/node/far", "/v1/kv/?recurse", "/v1/event/list", "/v1/catalog/node/far"}
	var before []string
	for _, path := range reads {
		before = append(before, w.get(path).body)
	}
	w.put("/v1/kv/a", "changed")
	w.put("/v1/kv/c", "new")
	w.send("DELETE", "/v1/kv/b", "").want(200)
	w.put("/v1/catalog/deregister", `{"Node":"far"}`)
	w.put("/v1/catalog/register", `{"Node":"new","Address":"10.0.0.7","Service":{"Service":"other","Port":1}}`)
	w.put("/v1/agent/service/deregister/web-1", "")
	w.put("/v1/snapshot", saved.body)
	other := newWorld(t)
	other.put("/v1/kv/z", "other")
	other.put("/v1/snapshot", saved.body)
	for i, path := range reads {
		for _, w := range []*world{w, other} {
			w.get(path).wantJSON(before[i])
		}
	}
	if got := other.get("/v1/health/service/web").ids(); got != "web-3 web-1 web-2" {
		t.Errorf("instances: %q", got)
	}
}

// What is damaged, cut or somebody else's is refused whole.
func TestWrongSnapshots(t *testing.T) {
	w := newWorld(t)
	w.put("/v1/kv/a", "1")
	good := w.get("/v1/snapshot").body
	zip := func(text string) string {
		var out bytes.Buffer
		z := gzip.NewWriter(&out)
		io.WriteString(z, text)
		z.Close()
		return out.String()
	}
	r, err := gzip.NewReader(strings.NewReader(good))
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.SplitAfter(string(text), "\n")
	w.put("/v1/kv/a", "2")
	for name, c := range map[string]struct{ body, says string }{
		"nothing":        {"", "gzip"},
		"no gzip":        {string(text), "gzip"},
		"cut":            {good[:len(good)/2], "line 2"},
		"without an end": {zip(strings.Join(lines[:len(lines)-2], "")), "no end"},
		"changed":        {zip(strings.Replace(string(text), `"MQ=="`, `"Mw=="`, 1)), "checksum"},
		"somebody's":     {zip(`{"Index":1}` + "\n"), "none of weft's"},
		"no JSON":        {zip(lines[0] + "x\n"), "line 2"},
		"another tree":   {zip(lines[0] + `{"Tree":"secrets","Entry":{"Key":"a"}}` + "\n"), "no tree"},
		"a line too far": {zip(lines[0] + strings.Repeat("x", maxSnapshotRow+1)), "no end"},
	} {
		if a := w.send("PUT", "/v1/snapshot", c.body); a.status != 400 || !strings.Contains(a.body, c.says) {
			t.Errorf("%s: %d %s, want 400 with %q", name, a.status, a.body, c.says)
		}
	}
	if got := w.get("/v1/kv/a?raw").body; got != "2" {
		t.Errorf("a refused snapshot changed a key to %q", got)
	}
}
