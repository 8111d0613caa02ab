package consul

import (
	"fmt"
	"net/http/httptest"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/weftmesh/weft"
)

// ask sends a blocking read, and returns the channel on which its answer arrives.
func (w *world) ask(path string) <-chan answer {
	out := make(chan answer, 1)
	go func() {
		a, err := w.trySend("GET", path, "")
		if err != nil {
			a = answer{T: w.T, body: err.Error()}
		}
		out <- a
	}()
	return out
}

// waits returns when n reads wait in the registry. No other test may run meanwhile.
func (w *world) waits(n int) {
	w.Helper()
	stacks := make([]byte, 1<<20)
	eventually(w.T, "reads that wait", func() bool {
		return strings.Count(string(stacks[:runtime.Stack(stacks, true)]), "registry.(*Registry).Wait(") == n
	})
}

// changes is each kind of blocking read, with a write that changes its answer and
// one that does not.
var changes = []struct {
	path                 string
	relevant, irrelevant func(w *world)
}{
	{"/v1/health/service/web", report("web", "warn"), register("db", "2")},
	{"/v1/health/service/web", register("web", "9"), report("db", "warn")},
	{"/v1/health/service/none", register("none", "1"), register("db", "2")},
	{"/v1/health/checks/web", report("web", "warn"), report("db", "warn")},
	{"/v1/health/node/server-1", report("db", "fail"), elsewhere("a")},
	{"/v1/health/node/none", elsewhere("none"), report("db", "warn")},
	{"/v1/health/state/critical", report("web", "fail"), report("db", "warn")},
	{"/v1/health/state/any", register("new", "1"), nothing},
	{"/v1/catalog/services", register("new", "1"), report("db", "warn")},
	{"/v1/catalog/services?node-meta=rack:r1", register("new", "1"), elsewhere("a")},
	{"/v1/catalog/services?filter=ServiceName==db", register("db", "1", "tag"), register("new", "1")},
	{"/v1/catalog/service/web", register("web", "9"), register("db", "2")},
	{"/v1/catalog/nodes", elsewhere("a"), register("db", "2")},
	{"/v1/catalog/node/server-1", register("db", "2"), elsewhere("a")},
	{"/v1/catalog/node-services/server-1", register("db", "2"), elsewhere("a")},
	{"/v1/agent/services", register("db", "2"), elsewhere("a")},
	{"/v1/agent/checks", report("db", "warn"), elsewhere("a")},
}

func register(name, port string, tags ...string) func(*world) {
	return func(w *world) {
		w.Helper()
		list := ""
		if len(tags) > 0 {
			list = `"` + strings.Join(tags, `","`) + `"`
		}
		w.put("/v1/agent/service/register", `{"Name":"`+name+`","Port":`+port+`,"Tags":[`+list+`],"Check":{"TTL":"1h"}}`)
	}
}

func report(name, status string) func(*world) {
	return func(w *world) { w.Helper(); w.put("/v1/agent/check/"+status+"/service:"+name, "") }
}

func elsewhere(node string) func(*world) {
	return func(w *world) {
		w.Helper()
		w.put("/v1/catalog/register", `{"Node":"`+node+`","Address":"10.0.0.7","Service":{"Service":"far"},"Check":{"CheckID":"up","Status":"passing"}}`)
	}
}

func nothing(*world) {}

// A blocked read returns with the change that it is about, with a greater index,
// and sleeps through the others.
func TestBlockedReads(t *testing.T) {
	for _, c := range changes {
		t.Run(c.path, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			for _, name := range []string{"web", "db"} {
				register(name, "1")(w)
				report(name, "pass")(w)
			}
			before := w.get(c.path)
			sep := "?"
			if strings.Contains(c.path, "?") {
				sep = "&"
			}
			blocked := w.ask(fmt.Sprintf("%s%sindex=%d&wait=1m", c.path, sep, before.index()))
			c.irrelevant(w)
			select {
			case a := <-blocked:
				t.Fatalf("returned with index %d after %d for nothing: %s", a.index(), before.index(), a.body)
			case <-time.After(50 * time.Millisecond):
			}
			c.relevant(w)
			select {
			case a := <-blocked:
				a.want(200)
				if a.index() <= before.index() || a.body == before.body {
					t.Errorf("index %d after %d: %s", a.index(), before.index(), a.body)
				}
			case <-time.After(10 * time.Second):
				t.Fatal("not woken")
			}
		})
	}
}

// A watcher of one service is never woken by others, however busy they are.
func TestWatcherSleepsThroughChurn(t *testing.T) {
	w := newWorld(t)
	register("quiet", "1")(w)
	before := w.get("/v1/health/service/quiet")
	blocked := w.ask("/v1/health/service/quiet?wait=1m&index=" + strconv.FormatUint(before.index(), 10))
	w.waits(1)
	for i := range 300 {
		_, err := w.registry.Register(t.Context(), weft.Instance{Service: weft.NewServiceName("", "busy"), ID: "b", Port: i + 1})
		if err != nil {
			t.Fatal(err)
		}
	}
	select {
	case a := <-blocked:
		t.Fatalf("woken: %s", a.body)
	default:
	}
	register("quiet", "2")(w)
	if a := <-blocked; a.index() <= before.index() {
		t.Errorf("index %d after %d", a.index(), before.index())
	}
}

// Reads that may not block: without an index, with -1, and with one that is old.
func TestReadsThatReturnAtOnce(t *testing.T) {
	w := newWorld(t)
	register("web", "1")(w)
	register("web", "2")(w)
	for _, query := range []string{"", "?wait=1m", "?index=0&wait=1m", "?index=-1&wait=1m", "?index=1&wait=1m"} {
		select {
		case a := <-w.ask("/v1/health/service/web" + query):
			a.want(200)
		case <-time.After(10 * time.Second):
			t.Errorf("%s blocks", query)
		}
	}
}

// When the time is up, the answer is the same with its index, and no error.
func TestWaitEnds(t *testing.T) {
	w := newWorld(t)
	register("web", "1")(w)
	for _, path := range []string{"/v1/health/service/web", "/v1/catalog/service/web", "/v1/catalog/services"} {
		before := w.get(path)
		for _, index := range []uint64{before.index(), before.index() + 1000} { // the second one comes of another server's past
			start := time.Now()
			after := w.get(fmt.Sprintf("%s?wait=60ms&index=%d", path, index))
			if took := time.Since(start); took < 60*time.Millisecond {
				t.Errorf("%s: returned after %v", path, took)
			}
			if after.index() != before.index() || after.body != before.body {
				t.Errorf("%s: index %d, before %d: %s", path, after.index(), before.index(), after.body)
			}
		}
	}
}

// The time to wait is 5 minutes unless said, 10 at most, and a sixteenth more.
func TestWaitTimes(t *testing.T) {
	w := newWorld(t)
	a := w.server.Config.Handler.(*Handler).api
	for query, want := range map[string]time.Duration{
		"": 5 * time.Minute, "wait=0s": 5 * time.Minute, "wait=10s": 10 * time.Second, "wait=120000ms": 2 * time.Minute,
		"wait=10m": 10 * time.Minute, "wait=1h": 10 * time.Minute,
	} {
		q, err := a.parseQuery(httptest.NewRequest("GET", "/v1/catalog/nodes?index=7&"+query, nil), "")
		if err != nil {
			t.Fatal(err)
		}
		seen := make(map[time.Duration]bool)
		for range 20 {
			ctx, cancel := a.waiting(q)
			deadline, _ := ctx.Deadline()
			left := time.Until(deadline)
			cancel()
			if left < want-time.Second || left > want+want/16 {
				t.Errorf("%s: waits %v", query, left)
			}
			seen[left.Round(time.Millisecond)] = true
		}
		if len(seen) < 3 {
			t.Errorf("%s: no jitter: %v", query, seen)
		}
	}
}

// agent/service blocks on the content and not on an index.
func TestHashBlocking(t *testing.T) {
	w := newWorld(t)
	register("web", "1")(w)
	before := w.get("/v1/agent/service/web")
	hash := before.header.Get("X-Consul-ContentHash")
	if hash == "" || before.field("ContentHash") != hash {
		t.Fatalf("hash %q in %s", hash, before.body)
	}
	if same := w.get("/v1/agent/service/web?wait=30ms&hash=" + hash); same.header.Get("X-Consul-ContentHash") != hash {
		t.Errorf("another hash of the same: %s", same.body)
	}
	blocked := w.ask("/v1/agent/service/web?wait=1m&hash=" + hash)
	w.waits(1)
	report("web", "pass")(w) // not part of the definition
	select {
	case a := <-blocked:
		t.Fatalf("woken by a check: %s", a.body)
	case <-time.After(50 * time.Millisecond):
	}
	register("web", "2")(w)
	if a := <-blocked; a.want(200).header.Get("X-Consul-ContentHash") == hash || a.field("Port") != 2.0 {
		t.Errorf("after a change: %s", a.body)
	}
	blocked = w.ask("/v1/agent/service/web?wait=1m&hash=" + w.get("/v1/agent/service/web").header.Get("X-Consul-ContentHash"))
	w.waits(1)
	w.put("/v1/agent/service/deregister/web", "")
	(<-blocked).want(404)
	w.send("GET", "/v1/agent/service/web?wait=1m&hash="+hash, "").want(404)
}

// Blocked reads end when the server's requests are cancelled, and when the
// registry closes; with an answer, as if their time were up.
func TestBlockedReadsEndWithTheServer(t *testing.T) {
	for name, end := range map[string]func(w *world){
		"server":   func(w *world) { w.stop() },
		"registry": func(w *world) { w.registry.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			register("web", "1")(w)
			var blocked []<-chan answer
			for _, path := range []string{"/v1/health/service/web", "/v1/catalog/service/web"} {
				blocked = append(blocked, w.ask(fmt.Sprintf("%s?index=%d", path, w.get(path).index())))
			}
			blocked = append(blocked, w.ask("/v1/agent/service/web?hash="+w.get("/v1/agent/service/web").header.Get("X-Consul-ContentHash")))
			w.waits(len(blocked))
			end(w)
			for _, b := range blocked {
				select {
				case a := <-b:
					a.want(200)
				case <-time.After(10 * time.Second):
					t.Fatal("still blocked")
				}
			}
		})
	}
}
