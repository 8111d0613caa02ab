package world

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"
)

func TestMain(m *testing.M) { Main(m) }

// What the judges stand on: a request goes through a gateway, and through two
// sidecars, and is counted.
func TestARequestGoesThroughTheWorld(t *testing.T) {
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "hello") }))
	t.Cleanup(app.Close)
	address := app.Listener.Addr().String()
	w := New(t)
	w.Register("plain", "plain-1", address)
	w.Apply(Everything("plain"))
	gateway := w.Gateway()
	Eventually(t, 10*time.Second, "the gateway", Answers("http://"+gateway.HTTP+"/"))

	w.Sidecar("meshed", Port(t, address))
	caller, door := w.Caller("tests", "meshed")
	Eventually(t, 10*time.Second, "the sidecars", Answers("http://"+door+"/"))
	for _, p := range []*Proxy{gateway, caller} {
		if n := p.Metric("weft_requests_total", `code="200"`); n < 1 {
			t.Errorf("%s counts %v answers with 200", p.Name, n)
		}
		if p.FDs() == 0 || p.Memory() < 1<<20 {
			t.Errorf("%s: %d files, %d bytes", p.Name, p.FDs(), p.Memory())
		}
	}
}

func TestSeriesFit(t *testing.T) {
	series := `weft_refused_total{reason="limit",role="edge"}`
	for _, c := range []struct {
		name   string
		labels []string
		want   bool
	}{
		{"weft_refused_total", nil, true},
		{"weft_refused_total", []string{`role="edge"`, `reason="limit"`}, true},
		{"weft_refused_total", []string{`reason="lim"`}, false},
		{"weft_refused", nil, false},
	} {
		if got := fits(series, c.name, c.labels); got != c.want {
			t.Errorf("%s %v: got %v", c.name, c.labels, got)
		}
	}
}
