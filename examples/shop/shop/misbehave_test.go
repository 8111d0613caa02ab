package shop

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// somePath of each service, which reads.
var somePath = map[string]string{
	"user-service": "/users/7", "order-service": "/api/orders", "inventory-service": "/api/inventory/42",
	"recommendation-service": "/recommendations/7", "payment-service": "/payments/3",
}

func TestEachServiceMisbehavesOnDemand(t *testing.T) {
	for _, name := range Names() {
		base, _ := started(t, name, Env{})
		codes := func(n int) (out []int) {
			for range n {
				out = append(out, ask(t, "GET", base+somePath[name], "").code)
			}
			return out
		}
		if a := ask(t, "POST", base+"/admin/misbehave?status=503&rate=0.5", ""); a.code != 200 {
			t.Fatalf("%s: %d %s", name, a.code, a.body)
		}
		if got := codes(6); !slices.Equal(got, []int{200, 503, 200, 503, 200, 503}) {
			t.Errorf("%s at a rate of a half: %v", name, got)
		}
		if a := ask(t, "GET", base+"/health", ""); a.code != 200 {
			t.Errorf("%s: health while misbehaving: %d", name, a.code)
		}
		ask(t, "POST", base+"/admin/misbehave", "")
		if got := codes(3); !slices.Equal(got, []int{500, 500, 500}) {
			t.Errorf("%s by default: %v", name, got)
		}
		if a := ask(t, "DELETE", base+"/admin/misbehave", ""); a.code != 200 {
			t.Errorf("%s: %d %s", name, a.code, a.body)
		}
		if got := codes(3); !slices.Equal(got, []int{200, 200, 200}) {
			t.Errorf("%s healed: %v", name, got)
		}
	}
}

func TestMisbehaviourIsChecked(t *testing.T) {
	base, _ := started(t, "payment-service", Env{})
	for _, bad := range []string{
		"status=200", "status=600", "status=x", "rate=0", "rate=2", "rate=NaN", "rate=x",
		"delay=0s", "delay=-1s", "delay=21s", "delay=5", "delay=1s&status=200", "delay=1s&rate=0",
	} {
		if a := ask(t, "POST", base+"/admin/misbehave?"+bad, ""); a.code != 400 || !strings.Contains(a.body, "delay") {
			t.Errorf("%s: %d %s", bad, a.code, a.body)
		}
	}
	if a := ask(t, "GET", base+"/payments/3", ""); a.code != 200 {
		t.Errorf("what was refused has an effect: %d", a.code)
	}
}

func TestASlowInstanceAnswersLateAndWell(t *testing.T) {
	base, _ := started(t, "payment-service", Env{})
	const delay = 50 * time.Millisecond
	for query, want := range map[string]int{"delay=50ms": 200, "delay=50ms&status=503": 503} {
		if a := ask(t, "POST", base+"/admin/misbehave?"+query, ""); a.code != 200 || !strings.Contains(a.body, "50ms") {
			t.Fatalf("%s: %d %s", query, a.code, a.body)
		}
		began := time.Now()
		if a := ask(t, "GET", base+"/payments/3", ""); a.code != want || time.Since(began) < delay {
			t.Errorf("%s: %d after %v", query, a.code, time.Since(began))
		}
		if a := ask(t, "GET", base+"/health", ""); a.code != 200 {
			t.Errorf("%s: health %d", query, a.code)
		}
	}
}

// An order waits for its slowest part.
func TestAnOrderWaitsForASlowPart(t *testing.T) {
	const delay = 50 * time.Millisecond
	for _, slow := range []string{"user-service", "inventory-service", "payment-service"} {
		upstreams := map[string]string{}
		for name := range allOf("") {
			upstreams[name], _ = started(t, name, Env{})
		}
		ask(t, "POST", upstreams[slow]+"/admin/misbehave?delay="+delay.String(), "")
		orders, _ := started(t, "order-service", Env{Upstreams: upstreams})
		began := time.Now()
		a := ask(t, "GET", orders+"/api/orders/1", "")
		if took := time.Since(began); a.code != 200 || took < delay {
			t.Errorf("slow %s: %d after %v", slow, a.code, took)
		}
	}
}

// All parts of an order are asked before one has answered.
func TestPartsAreAskedAtTheSameTime(t *testing.T) {
	var asked sync.WaitGroup
	asked.Add(len(allOf("")))
	peer := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Done()
		asked.Wait()
		fmt.Fprint(w, "{}")
	}))
	defer peer.Close()
	orders, _ := started(t, "order-service", Env{Upstreams: allOf(peer.URL)})
	if a := ask(t, "GET", orders+"/api/orders/1", ""); a.code != 200 {
		t.Errorf("%d %s", a.code, a.body)
	}
}

// Neither a caller that goes nor a service that stops waits for a delay's end.
func TestDelaysEndEarly(t *testing.T) {
	base, stop := started(t, "payment-service", Env{})
	ask(t, "POST", base+"/admin/misbehave?delay="+longestDelay.String(), "")
	impatient := &http.Client{Transport: web.Transport, Timeout: 50 * time.Millisecond}
	if _, err := impatient.Get(base + "/payments/1"); err == nil {
		t.Error("answered at once")
	}
	sent, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		trace := &httptrace.ClientTrace{WroteRequest: func(httptrace.WroteRequestInfo) { close(sent) }}
		req, _ := http.NewRequestWithContext(httptrace.WithClientTrace(t.Context(), trace), "GET", base+"/payments/2", nil)
		if resp, err := web.Do(req); err == nil {
			resp.Body.Close()
		}
	}()
	<-sent
	if err := stop(); err != nil {
		t.Errorf("stopped with %v", err)
	}
	<-ended
}
