package consul

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net/http"
	"reflect"
	"strings"
	"testing"

	"github.com/weftmesh/weft/wire/http1"
)

// express gives what Express does, nil when it gives nothing.
func (w *world) express(head string) *http.Response {
	w.Helper()
	var r http1.Request
	if _, err := r.Parse([]byte(head), &http1.Limits{}); err != nil {
		w.Fatal(err)
	}
	out, ok := w.server.Config.Handler.(*Handler).Express(nil, &r)
	if !ok {
		return nil
	}
	resp, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(out)), nil)
	if err != nil {
		w.Fatalf("%v: %q", err, out)
	}
	return resp
}

// slowly is what net/http's handler says to the same.
func (w *world) slowly(head string) *http.Response {
	w.Helper()
	r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(head)))
	if err != nil {
		w.Fatal(err)
	}
	r.RequestURI, r.URL.Scheme, r.URL.Host = "", "http", w.server.Listener.Addr().String()
	resp, err := (&http.Transport{DisableCompression: true, DisableKeepAlives: true}).RoundTrip(r)
	if err != nil {
		w.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if err != nil {
		w.Fatal(err)
	}
	resp.Body = io.NopCloser(bytes.NewReader(body))
	return resp
}

func TestExpressSaysWhatTheHandlerSays(t *testing.T) {
	w := newWorld(t)
	for i := range 20 {
		w.put("/v1/agent/service/register", fmt.Sprintf(`{"ID":"w%d","Name":"web","Port":80,"Check":{"TTL":"1h","Status":"passing"}}`, i))
	}
	w.put("/v1/agent/service/register", `{"Name":"one","Port":80}`)
	get := func(target, more string) string { return "GET " + target + " HTTP/1.1\r\nHost: h\r\n" + more + "\r\n" }
	for _, tt := range []struct {
		name, head string
		ready      bool
	}{
		{"a plain read", get("/v1/health/service/one", ""), true},
		{"those that pass", get("/v1/health/service/web?passing", ""), true},
		{"stale", get("/v1/health/service/web?passing=1&stale", ""), true},
		{"compressed", get("/v1/health/service/web", "accept-encoding: br, gzip;q=0.5\r\n"), true},
		{"not compressed", get("/v1/health/service/web", "Accept-Encoding: gzip;q=0\r\n"), true},
		{"a token, which nobody looks at", get("/v1/health/service/one", "X-Consul-Token: x\r\n"), true},
		{"a filter", get("/v1/health/service/web?filter=Service.Port==80", ""), false},
		{"what is there in a moment", get("/v1/health/service/web?index=99999&wait=1ms", ""), false},
		{"nobody", get("/v1/health/service/nobody", ""), true},
		{"an escape", get("/v1/health/service/w%65b", ""), false},
		{"another endpoint", get("/v1/catalog/services", ""), false},
		{"another method", "DELETE /v1/health/service/web HTTP/1.1\r\nHost: h\r\n\r\n", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w.T = t
			want := w.slowly(tt.head) // and it is kept from now on
			got := w.express(tt.head)
			if (got != nil) != tt.ready {
				t.Fatalf("ready: %v, want %v", got != nil, tt.ready)
			}
			if got == nil {
				return
			}
			for _, h := range []http.Header{got.Header, want.Header} {
				h.Del("Date")
				h.Del("Connection")
			}
			a, _ := io.ReadAll(got.Body)
			b, _ := io.ReadAll(want.Body)
			if got.Status != want.Status || !reflect.DeepEqual(got.Header, want.Header) || !bytes.Equal(a, b) {
				t.Errorf("got %s %v %.80q\nwant %s %v %.80q", got.Status, got.Header, a, want.Status, want.Header, b)
			}
		})
	}
}

func TestExpressKnowsNothingUnderAccessControl(t *testing.T) {
	w := worldWith(t, Config{ACL: &ACL{DefaultPolicy: "allow"}})
	w.put("/v1/agent/service/register", `{"Name":"one","Port":80}`)
	const head = "GET /v1/health/service/one HTTP/1.1\r\nHost: h\r\n\r\n"
	w.slowly(head)
	if w.express(head) != nil {
		t.Error("it answers without a look at the token")
	}
}

func TestExpressIsNeverOld(t *testing.T) {
	w := newWorld(t)
	const head = "GET /v1/health/service/web HTTP/1.1\r\nHost: h\r\n\r\n"
	for port := range 5 {
		w.put("/v1/agent/service/register", fmt.Sprintf(`{"Name":"web","Port":%d}`, 8000+port))
		if w.express(head) != nil && port > 0 {
			t.Fatal("what was kept before the change is told")
		}
		w.slowly(head)
		body, _ := io.ReadAll(w.express(head).Body)
		if want := fmt.Sprintf(`"Port":%d`, 8000+port); !bytes.Contains(body, []byte(want)) {
			t.Errorf("%s is not in %s", want, body)
		}
	}
}

func BenchmarkExpress(b *testing.B) {
	r := benchRegistry(b, 10)
	h := New(r, Config{})
	head := []byte("GET /v1/health/service/web?passing HTTP/1.1\r\nHost: h\r\n\r\n")
	q, _ := http.NewRequest(http.MethodGet, "/v1/health/service/web?passing", nil)
	h.ServeHTTP(&discard{header: http.Header{}}, q)
	var request http1.Request
	if _, err := request.Parse(head, &http1.Limits{}); err != nil {
		b.Fatal(err)
	}
	var out []byte
	for b.Loop() {
		var ok bool
		if out, ok = h.Express(out[:0], &request); !ok {
			b.Fatal("nothing is kept")
		}
	}
	b.ReportAllocs()
}
