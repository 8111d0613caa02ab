package consul

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/registry"
)

// walk finds what connectables find by going through all that there is.
func walk(r *registry.Registry, service weft.ServiceName) (out []*weft.Instance) {
	all, _ := r.AllInstances()
	for _, in := range all {
		x := extraOf(in)
		proxy := x.Kind == connectProxy && x.Proxy != nil && x.Proxy.DestinationServiceName == service.Name
		native := in.Service.Name == service.Name && x.Connect != nil && x.Connect.Native
		if in.Service.Namespace == service.Namespace && (proxy || native) {
			out = append(out, in)
		}
	}
	return out
}

// What is found by what has changed is what would be found by looking at everything;
// and the index moves when, and only when, services have changed that it is found in.
func TestConnectablesAgainstWalk(t *testing.T) {
	r := newRegistry(t)
	random := rand.New(rand.NewPCG(3, 4))
	pick := func(list ...string) string { return list[random.IntN(len(list))] }
	register := func(id, service string, x serviceExtra) {
		in := weft.Instance{ID: id, Service: weft.NewServiceName(pick("default", "default", "other"), service), Port: random.IntN(1000) + 1}
		if err := x.carry(&in); err != nil {
			t.Fatal(err)
		}
		if _, err := r.Register(t.Context(), in); err != nil {
			t.Fatal(err)
		}
	}
	changes := []func(){
		func() {
			register("p"+pick("1", "2", "3"), pick("web-proxy", "edge", "web"),
				serviceExtra{Kind: connectProxy, Proxy: &proxyRecord{DestinationServiceName: pick("web", "db", "nowhere")}})
		},
		func() {
			register("n"+pick("1", "2"), pick("web", "db"), serviceExtra{Connect: &connectRecord{Native: true}})
		},
		func() { register("s"+pick("1", "2"), pick("web", "plain", "edge"), serviceExtra{}) },
		func() {
			register("b1", "web", serviceExtra{Kind: connectProxy, Connect: &connectRecord{Native: true}, Proxy: &proxyRecord{DestinationServiceName: pick("web", "db")}})
		},
		func() {
			id := pick("p1", "p2", "p3", "n1", "n2", "s1", "s2", "b1")
			_, _ = r.Deregister(t.Context(), weft.InstanceKey{Node: "server-1", ID: id}) // it may not be there
		},
	}
	var c connectables
	told := make(map[weft.ServiceName]uint64)
	was := make(map[weft.ServiceName][]*weft.Instance)
	for range 300 {
		for range random.IntN(3) {
			changes[random.IntN(len(changes))]()
		}
		for _, name := range []weft.ServiceName{{Namespace: "default", Name: "web"}, {Namespace: "default", Name: "db"}, {Namespace: "other", Name: "web"}, {Namespace: "default", Name: "never"}} {
			list, index, topic := c.of(r, name)
			want := walk(r, name)
			if !slices.Equal(list, want) {
				t.Fatalf("%s: found %s, want %s", name, ids(list), ids(want))
			}
			if index > topic || index < told[name] || index == told[name] && !slices.Equal(list, was[name]) {
				t.Fatalf("%s: index %d of %d with %s, after %d with %s", name, index, topic, ids(list), told[name], ids(was[name]))
			}
			told[name], was[name] = index, list
		}
	}
	if len(c.by) > 6 {
		t.Errorf("%d services are remembered as reached", len(c.by))
	}
}

func ids(list []*weft.Instance) string {
	var out []string
	for _, in := range list {
		out = append(out, in.Service.Name+"/"+in.ID)
	}
	return fmt.Sprint(out)
}

// What happens to services through which one is not reached leaves its answer as it is.
func TestConnectAnswerIsNotMadeForOthers(t *testing.T) {
	w := newWorld(t)
	a := New(w.registry, Config{}).api
	w.put("/v1/agent/service/register", `{"Name":"web-proxy","Kind":"connect-proxy","Port":1,"Proxy":{"DestinationServiceName":"web"}}`)
	web := weft.NewServiceName("", "web")
	_, before, _ := a.connectables.of(w.registry, web)
	w.put("/v1/agent/service/register", `{"Name":"other","Port":1}`)
	w.put("/v1/agent/service/register", `{"Name":"other-proxy","Kind":"connect-proxy","Port":1,"Proxy":{"DestinationServiceName":"other"}}`)
	if _, after, topic := a.connectables.of(w.registry, web); after != before || topic <= before {
		t.Errorf("index %d, before it was %d; all instances are at %d", after, before, topic)
	}
	w.put("/v1/agent/service/deregister/web-proxy", "")
	if list, after, _ := a.connectables.of(w.registry, web); len(list) != 0 || after <= before {
		t.Errorf("%d instances at index %d, before it was %d", len(list), after, before)
	}
}

// The answer of all services is the same however many of its pieces were there already.
func TestPiecesAreTheWholeAnswer(t *testing.T) {
	w := newWorld(t)
	for _, body := range []string{
		`{"Node":"far","Address":"10.0.0.9","NodeMeta":{"k":"<1>"},"Service":{"Service":"web","Port":1,"Tags":["b","a"]},"Check":{"CheckID":"n","Name":"n","Status":"critical"}}`,
		`{"Node":"far","Address":"10.0.0.9","NodeMeta":{"k":"<1>"},"Service":{"ID":"2","Service":"none","Port":1},"Check":{"CheckID":"s","Name":"<s>","ServiceID":"2"}}`,
	} {
		w.put("/v1/catalog/register", body)
	}
	for _, path := range []string{"/v1/catalog/services?node-meta=k:%3C1%3E", "/v1/catalog/services?node-meta=k:2", "/v1/health/state/any", "/v1/health/state/warning"} {
		kept, whole := w.get(path), w.get(path+sep(path)+"pretty")
		var a, b any
		if err := json.Unmarshal([]byte(kept.body), &a); err != nil {
			t.Fatalf("%s: %v in %s", path, err, kept.body)
		}
		if err := json.Unmarshal([]byte(whole.body), &b); err != nil {
			t.Fatal(err)
		}
		if canonical(t, kept.body) != canonical(t, whole.body) {
			t.Errorf("%s: pieces\n%s\nwhole\n%s", path, kept.body, whole.body)
		}
	}
}

func sep(path string) string {
	if strings.Contains(path, "?") {
		return "&"
	}
	return "?"
}

// benchCatalogue has so many services of ten instances each, and a proxy before every
// one of the first instances.
func benchCatalogue(b *testing.B, services int) *registry.Registry {
	r := newRegistry(b)
	var ops []registry.Op
	flush := func() {
		if _, err := r.Transact(b.Context(), registry.TxnRequest{Ops: ops}); err != nil {
			b.Fatal(err)
		}
		ops = nil
	}
	for s := range services {
		for i := range 10 {
			in := weft.Instance{Node: "server-1", ID: fmt.Sprintf("s%d-%d", s, i), Service: weft.NewServiceName("", fmt.Sprintf("s%d", s)), Port: i + 1, Tags: []string{"blue"}}
			ops = append(ops, registry.Op{Service: &registry.InstanceOp{Verb: "set", Instance: in}})
		}
		proxy := weft.Instance{Node: "server-1", ID: fmt.Sprintf("p%d", s), Service: weft.NewServiceName("", fmt.Sprintf("s%d-proxy", s)), Port: 1}
		x := serviceExtra{Kind: connectProxy, Proxy: &proxyRecord{DestinationServiceName: fmt.Sprintf("s%d", s)}}
		if err := x.carry(&proxy); err != nil {
			b.Fatal(err)
		}
		ops = append(ops, registry.Op{Service: &registry.InstanceOp{Verb: "set", Instance: proxy}})
		if len(ops) > 48 {
			flush()
		}
	}
	if len(ops) > 0 {
		flush()
	}
	return r
}

// BenchmarkCatalogue reads a catalogue of 500 services and 5,500 instances that does
// not change, and one where one instance changes before each read, whose cost is
// subtracted by the name of "change alone".
func BenchmarkCatalogue(b *testing.B) {
	r := benchCatalogue(b, 500)
	api := New(r, Config{})
	w := &discard{header: make(map[string][]string)}
	paths := []string{"catalog/services", "catalog/services?filter=ServicePort==3", "catalog/service/s7", "health/connect/s7", "health/checks/s7", "health/state/critical"}
	for _, path := range paths {
		request := httptest.NewRequest("GET", "/v1/"+strings.ReplaceAll(path, " ", "-"), nil)
		b.Run("same/"+path, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				clear(w.header)
				api.ServeHTTP(w, request)
			}
		})
	}
	n := 0
	change := func(b *testing.B) {
		n++
		_, err := r.Register(b.Context(), weft.Instance{ID: "s9-1", Service: weft.NewServiceName("", "s9"), Port: n%1000 + 1, Tags: []string{"blue"}})
		if err != nil {
			b.Fatal(err)
		}
	}
	for _, path := range append([]string{"change alone"}, paths...) {
		request := httptest.NewRequest("GET", "/v1/"+strings.ReplaceAll(path, " ", "-"), nil)
		b.Run("changing/"+path, func(b *testing.B) {
			for b.Loop() {
				change(b)
				if path != "change alone" {
					clear(w.header)
					api.ServeHTTP(w, request)
				}
			}
		})
	}
}
