package consul

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"strings"
	"testing"
)

// Who monitors gets what the process logs from then on, at the level that they want,
// whatever the process itself writes.
func TestMonitor(t *testing.T) {
	tap := new(LogTap)
	var own bytes.Buffer
	log := slog.New(tap.Handler(slog.NewTextHandler(&own, &slog.HandlerOptions{Level: slog.LevelWarn})))
	w := worldWith(t, Config{Process: Process{Log: tap}})
	listen := func(query string) *bufio.Scanner {
		r, err := http.NewRequestWithContext(t.Context(), "GET", w.server.URL+"/v1/agent/monitor"+query, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { resp.Body.Close() })
		return bufio.NewScanner(resp.Body)
	}
	all, warnings := listen("?loglevel=debug&logjson"), listen("?loglevel=warn")
	log.With("a", 1).WithGroup("g").Debug("fine\nlines", "b", "x y")
	log.Warn("careful", "error", errors.New("no"))
	var line map[string]string
	if !all.Scan() || json.Unmarshal(all.Bytes(), &line) != nil || line["@message"] != "fine\nlines" || line["@level"] != "debug" ||
		line["a"] != "1" || line["g.b"] != "x y" {
		t.Errorf("as JSON: %s", all.Bytes())
	}
	if !warnings.Scan() || !strings.HasSuffix(warnings.Text(), " [WARN] careful: error=no") {
		t.Errorf("warnings: %s", warnings.Text())
	}
	if strings.Contains(own.String(), "fine") || !strings.Contains(own.String(), "careful") {
		t.Errorf("its own log: %s", own.String())
	}
	if a := w.send("GET", "/v1/agent/monitor?loglevel=loud", "").want(400); !strings.Contains(a.body, "Unknown log level") {
		t.Errorf("a wrong level: %s", a.body)
	}
	http.DefaultClient.CloseIdleConnections()
}

// While nobody listens nothing is asked for, and a slow listener holds nobody up.
func TestLogTap(t *testing.T) {
	tap := new(LogTap)
	h := tap.Handler(slog.DiscardHandler)
	if h.Enabled(t.Context(), slog.LevelError) {
		t.Error("somebody listens")
	}
	l := tap.listen(slog.LevelInfo)
	if !h.Enabled(t.Context(), slog.LevelInfo) || h.Enabled(t.Context(), slog.LevelDebug) {
		t.Error("the listener's level is not asked for")
	}
	for range maxLines + 10 {
		slog.New(h).Info("x")
	}
	if len(l.lines) != maxLines {
		t.Errorf("%d lines wait", len(l.lines))
	}
	tap.leave(l)
	if h.Enabled(t.Context(), slog.LevelError) {
		t.Error("still somebody listens")
	}
}

func TestProcess(t *testing.T) {
	left, reloaded := false, false
	w := worldWith(t, Config{Version: "1.2.3", Process: Process{
		Metrics: func(b *bytes.Buffer) error { b.WriteString("weft_up 1\n"); return nil },
		Reload: func(context.Context) error {
			if reloaded {
				return errors.New("the file is gone")
			}
			reloaded = true
			return nil
		},
		Leave: func() { left = true },
	}})
	w.get("/v1/agent/version").wantJSON(`{"SHA":"","BuildDate":"","HumanVersion":"1.2.3","FIPS":""}`)
	if a := w.get("/v1/agent/metrics?format=prometheus"); !strings.Contains(a.body, "consul_state_nodes 1\n") || !strings.HasSuffix(a.body, "weft_up 1\n") {
		t.Errorf("metrics: %s", a.body)
	}
	if a := w.get("/v1/agent/metrics"); a.field("Gauges.0.Name") == nil || !strings.Contains(a.body, `"Counters":[]`) {
		t.Errorf("metrics: %s", a.body)
	}
	if a := w.get("/v1/agent/host"); a.field("Host.os") == nil || a.field("CPU.0.cores") == nil {
		t.Errorf("host: %s", a.body)
	}
	w.put("/v1/agent/reload", "")
	if a := w.send("PUT", "/v1/agent/reload", "").want(500); !strings.Contains(a.body, "gone") {
		t.Errorf("reload: %s", a.body)
	}
	w.put("/v1/agent/leave", "")
	if !left || !reloaded {
		t.Errorf("left %v, reloaded %v", left, reloaded)
	}
	for _, path := range []string{"/v1/peerings", "/v1/exported-services", "/v1/partitions"} {
		w.get(path).wantJSON(`[]`)
	}
}
