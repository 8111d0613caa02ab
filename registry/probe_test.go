package registry

import (
	"context"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/weftmesh/weft"
)

func TestProbeHTTP(t *testing.T) {
	mux := http.NewServeMux()
	status := func(path string, code int) {
		mux.HandleFunc(path, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) })
	}
	status("/ok", 200)
	status("/empty", 204)
	status("/busy", 429)
	status("/unmodified", 304)
	status("/broken", 500)
	mux.Handle("/moved", http.RedirectHandler("/ok", http.StatusFound))
	mux.Handle("/loop", http.RedirectHandler("/loop", http.StatusFound))
	mux.HandleFunc("/echo", func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		io.WriteString(w, r.Method+" "+r.Host+" "+r.Header.Get("X-Key")+" "+string(body))
	})
	mux.HandleFunc("/endless", func(w http.ResponseWriter, r *http.Request) {
		for r.Context().Err() == nil {
			if _, err := w.Write(make([]byte, 1024)); err != nil {
				return
			}
		}
	})
	mux.HandleFunc("/slow", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	server := httptest.NewServer(mux)
	defer server.Close()
	cases := []struct {
		check  weft.Check
		want   weft.Health
		output string
	}{
		{weft.Check{Target: "/ok"}, weft.Passing, "200 OK"},
		{weft.Check{Target: "/empty"}, weft.Passing, "204"},
		{weft.Check{Target: "/busy"}, weft.Warning, "429 Too Many Requests"},
		{weft.Check{Target: "/unmodified"}, weft.Critical, "304"},
		{weft.Check{Target: "/broken"}, weft.Critical, "500"},
		{weft.Check{Target: "/missing"}, weft.Critical, "404 page not found"},
		{weft.Check{Target: "/moved"}, weft.Passing, "200"},
		{weft.Check{Target: "/moved", NoRedirects: true}, weft.Critical, "302"},
		{weft.Check{Target: "/loop"}, weft.Critical, "redirects"},
		{weft.Check{Target: "/echo", Method: "POST", Body: "ping", Header: map[string][]string{"x-key": {"k"}, "Host": {"shop.example"}}},
			weft.Passing, "POST shop.example k ping"},
		{weft.Check{Target: "/endless"}, weft.Passing, "200"},
		{weft.Check{Target: "/slow"}, weft.Critical, "deadline exceeded"},
	}
	for _, c := range cases {
		t.Run(strings.TrimSpace(c.check.Method+" "+c.check.Target), func(t *testing.T) {
			c.check.Kind = weft.HTTPCheck
			c.check.Target = server.URL + c.check.Target
			limit := patience
			if strings.HasSuffix(c.check.Target, "/slow") {
				limit = 300 * time.Millisecond
			}
			ctx, cancel := context.WithTimeout(t.Context(), limit)
			defer cancel()
			got, output := probe(ctx, &c.check)
			if got != c.want || !strings.Contains(output, c.output) {
				t.Errorf("%s with %.200q; want %s with %q", got, output, c.want, c.output)
			}
			if len(shortOutput(output)) > 4<<10 {
				t.Errorf("%d bytes of output", len(output))
			}
		})
	}
}

// TestProbeAsksNoProxy: loopback is never asked through one, so it is looked up.
func TestProbeAsksNoProxy(t *testing.T) {
	for _, client := range []*http.Client{probeClient, insecureClient} {
		if client.Transport.(*http.Transport).Proxy != nil {
			t.Error("a probe may go through a proxy")
		}
	}
}

func TestProbeHTTPS(t *testing.T) {
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	server.Config.ErrorLog = log.New(io.Discard, "", 0) // it complains of the refused handshake
	server.StartTLS()
	defer server.Close()
	c := weft.Check{Kind: weft.HTTPCheck, Target: server.URL, TLSSkipVerify: true}
	if got, output := probe(t.Context(), &c); got != weft.Passing {
		t.Errorf("without verification: %s, %s", got, output)
	}
	c.TLSSkipVerify = false
	if got, output := probe(t.Context(), &c); got != weft.Critical || !strings.Contains(output, "certificate") {
		t.Errorf("with verification: %s, %s", got, output)
	}
}

func TestProbeTCP(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := weft.Check{Kind: weft.TCPCheck, Target: l.Addr().String()}
	if got, output := probe(t.Context(), &c); got != weft.Passing {
		t.Errorf("open port: %s, %s", got, output)
	}
	l.Close()
	if got, output := probe(t.Context(), &c); got != weft.Critical || !strings.Contains(output, "refused") {
		t.Errorf("closed port: %s, %s", got, output)
	}
}

func TestShortOutput(t *testing.T) {
	long := strings.Repeat("ä", maxOutput) // two bytes each: the cut may go through one
	for _, in := range []string{"", "short", long, "x" + long, "bad \xff\xfe bytes", strings.Repeat("\xff", 2*maxOutput)} {
		out := shortOutput(in)
		if len(out) > maxOutput || strings.ToValidUTF8(out, "") != out {
			t.Errorf("%d bytes become %d: %.20q", len(in), len(out), out)
		}
	}
}
