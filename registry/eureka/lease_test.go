package eureka

import (
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/weftmesh/weft"
)

func TestPreserves(t *testing.T) {
	for _, c := range []struct {
		lapsed, leases int
		want           bool
	}{
		{0, 0, false}, {1, 1, false}, {1, 2, false}, {2, 2, true}, {2, 3, true},
		{2, 13, true}, {2, 14, false}, {15, 100, false}, {16, 100, true},
	} {
		if got := preserves(c.lapsed, c.leases); got != c.want {
			t.Errorf("%d of %d: %t", c.lapsed, c.leases, got)
		}
	}
}

const oneSecond = `"leaseInfo":{"renewalIntervalInSecs":1,"durationInSecs":1}`

// A lease that is not renewed ends when the client said, and not later; alone it is
// no reason for doubt.
func TestLeaseLapses(t *testing.T) {
	w := newWorld(t)
	w.api.pause, w.api.patience = 10*time.Millisecond, 50*time.Millisecond
	begin := time.Now()
	w.registerHere("A", "short", oneSecond)
	w.registerHere("A", "long")
	w.eventually("the short lease lapses", func() bool { return w.apps().statuses()["A/short"] == "" })
	if took := time.Since(begin); took < time.Second {
		t.Errorf("it lapsed after %s, although it was for a second", took)
	}
	if l := w.apps(); l.Applications.Hash != "UP_1_" {
		t.Errorf("hash %q", l.Applications.Hash)
	}
	w.send("GET", "/eureka/apps/A/short", "").want(404)

	// A renewal that comes late is a renewal.
	w.send("PUT", "/eureka/apps/A/short", "").want(200)
	if got := w.apps().statuses()["A/short"]; got != up {
		t.Errorf("renewed: %q", got)
	}

	w.run()
	key := weft.InstanceKey{Node: nodeName, ID: "short"}
	w.eventually("Run deregisters it", func() bool { in, _ := w.registry.Instance(key); return in == nil })
	w.send("PUT", "/eureka/apps/A/short", "").want(404)
	if got, want := w.apps().statuses(), (map[string]status{"A/long": up}); !maps.Equal(got, want) {
		t.Errorf("left: %v", got)
	}
}

// The status that an instance gives itself has nothing to do with its lease.
func TestLeaseOfOneThatIsDown(t *testing.T) {
	w := newWorld(t)
	w.registerHere("A", "starting", oneSecond, `"status":"STARTING"`)
	if got := w.apps().statuses()["A/starting"]; got != starting {
		t.Errorf("it is %q", got)
	}
	w.eventually("its lease lapses all the same", func() bool { return len(w.apps().statuses()) == 0 })
}

func TestSelfPreservation(t *testing.T) {
	w := newWorld(t)
	w.api.pause, w.api.patience = 10*time.Millisecond, 300*time.Millisecond
	for i := range 4 {
		more := []string{}
		if i < 3 {
			more = append(more, oneSecond)
		}
		w.registerHere("BIG", fmt.Sprint("b-", i), more...)
	}
	w.registerHere("SMALL", "s-1", oneSecond)
	w.run()
	w.eventually("three leases of BIG lapse", func() bool {
		a := w.api.view.current().app("BIG")
		return a != nil && a.lapsed == 3
	})
	w.eventually("SMALL, which is no part of it, goes", func() bool { return w.apps().statuses()["SMALL/s-1"] == "" })
	want := map[string]status{"BIG/b-0": up, "BIG/b-1": up, "BIG/b-2": up, "BIG/b-3": up}
	if got := w.apps().statuses(); !maps.Equal(got, want) {
		t.Errorf("readers see %v, want %v", got, want)
	}
	for _, path := range []string{"/eureka/apps", "/eureka/apps/BIG"} {
		if got := w.send("GET", path, "").header.Get("X-Weft-Preserved"); !strings.HasPrefix(got, "BIG: 3 of 4 leases have lapsed") {
			t.Errorf("%s: header %q", path, got)
		}
	}
	var s statusAnswer
	w.getJSON("/eureka/status", &s)
	if !s.Applications.SelfPreservation || len(s.Preserved) != 1 || s.Preserved[0].Name != "BIG" || len(s.Preserved[0].Instances) != 3 {
		t.Errorf("status: %+v", s)
	}
	w.send("GET", "/eureka/status", "").want(200)
	endpoints, _ := w.registry.Endpoints(serviceOf("big"))
	if len(endpoints) != 1 {
		t.Errorf("endpoints: %v, want only the one that has not lapsed", endpoints)
	}

	// One comes back, and so on: when few enough are left, they go.
	w.send("PUT", "/eureka/apps/BIG/b-0", "").want(200)
	w.send("DELETE", "/eureka/apps/BIG/b-1", "").want(200)
	w.eventually("the rest is no longer kept", func() bool {
		for range 3 {
			w.send("PUT", "/eureka/apps/BIG/b-0", "")
		}
		return w.apps().statuses()["BIG/b-2"] == ""
	})
	if got := w.send("GET", "/eureka/apps", "").header.Get("X-Weft-Preserved"); got != "" {
		t.Errorf("header %q", got)
	}
}

// What the registry guards, Eureka's readers see as it was, with the reason.
func TestGuard(t *testing.T) {
	w := newWorld(t)
	for i := range 3 {
		w.registerElsewhere(weft.Instance{ID: fmt.Sprint("w-", i), Service: weft.ServiceName{Name: "web"}, Port: 80,
			Checks: []weft.Check{{Kind: weft.TTLCheck, TTL: weft.Duration(time.Hour), Status: weft.Passing}}})
	}
	for i := range 3 {
		if err := w.registry.Report(t.Context(), "", fmt.Sprint("service:w-", i), weft.Critical, "no route"); err != nil {
			t.Fatal(err)
		}
	}
	service := weft.NewServiceName("", "web")
	if _, guarded := w.registry.Guard(service); !guarded {
		t.Fatal("the registry does not guard it")
	}
	if l := w.apps(); l.Applications.Hash != "UP_3_" {
		t.Errorf("guarded: %s", l.Applications.Hash)
	}
	for _, path := range []string{"/eureka/apps", "/eureka/v2/apps", "/eureka/apps/delta", "/eureka/apps/WEB", "/eureka/apps/WEB/server-1:w-0", "/eureka/instances/server-1:w-0", "/eureka/vips/web"} {
		if got := w.send("GET", path, "").want(200).header.Get("X-Weft-Preserved"); !strings.HasPrefix(got, "WEB: 3 of 3 instances failed") {
			t.Errorf("%s: header %q", path, got)
		}
	}
	var s statusAnswer
	w.getJSON("/eureka/status", &s)
	if len(s.Preserved) != 1 || len(s.Preserved[0].Instances) != 3 {
		t.Errorf("status: %+v", s)
	}
	if _, err := w.registry.ReleaseGuard(t.Context(), service); err != nil {
		t.Fatal(err)
	}
	if l := w.apps(); l.Applications.Hash != "DOWN_3_" {
		t.Errorf("released: %s", l.Applications.Hash)
	}
	for _, path := range []string{"/eureka/apps/delta", "/eureka/apps/WEB/server-1:w-0", "/eureka/vips/web"} {
		if got := w.send("GET", path, "").want(200).header.Get("X-Weft-Preserved"); got != "" {
			t.Errorf("%s after the release: header %q", path, got)
		}
	}
	if d := w.delta(); d.Applications.Hash != "DOWN_3_" || len(d.Applications.List) != 1 || d.Applications.List[0].Instances[0].Action != modified {
		t.Errorf("delta: %+v", d)
	}
}

// Instances that take themselves out of service did not fail: nobody keeps traffic
// going to them.
func TestOutOfServiceIsNoFailure(t *testing.T) {
	w := newWorld(t)
	for i := range 4 {
		w.registerHere("A", fmt.Sprint("a-", i))
	}
	for i := range 4 {
		w.registerHere("A", fmt.Sprint("a-", i), `"status":"OUT_OF_SERVICE"`)
	}
	if endpoints, _ := w.registry.Endpoints(serviceOf("a")); len(endpoints) != 0 {
		t.Errorf("endpoints: %v", endpoints)
	}
	w.registerHere("A", "a-0")
	if endpoints, _ := w.registry.Endpoints(serviceOf("a")); len(endpoints) != 1 {
		t.Errorf("endpoints after one is UP again: %v", endpoints)
	}
}
