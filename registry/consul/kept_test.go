package consul

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/registry"
)

// freshly is what a read is answered when nothing is kept.
func freshly(t *testing.T, r *registry.Registry, path string) *httptest.ResponseRecorder {
	t.Helper()
	w := httptest.NewRecorder()
	New(r, Config{}).ServeHTTP(w, httptest.NewRequest("GET", path, nil))
	return w
}

// Whatever happened to instances, checks and nodes, what was kept is told only while
// it is what would be told anew.
func TestKeptAnswersAreAlwaysFresh(t *testing.T) {
	w := newWorld(t)
	api := New(w.registry, Config{})
	random := rand.New(rand.NewPCG(1, 2))
	pick := func(list ...string) string { return list[random.IntN(len(list))] }
	changes := []func(){
		func() {
			w.put("/v1/agent/service/register", fmt.Sprintf(`{"ID":%q,"Name":%q,"Port":%d,"Tags":[%q],"Check":{"TTL":"1h","Status":%q}}`,
				pick("a", "b", "c"), pick("web", "db"), random.IntN(9)+1, pick("x", "y"), pick("passing", "critical", "warning")))
		},
		func() { w.send("PUT", "/v1/agent/service/deregister/"+pick("a", "b", "c"), "") },
		func() {
			w.send("PUT", "/v1/agent/check/"+pick("pass/", "warn/", "fail/")+"service:"+pick("a", "b", "c"), "")
		},
		func() {
			w.put("/v1/catalog/register", fmt.Sprintf(`{"Node":"far","Address":"10.0.0.%d","NodeMeta":{"k":%q},"Service":{"Service":"web","Port":1},"Check":{"CheckID":"n","Name":"n","Status":%q}}`,
				random.IntN(9), pick("1", "2"), pick("passing", "critical")))
		},
		func() { w.put("/v1/catalog/deregister", `{"Node":"far"}`) },
		func() {
			w.put("/v1/agent/service/register", fmt.Sprintf(`{"ID":"p","Name":%q,"Kind":"connect-proxy","Port":%d,"Proxy":{"DestinationServiceName":%q}}`,
				pick("proxy", "edge"), random.IntN(9)+1, pick("web", "db")))
		},
		func() {
			w.put("/v1/agent/service/register", fmt.Sprintf(`{"ID":"c","Name":%q,"Port":1,"Connect":{"Native":%s}}`, pick("web", "db"), pick("true", "false")))
		},
		func() { w.send("PUT", "/v1/agent/service/deregister/"+pick("p", "c"), "") },
		func() { w.put("/v1/agent/maintenance?enable="+pick("true", "false"), "") },
		func() {},
	}
	var paths []string
	for _, query := range []string{"", "?passing", "?passing=1&stale=", "?tag=x", "?passing&tag=y", "?filter=Service.Port==4", "?node-meta=k:1", "?stale"} {
		paths = append(paths, "health/service/web"+query, "health/service/db"+query)
	}
	for _, query := range []string{"", "?passing", "?node-meta=k:1", "?filter=Node.Node==far"} {
		paths = append(paths, "health/connect/web"+query, "health/connect/db"+query)
	}
	for _, query := range []string{"", "?tag=x", "?filter=ServicePort==4"} {
		paths = append(paths, "catalog/service/web"+query, "catalog/connect/web"+query, "catalog/connect/db"+query)
	}
	paths = append(paths, "health/checks/web", "health/checks/web?node-meta=k:1", "health/checks/db?filter=Status==critical",
		"health/state/any", "health/state/critical", "health/state/any?node-meta=k:1", "health/state/passing?filter=ServiceName==web", "health/state/warning",
		"catalog/services", "catalog/services?node-meta=k:1", "catalog/services?filter=ServicePort==4", "catalog/services?filter=ServiceTags+contains+x")
	type answered struct {
		body  string
		index uint64
	}
	told := make(map[string]answered)
	for range 150 {
		changes[random.IntN(len(changes))]()
		for range 16 {
			path := "/v1/" + pick(paths...)
			want := freshly(t, w.registry, path)
			got := httptest.NewRecorder()
			api.ServeHTTP(got, httptest.NewRequest("GET", path, nil))
			if got.Body.String() != want.Body.String() || got.Code != want.Code {
				t.Fatalf("%s: kept\n%s\nwant\n%s", path, got.Body, want.Body)
			}
			for name := range want.Header() {
				if a, b := got.Header().Get(name), want.Header().Get(name); a != b && name != "X-Consul-Index" {
					t.Fatalf("%s: %s is %q, want %q", path, name, a, b)
				}
			}
			index := indexOf(t, got.Header())
			if index > indexOf(t, want.Header()) {
				t.Fatalf("%s: index %d, which its service has not reached", path, index)
			}
			if was := told[path]; was.body != got.Body.String() && index <= was.index || index < was.index {
				t.Fatalf("%s: index %d, before it was %d with\n%s\nand now\n%s", path, index, was.index, was.body, got.Body)
			}
			told[path] = answered{got.Body.String(), index}
		}
	}
}

func indexOf(t *testing.T, h http.Header) uint64 {
	t.Helper()
	n, err := strconv.ParseUint(h.Get("X-Consul-Index"), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// What the usual clients send is answered from what is kept; what is anything else
// is taken apart as it always was.
func TestPlainParams(t *testing.T) {
	for _, c := range []struct {
		query string
		want  plain
		ok    bool
	}{
		{"", plain{}, true},
		{"passing", plain{passing: true}, true},
		{"passing=1&stale=", plain{passing: true, stale: true}, true},
		{"stale=&index=12&passing=true", plain{passing: true, stale: true, index: 12}, true},
		{"passing=false", plain{}, false},
		{"passing=perhaps", plain{}, false},
		{"passing&passing=false", plain{passing: true}, false},
		{"passing=false&passing", plain{}, false},
		{"index=-1", plain{}, false},
		{"index=x", plain{}, false},
		{"wait=1s", plain{}, false},
		{"stale&consistent", plain{stale: true}, false},
		{"tag=a", plain{}, false},
		{"near=_agent", plain{}, false},
		{"dc=dc1", plain{}, false},
		{"%70assing", plain{}, false},
		{"pass%69ng=1", plain{}, false},
		{"&", plain{}, false},
	} {
		if got, ok := plainParams(c.query); got != c.want && c.ok || ok != c.ok {
			t.Errorf("%q: %+v %v", c.query, got, ok)
		}
	}
}

// The kept answers stay within their bound, and what is asked for often stays longest.
func TestKeptAnswersAreBounded(t *testing.T) {
	var k keptAnswers
	body := make([]byte, 1<<20)
	ask := func(name string) (made bool) {
		_, err := k.get(keptQuery{service: weft.NewServiceName("", name)}, 1, func(*keptAnswer) (*keptAnswer, error) {
			made = true
			return &keptAnswer{at: 1, body: body}, nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return made
	}
	for i := range 200 {
		ask(fmt.Sprint(i))
		if i > 0 && ask("0") {
			t.Fatalf("after %d others the one that is asked for all the time had gone", i)
		}
		size := 0
		for _, e := range k.by {
			size += e.size
		}
		if k.size != size || size > maxKept {
			t.Fatalf("%d bytes are kept, counted are %d of at most %d", size, k.size, maxKept)
		}
	}
	before := len(k.by)
	body = make([]byte, maxKeptOne)
	for range 2 {
		if !ask("whole catalogue") || len(k.by) != before {
			t.Errorf("an answer of %d bytes stays, and %d of %d others", len(body), len(k.by), before)
		}
	}
	long := strings.Repeat("x", 1<<20) // nobody fills the memory with names either
	for i := range 100 {
		body = nil
		ask(long + fmt.Sprint(i))
		if k.size > maxKept || len(k.by) > maxKept>>20+1 {
			t.Fatalf("%d names are kept, of %d bytes", len(k.by), k.size)
		}
	}
	if !ask("1") {
		t.Error("the oldest is still there")
	}
}

// An answer that is asked for at an older index than it has is not made again.
func TestKeptAnswerIsMadeOnce(t *testing.T) {
	var k keptAnswers
	made := uint64(0)
	for _, now := range []uint64{5, 5, 4, 6, 6, 5} {
		a, err := k.get(keptQuery{}, now, func(*keptAnswer) (*keptAnswer, error) { made++; return &keptAnswer{at: now}, nil })
		if err != nil || a.at < now {
			t.Fatalf("at %d: %+v %v", now, a, err)
		}
	}
	if made != 2 {
		t.Errorf("made %d times", made)
	}
	wrong := weft.Errorf(weft.Internal, "make", "it", "no")
	if _, err := k.get(keptQuery{}, 7, func(*keptAnswer) (*keptAnswer, error) { return nil, wrong }); err != wrong {
		t.Errorf("got %v", err)
	}
	if a, err := k.get(keptQuery{}, 7, func(*keptAnswer) (*keptAnswer, error) { return &keptAnswer{at: 7}, nil }); err != nil || a.at != 7 {
		t.Errorf("after a failure: %v %v", a, err)
	}
}

// A long answer goes compressed to those who take it so, and plain to others.
func TestLongAnswersAreCompressed(t *testing.T) {
	w := newWorld(t)
	long := strings.Repeat("x", 500)
	for i := range 150 {
		w.put("/v1/agent/service/register", fmt.Sprintf(`{"ID":"web-%d","Name":"web","Meta":{"m":%q}}`, i, long))
	}
	client := http.Client{Transport: &http.Transport{DisableCompression: true, DisableKeepAlives: true}}
	for _, path := range []string{"/v1/health/service/web", "/v1/health/service/web?passing", "/v1/catalog/service/web"} {
		var bodies []string
		for _, accept := range []string{"", "deflate, gzip;q=0.5", "gzip;q=0"} {
			r, _ := http.NewRequest("GET", w.server.URL+path, nil)
			if accept != "" {
				r.Header.Set("Accept-Encoding", accept)
			}
			resp, err := client.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			body := io.Reader(resp.Body)
			zipped := resp.Header.Get("Content-Encoding") == "gzip"
			if zipped != strings.Contains(accept, "0.5") {
				t.Errorf("%s, %q: compressed %v", path, accept, zipped)
			}
			if zipped {
				if body, err = gzip.NewReader(resp.Body); err != nil {
					t.Fatal(err)
				}
				if resp.Header.Get("Vary") != "Accept-Encoding" {
					t.Errorf("%s: Vary %q", path, resp.Header.Get("Vary"))
				}
			}
			b, err := io.ReadAll(body)
			resp.Body.Close()
			if err != nil {
				t.Fatal(err)
			}
			bodies = append(bodies, string(b))
		}
		if bodies[0] != bodies[1] || bodies[0] != bodies[2] || len(bodies[0]) < 64<<10 {
			t.Errorf("%s: bodies of %d, %d and %d bytes", path, len(bodies[0]), len(bodies[1]), len(bodies[2]))
		}
	}
}

// discard is a response that costs nothing.
type discard struct{ header http.Header }

func (d *discard) Header() http.Header         { return d.header }
func (d *discard) Write(b []byte) (int, error) { return len(b), nil }
func (d *discard) WriteHeader(int)             {}

// benchRegistry has n instances of web.
func benchRegistry(b *testing.B, n int) *registry.Registry {
	r := newRegistry(b)
	for i := range n {
		_, err := r.Register(b.Context(), weft.Instance{
			ID: fmt.Sprintf("web-%d", i), Service: weft.NewServiceName("", "web"), Address: "10.0.0.1", Port: 8000 + i,
			Tags: []string{"blue"}, Labels: map[string]string{"version": "1"},
			Checks: []weft.Check{{ID: fmt.Sprintf("service:web-%d", i), Name: "alive", Kind: weft.TTLCheck, TTL: weft.Duration(time.Hour), Status: weft.Passing}},
		})
		if err != nil {
			b.Fatal(err)
		}
	}
	return r
}

func BenchmarkHealthService(b *testing.B) {
	for _, query := range []string{"", "?passing=1&stale=", "?passing&near=_agent"} {
		b.Run("query="+query, func(b *testing.B) {
			r := benchRegistry(b, 10)
			api := New(r, Config{})
			request := httptest.NewRequest("GET", "/v1/health/service/web"+query, nil)
			w := &discard{header: make(http.Header)}
			api.ServeHTTP(w, request)
			b.ReportAllocs()
			for b.Loop() {
				clear(w.header)
				api.ServeHTTP(w, request)
			}
		})
	}
}

// BenchmarkHealthServiceHTTP is the same over connections that are kept open, with a
// client that does as little as it can.
func BenchmarkHealthServiceHTTP(b *testing.B) {
	server := httptest.NewServer(New(benchRegistry(b, 10), Config{}))
	defer server.Close()
	for _, coding := range []string{"identity", "gzip"} {
		b.Run("coding="+coding, func(b *testing.B) { benchHTTP(b, server, coding) })
	}
}

func benchHTTP(b *testing.B, server *httptest.Server, coding string) {
	request := []byte("GET /v1/health/service/web?passing=1&stale= HTTP/1.1\r\nHost: x\r\nAccept-Encoding: " + coding + "\r\n\r\n")
	b.ReportAllocs()
	b.SetParallelism(16)
	b.RunParallel(func(pb *testing.PB) {
		conn, err := net.Dial("tcp", server.Listener.Addr().String())
		if err != nil {
			b.Error(err)
			return
		}
		defer conn.Close()
		in := bufio.NewReaderSize(conn, 64<<10)
		for pb.Next() {
			if _, err := conn.Write(request); err != nil {
				b.Error(err)
				return
			}
			if err := skipResponse(in); err != nil {
				b.Error(err)
				return
			}
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "requests/s")
}

// skipResponse reads one response with a Content-Length.
func skipResponse(in *bufio.Reader) error {
	length := 0
	for {
		line, err := in.ReadSlice('\n')
		if err != nil {
			return err
		}
		if len(line) == 2 {
			_, err := in.Discard(length)
			return err
		}
		if name, value, _ := bytes.Cut(line, []byte(": ")); string(name) == "Content-Length" {
			for _, c := range bytes.TrimSpace(value) {
				length = length*10 + int(c-'0')
			}
		}
	}
}
