package eureka

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/registry"
	"github.com/weftmesh/weft/store"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is a registry with the API before it, on a loopback port.
type world struct {
	*testing.T
	registry *registry.Registry
	api      *API
	server   *httptest.Server
	ahead    atomic.Int64 // by which the API's clock is ahead, in nanoseconds
}

func newWorld(t *testing.T) *world {
	t.Helper()
	st, err := store.Open(t.Context(), store.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	r, err := registry.Open(t.Context(), registry.Config{
		Store: st, Datacenter: "dc1", Node: weft.Node{Name: "server-1", Address: "127.0.0.1"},
	})
	if err != nil {
		t.Fatal(err)
	}
	a := New(r, Config{})
	w := &world{T: t, registry: r, api: a}
	a.now = func() time.Time { return time.Now().Add(time.Duration(w.ahead.Load())) }
	w.server = httptest.NewServer(a)
	t.Cleanup(func() {
		w.server.Close()
		r.Close()
		st.Close()
	})
	return w
}

// run runs Run until the test ends, or the returned function is called.
func (w *world) run() (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := w.api.Run(ctx); err != nil {
			w.Error(err)
		}
	}()
	stop = func() { cancel(); <-done }
	w.Cleanup(stop)
	return stop
}

// reply is what the API said.
type reply struct {
	*testing.T
	status int
	header http.Header
	body   string
}

// send makes a request with the path as it is written here. Nothing is unpacked that
// the test did not ask for.
func (w *world) send(method, path, body string, header ...string) reply {
	w.Helper()
	r, err := http.NewRequest(method, w.server.URL+path, strings.NewReader(body))
	if err != nil {
		w.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	client := http.Client{
		Transport:     &http.Transport{DisableCompression: true, DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	resp, err := client.Do(r)
	if err != nil {
		w.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		w.Fatal(err)
	}
	return reply{T: w.T, status: resp.StatusCode, header: resp.Header, body: string(b)}
}

func (a reply) want(status int) reply {
	a.Helper()
	if a.status != status {
		a.Fatalf("status %d, want %d: %s", a.status, status, a.body)
	}
	return a
}

var acceptJSON = []string{"Accept", "application/json"}

// getJSON returns the answer as JSON reads it.
func (w *world) getJSON(path string, v any) reply {
	w.Helper()
	a := w.send("GET", path, "", acceptJSON...).want(200)
	if err := json.Unmarshal([]byte(a.body), v); err != nil {
		w.Fatalf("%v: %s", err, a.body)
	}
	return a
}

// list is an answer of applications, as a client decodes it.
type list struct {
	Applications struct {
		Versions string    `json:"versions__delta"`
		Hash     string    `json:"apps__hashcode"`
		List     []listApp `json:"application"`
	} `json:"applications"`
}

type listApp struct {
	Name      string         `json:"name"`
	Instances []listInstance `json:"instance"`
}

type listInstance struct {
	record
	Action string `json:"actionType"`
}

func (w *world) apps() (l list) {
	w.Helper()
	w.getJSON("/eureka/apps/", &l)
	return l
}

func (w *world) delta() (l list) {
	w.Helper()
	w.getJSON("/eureka/apps/delta", &l)
	return l
}

// statuses returns what readers see, as "APP/id" -> status.
func (l list) statuses() map[string]status {
	all := make(map[string]status)
	for _, app := range l.Applications.List {
		for _, in := range app.Instances {
			all[app.Name+"/"+in.InstanceID] = in.Status
		}
	}
	return all
}

// body is a registration in JSON. more are further fields, such as `"status":"DOWN"`.
func body(app, id string, more ...string) string {
	fields := append([]string{
		`"instanceId":"` + id + `"`, `"app":"` + app + `"`, `"hostName":"host-1"`, `"ipAddr":"10.0.0.1"`,
		`"vipAddress":"` + strings.ToLower(app) + `"`, `"port":{"$":8080,"@enabled":true}`,
		`"dataCenterInfo":{"@class":"com.netflix.appinfo.InstanceInfo$DefaultDataCenterInfo","name":"MyOwn"}`,
	}, more...)
	return `{"instance":{` + strings.Join(fields, ",") + `}}`
}

func (w *world) post(app, body string) reply {
	w.Helper()
	return w.send("POST", "/eureka/apps/"+app, body, "Content-Type", "application/json")
}

func (w *world) registerHere(app, id string, more ...string) {
	w.Helper()
	w.post(app, body(app, id, more...)).want(204)
}

// registerElsewhere registers an instance as another dialect does.
func (w *world) registerElsewhere(in weft.Instance) {
	w.Helper()
	in.Service = weft.NewServiceName(in.Service.Namespace, in.Service.Name)
	if _, err := w.registry.Register(w.Context(), in); err != nil {
		w.Fatal(err)
	}
}

func (w *world) eventually(what string, holds func() bool) {
	w.Helper()
	for deadline := time.Now().Add(10 * time.Second); !holds(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			w.Fatalf("not in 10 s: %s", what)
		}
	}
}
