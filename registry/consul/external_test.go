package consul

import (
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// until polls a check of a node until it has a status.
func (w *world) until(node, check, status string) {
	w.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for {
		a := w.get("/v1/health/node/" + node + "?filter=CheckID==%22" + check + "%22")
		if a.field("0.Status") == status {
			return
		}
		if time.Now().After(deadline) {
			w.Fatalf("check %s of node %s is not %s: %s", check, node, status, a.body)
		}
		w.get("/v1/health/node/" + node + "?index=" + itoa(a.index()) + "&wait=100ms")
	}
}

// The server makes the checks of nodes that say that they are external, as consul-esm
// does for Consul.
func TestExternalServicesAreProbed(t *testing.T) {
	w := newWorld(t)
	var ill atomic.Bool
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if ill.Load() || r.Method != "PUT" || r.Header.Get("X-Probe") != "yes" {
			http.Error(w, "closed for today", http.StatusServiceUnavailable)
		}
	}))
	defer backend.Close()
	door, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { door.Close() }()
	address := door.Addr().String()

	register := strings.NewReplacer("URL", backend.URL+"/health", "DOOR", address).Replace(`{"Node":"bank","Address":"192.0.2.7","NodeMeta":{"external-node":"true"},
		"Service":{"ID":"pay-1","Service":"pay","Port":443},
		"Checks":[
		{"CheckID":"pay:http","Name":"HTTP","Status":"critical","ServiceID":"pay-1","Definition":{"HTTP":"URL","Method":"PUT","Header":{"X-Probe":["yes"]},"Interval":"20ms","Timeout":"5s"}},
		{"CheckID":"bank:tcp","Name":"TCP","Status":"critical","Definition":{"TCP":"DOOR","Interval":"20ms","Timeout":"5s"}},
		{"CheckID":"told","Name":"told","Status":"passing"}]}`)
	w.put("/v1/catalog/register", register)
	w.until("bank", "pay:http", "passing")
	w.until("bank", "bank:tcp", "passing")
	a := w.get("/v1/health/checks/pay")
	if a.field("0.Type") != "http" || a.field("0.Definition.HTTP") != backend.URL+"/health" || a.field("0.Definition.Interval") != "20ms" {
		t.Errorf("the check as clients see it: %s", a.body)
	}
	if got := w.get("/v1/health/service/pay?passing").ids(); got != "pay-1" {
		t.Errorf("passing: %q", got)
	}

	ill.Store(true)
	w.until("bank", "pay:http", "critical")
	if a := w.get("/v1/health/checks/pay"); !strings.Contains(a.body, "closed for today") {
		t.Errorf("the output does not say why: %s", a.body)
	}
	// Who registers it again, as programs that follow a list of such services do, or
	// says in a transaction how it is checked, does not decide how it is.
	w.put("/v1/catalog/register", strings.ReplaceAll(register, `"critical"`, `"passing"`))
	if a := w.get("/v1/health/checks/pay"); a.field("0.Status") != "critical" {
		t.Errorf("registered again: %s", a.body)
	}
	w.put("/v1/txn", `[{"Check":{"Verb":"set","Check":{"Node":"bank","CheckID":"pay:http","Name":"HTTP","Status":"passing","ServiceID":"pay-1",
		"Definition":{"HTTP":"`+backend.URL+`/health","Method":"PUT","Header":{"X-Probe":["yes"]},"Interval":"20ms","Timeout":"5s"}}}}]`)
	w.until("bank", "pay:http", "critical")
	ill.Store(false)
	w.until("bank", "pay:http", "passing")

	// A check of the node counts for all that is on it.
	door.Close()
	w.until("bank", "bank:tcp", "critical")
	if got := w.get("/v1/health/service/pay?passing").ids(); got != "" {
		t.Errorf("passing on a node that fails: %q", got)
	}
	door, err = net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	w.until("bank", "bank:tcp", "passing")

	// What is gone is not asked any more.
	w.put("/v1/catalog/deregister", `{"Node":"bank"}`)
	if a := w.get("/v1/health/service/pay"); a.ids() != "" {
		t.Errorf("after it was deregistered: %s", a.body)
	}
}

// Others make the checks of what they register in the catalogue, or nobody.
func TestDefinitionsOfOthersAreNotProbed(t *testing.T) {
	w := newWorld(t)
	var uninvited atomic.Int64
	backend := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/probed" {
			uninvited.Add(1)
		}
	}))
	defer backend.Close()
	body := `{"Node":"NODE","Address":"192.0.2.7","NodeMeta":{META},"Service":{"ID":"WHO","Service":"pay"},
		"Check":{"CheckID":"NODE:http","Status":"critical","ServiceID":"WHO","Definition":{"HTTP":"` + backend.URL + `","Interval":"10ms"}}}`
	w.put("/v1/catalog/register", strings.NewReplacer("NODE", "plain", "META", "", "WHO", "pay-1").Replace(body))
	w.put("/v1/catalog/register", strings.NewReplacer("NODE", "esm", "META", `"external-node":"false"`, "WHO", "pay-2").Replace(body))
	// One that is probed shows when they would have been.
	w.put("/v1/catalog/register", strings.NewReplacer("NODE", "bank", "META", `"external-node":"true"`, "WHO", "pay-3").Replace(
		strings.Replace(body, backend.URL, backend.URL+"/probed", 1)))
	w.until("bank", "bank:http", "passing")
	for _, node := range []string{"plain", "esm"} {
		if a := w.get("/v1/health/node/" + node); a.field("0.Status") != "critical" || a.field("0.Definition.HTTP") != backend.URL {
			t.Errorf("%s: %s", node, a.body)
		}
	}
	if n := uninvited.Load(); n > 0 {
		t.Errorf("they were asked %d times", n)
	}
}
