package api

import (
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/client"
	"github.com/weftmesh/weft/control/subscribe"
)

var inventoryService = weft.NewServiceName("", "inventory-service")

func TestBreakersAsProxiesTell(t *testing.T) {
	h := openHouse(t)
	none, err := h.Breakers(t.Context(), client.BreakerQuery{})
	if err != nil || none == nil || len(none) != 0 {
		t.Errorf("before anybody tells: %#v, %v", none, err)
	}
	orders := h.join(t, subscribe.Config{ServiceAccount: "order-service"})
	since := time.Now().Add(-time.Hour).Round(time.Second)
	orders.ReportBreakers(func() []subscribe.Breaker {
		return []subscribe.Breaker{
			{Target: "inventory-service.default", Policy: "ResiliencePolicy default/p", State: "open", Since: since, Calls: 10, Failures: 6, Slow: 1, FailureRate: 60, SlowRate: 10},
			{Target: "user-service.shop", State: "closed", Since: since, FailureRate: -1, SlowRate: -1},
		}
	})
	for i, at := range []time.Time{since, time.Now()} {
		orders.BreakerChanged(subscribe.BreakerEvent{Time: at, Target: "inventory-service.default", Policy: "ResiliencePolicy default/p",
			From: "closed", To: "open", Reason: "failure rate", Calls: uint32(10 + i), Failures: 6, Slow: 1})
	}
	orders.BreakerChanged(subscribe.BreakerEvent{Time: time.Now(), Target: "user-service.shop", From: "open", To: "closed"})

	list := func(q client.BreakerQuery, want int) []client.Breaker {
		t.Helper()
		return eventually(t, func() ([]client.Breaker, bool) {
			got, err := h.Breakers(t.Context(), q)
			check(t, err)
			return got, len(got) == want
		})
	}
	got := list(client.BreakerQuery{}, 2)[0]
	if got.ProxyID == "" {
		t.Error("the proxy has no id")
	}
	got.ProxyID, got.Since = "", got.Since.Local()
	if d := cmp.Diff(client.Breaker{Target: "inventory-service.default", Policy: "ResiliencePolicy default/p", Proxy: "order-service.default", Identity: ordersID,
		State: "open", Since: since, Calls: 10, Failures: 6, Slow: 1, FailureRate: 60, SlowRate: 10}, got); d != "" {
		t.Error(d)
	}
	list(client.BreakerQuery{Service: inventoryService}, 1)
	if b := list(client.BreakerQuery{Service: weft.NewServiceName("shop", "user-service")}, 1)[0]; b.FailureRate != -1 {
		t.Errorf("%+v", b)
	}
	list(client.BreakerQuery{Service: weft.NewServiceName("", "user-service")}, 0)

	events := eventually(t, func() ([]client.BreakerEvent, bool) {
		got, err := h.BreakerEvents(t.Context(), client.BreakerQuery{Service: inventoryService})
		check(t, err)
		return got, len(got) == 2
	})
	if e := events[0]; e.From != "closed" || e.To != "open" || e.Reason != "failure rate" || e.Calls != 10 || e.Failures != 6 || e.Slow != 1 || !e.Time.Equal(since) ||
		e.Identity != ordersID || e.Proxy != "order-service.default" || e.ProxyID == "" || e.Policy != "ResiliencePolicy default/p" {
		t.Errorf("%+v", e)
	}
	recent, err := h.BreakerEvents(t.Context(), client.BreakerQuery{Since: time.Minute})
	check(t, err)
	if len(recent) != 2 || recent[0].Calls != 11 || recent[1].Target != "user-service.shop" {
		t.Errorf("of the last minute: %+v", recent)
	}
}

func TestABreakerIsHeld(t *testing.T) {
	h := openHouse(t)
	ctx := t.Context()
	h.register(t, weft.Instance{ID: "i1", Service: named("inventory-service"), Port: 3000})
	caller := h.join(t, subscribe.Config{ServiceAccount: "order-service"})
	caller.Need(ctx, "inventory-service")
	holds := func(want string) {
		t.Helper()
		eventually(t, func() (string, bool) {
			s := caller.Snapshot().Services[inventoryService]
			if s == nil {
				return "the service is gone", false
			}
			return s.Breaker, s.Breaker == want
		})
	}
	holds("")
	done, err := h.HoldBreaker(ctx, inventoryService, client.BreakerOverride{State: "forced-open", Reason: "moving its database"})
	check(t, err)
	if len(done.Resources) != 1 || done.Resources[0].Kind != "BreakerOverride" || done.Resources[0].Action != "created" {
		t.Errorf("%+v", done)
	}
	holds("forced-open")
	r, err := h.Resource(ctx, "breakeroverride", "", "inventory-service")
	check(t, err)
	if !strings.Contains(string(r.Object), "moving its database") {
		t.Errorf("kept as %s", r.Object)
	}
	_, err = h.HoldBreaker(ctx, inventoryService, client.BreakerOverride{State: "metrics-only"})
	check(t, err)
	holds("metrics-only")

	// Its instances may go while it is held, and it may be held otherwise then.
	_, err = h.registry.Deregister(ctx, weft.InstanceKey{Node: "laptop", ID: "i1"})
	check(t, err)
	_, err = h.HoldBreaker(ctx, inventoryService, client.BreakerOverride{State: "disabled"})
	check(t, err)
	h.register(t, weft.Instance{ID: "i1", Service: named("inventory-service"), Port: 3000})
	holds("disabled")

	check(t, h.ReleaseBreaker(ctx, inventoryService))
	holds("")
	err = h.ReleaseBreaker(ctx, inventoryService)
	if weft.KindOf(err) != weft.NotFound || !strings.Contains(err.Error(), "nobody holds it") {
		t.Errorf("released twice: %v", err)
	}
}

func TestABreakerOfAServiceWithoutInstancesCanBeHeldWhenAProxyKnowsIt(t *testing.T) {
	h := openHouse(t)
	orders := h.join(t, subscribe.Config{ServiceAccount: "order-service"})
	orders.ReportBreakers(func() []subscribe.Breaker {
		return []subscribe.Breaker{{Target: "inventory-service.default", State: "open"}}
	})
	eventually(t, func() (int, bool) { n := len(h.control.Breakers("")); return n, n == 1 })
	_, err := h.HoldBreaker(t.Context(), inventoryService, client.BreakerOverride{State: "forced-open"})
	check(t, err)
}

func TestABreakerIsNotHeld(t *testing.T) {
	h := openHouse(t)
	h.register(t, weft.Instance{ID: "i1", Service: named("inventory-service"), Port: 3000})
	h.register(t, weft.Instance{ID: "i2", Service: weft.ServiceName{Namespace: "shop", Name: "inventory-service"}, Port: 3000})
	h.register(t, weft.Instance{ID: "u1", Service: named("user-service"), Port: 3000})
	open := client.BreakerOverride{State: "forced-open"}
	for name, c := range map[string]struct {
		of   weft.ServiceName
		hold client.BreakerOverride
		kind weft.Kind
		says string
	}{
		"of a service with a typing mistake": {weft.NewServiceName("", "inventroy-service"), open, weft.NotFound, "did you mean inventory-service.default or inventory-service.shop?"},
		"of a service of elsewhere":          {weft.NewServiceName("shop", "user-service"), open, weft.NotFound, "did you mean user-service.default?"},
		"of a service like no other":         {weft.NewServiceName("", "x"), open, weft.NotFound, `"weft services" lists`},
		"of what is no name":                 {weft.NewServiceName("", "a.b.c"), open, weft.Invalid, "no name of a service"},
		"in a state that there is not":       {inventoryService, client.BreakerOverride{State: "closed"}, weft.Invalid, `state "closed": want forced-open`},
		"in no state":                        {inventoryService, client.BreakerOverride{}, weft.Invalid, "want forced-open, disabled or metrics-only"},
	} {
		_, err := h.HoldBreaker(t.Context(), c.of, c.hold)
		if weft.KindOf(err) != c.kind || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if list, _ := h.Resources(t.Context()); len(list) != 0 {
		t.Errorf("%d resources are applied", len(list))
	}
}

// A parameter with a typing mistake would choose everything.
func TestBreakerQueriesAreReadStrictly(t *testing.T) {
	h := openHouse(t)
	for path, want := range map[string]int{
		"/api/breakers?service=a&namespace=b":         http.StatusOK,
		"/api/breakers?service=A.b":                   http.StatusOK,
		"/api/breakers?sevice=a":                      http.StatusBadRequest,
		"/api/breakers?since=10m":                     http.StatusBadRequest,
		"/api/breakers?namespace=b":                   http.StatusBadRequest,
		"/api/breakers?service=a.b.c":                 http.StatusBadRequest,
		"/api/breakers/events?since=10m":              http.StatusOK,
		"/api/breakers/events?since=soon":             http.StatusBadRequest,
		"/api/breakers/events?since=-1m":              http.StatusBadRequest,
		"/api/breakers/events?since=10m&service=a..b": http.StatusBadRequest,
	} {
		resp, err := http.Get(h.url + path)
		check(t, err)
		check(t, resp.Body.Close())
		if resp.StatusCode != want {
			t.Errorf("%s: %d, want %d", path, resp.StatusCode, want)
		}
	}
	http.DefaultClient.CloseIdleConnections()
}

func TestAlike(t *testing.T) {
	names := []weft.ServiceName{weft.NewServiceName("", "order-service"), weft.NewServiceName("", "orders"), weft.NewServiceName("", "cart"), weft.NewServiceName("", "order-services")}
	for asked, want := range map[string][]string{
		"order-servise": {"order-service.default", "order-services.default"}, "order": {"orders.default"}, "cat": {}, "": {}, "payment": {},
	} {
		if got := alike(weft.NewServiceName("", asked), names); !slices.Equal(got, want) {
			t.Errorf("%q: %v, want %v", asked, got, want)
		}
	}
}
