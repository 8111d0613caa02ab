package control_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/control"
	"github.com/weftmesh/weft/control/controltest"
	"github.com/weftmesh/weft/control/weftpb"
	"github.com/weftmesh/weft/registry"
	"github.com/weftmesh/weft/telemetry/metric"
)

var order = weft.NewServiceName("", "order")

// have writes the receipts of a service on the test's own server, as
// "p1 has", "p1 has not", "p1 has not: reason", "p1 gone, has".
func have(t *testing.T, s *controltest.Server, index uint64) []string {
	t.Helper()
	out := []string{}
	for _, r := range s.Control.Receipts(t.Context(), order)[0].Proxies {
		text := r.ID
		if !r.Connected {
			text += " gone,"
		}
		text += " has"
		if r.Acked < index {
			text += " not"
		}
		if r.Refused != "" {
			text += ": " + r.Refused
		}
		out = append(out, text)
	}
	return out
}

func receiptsBecome(t *testing.T, s *controltest.Server, index uint64, want ...string) {
	t.Helper()
	controltest.Eventually(t, func() string {
		if got := have(t, s, index); fmt.Sprint(got) != fmt.Sprint(want) {
			return fmt.Sprintf("receipts at %d: %q, want %q", index, got, want)
		}
		return ""
	})
}

func indexOf(s *controltest.Server) uint64 {
	_, index := s.Registry.Instances(order)
	return index
}

func opened(t *testing.T, s *controltest.Server, id string) *wire {
	t.Helper()
	w := openWire(t, s, id)
	w.subscribe(weftpb.EndpointsType, "default/order")
	w.take()
	return w
}

func nack(r *discovery.DeltaDiscoveryResponse, reason string) *discovery.DeltaDiscoveryRequest {
	return &discovery.DeltaDiscoveryRequest{TypeUrl: r.GetTypeUrl(), ResponseNonce: r.GetNonce(), ErrorDetail: &rpcstatus.Status{Message: reason}}
}

func TestReceiptsTellWhoHasWhichChange(t *testing.T) {
	s := controltest.Start(t, controltest.Config{})
	s.Instance("order", "v1", 1)
	p1, p2 := opened(t, s, "p1"), opened(t, s, "p2")
	receiptsBecome(t, s, indexOf(s), "p1 has", "p2 has")
	before := indexOf(s)

	s.Instance("order", "v2", 2)
	first := indexOf(s)
	r1, r2 := p1.recv(), p2.recv()
	receiptsBecome(t, s, first, "p1 has not", "p2 has not")
	receiptsBecome(t, s, before, "p1 has", "p2 has")
	p1.ack(r1)
	receiptsBecome(t, s, first, "p1 has", "p2 has not")

	// A change behind one that is under way.
	s.Instance("order", "v3", 3)
	second := indexOf(s)
	r1 = p1.recv()
	p2.ack(r2)
	r2 = p2.recv()
	receiptsBecome(t, s, first, "p1 has", "p2 has")
	receiptsBecome(t, s, second, "p1 has not", "p2 has not")
	p1.ack(r1)
	p2.send(nack(r2, "default/order: address: it is none"))
	receiptsBecome(t, s, second, "p1 has", "p2 has not: default/order: address: it is none")
	receiptsBecome(t, s, first, "p1 has", "p2 has: default/order: address: it is none")

	// One that changes nothing for proxies is one that they have.
	if err := s.Registry.AddCheck(t.Context(), weft.InstanceKey{Node: "node-1", ID: "order-v1"}, weft.Check{ID: "more", Kind: weft.StaticCheck}); err != nil {
		t.Fatal(err)
	}
	third := indexOf(s)
	if third <= second {
		t.Fatal("the check has not moved the index")
	}
	receiptsBecome(t, s, third, "p1 has", "p2 has not: default/order: address: it is none")

	// Who refused has the next that it takes, and who is gone is remembered.
	s.Instance("order", "v4", 4)
	fourth := indexOf(s)
	p1.recv()
	p2.take()
	receiptsBecome(t, s, fourth, "p1 has not", "p2 has")
	p1.end()
	receiptsBecome(t, s, fourth, "p1 gone, has not", "p2 has")
	again := openWire(t, s, "p1")
	again.send(&discovery.DeltaDiscoveryRequest{TypeUrl: weftpb.EndpointsType, ResourceNamesSubscribe: []string{"default/order"}})
	again.take()
	receiptsBecome(t, s, fourth, "p1 has", "p2 has")
}

func TestRegistryDrainWaitsForProxies(t *testing.T) {
	s := controltest.Start(t, controltest.Config{})
	key := s.Instance("order", "v1", 1)
	s.Instance("order", "v2", 2)
	p1, p2 := opened(t, s, "p1"), opened(t, s, "p2")
	type answer struct {
		registry.DrainResult
		err error
	}
	drained := make(chan answer, 1)
	go func() {
		r, err := s.Registry.Drain(context.WithoutCancel(t.Context()), registry.DrainRequest{Key: key})
		drained <- answer{r, err}
	}()
	p1.take()
	r2 := p2.recv()
	p1.silence("a")
	select {
	case a := <-drained:
		t.Fatalf("drained before all have acknowledged: %+v", a)
	default:
	}
	p2.ack(r2)
	a := <-drained
	if want := []string{"user-service.default/p1", "user-service.default/p2"}; a.err != nil || !slices.Equal(a.Acked, want) || len(a.Waiting) > 0 {
		t.Errorf("drained: %+v", a)
	}

	// Who refuses, and who does not answer, is named.
	if err := s.Registry.EndDrain(t.Context(), key); err != nil {
		t.Fatal(err)
	}
	p1.take()
	p2.take()
	go func() {
		r, err := s.Registry.Drain(context.WithoutCancel(t.Context()), registry.DrainRequest{Key: key, Deadline: weft.Duration(300 * time.Millisecond)})
		drained <- answer{r, err}
	}()
	p1.send(nack(p1.recv(), "nonsense"))
	p2.recv()
	if a := <-drained; a.err != nil || len(a.Acked) > 0 || len(a.Waiting) != 2 {
		t.Errorf("drained in vain: %+v", a)
	}
}

// others are servers that say what a test lets them.
type others struct {
	mu      sync.Mutex
	answers map[string]control.Holding
	asked   []control.Question
}

func (o *others) Others() []string { return []string{"s2", "s3"} }

func (o *others) Holding(ctx context.Context, server string, q control.Question) (control.Holding, error) {
	o.mu.Lock()
	o.asked = append(o.asked, q)
	h, ok := o.answers[server]
	o.mu.Unlock()
	if !ok {
		return control.Holding{}, errors.New("it is away")
	}
	if h.Index < q.Index && q.Patience > 0 {
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
		}
	}
	return h, nil
}

func (o *others) says(server string, h control.Holding) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.answers[server] = h
}

func TestDrainWaitsForOtherServers(t *testing.T) {
	o := &others{answers: make(map[string]control.Holding)}
	s := controltest.Start(t, controltest.Config{Others: o})
	key := s.Instance("order", "v1", 1)
	s.Instance("order", "v2", 2)
	proxy := control.Receipt{Name: "cart.default/c1", Connected: true, Acked: 1}
	o.says("s2", control.Holding{Index: 1, Proxies: []control.Receipt{proxy}})
	r, err := s.Registry.Drain(t.Context(), registry.DrainRequest{Key: key, Deadline: weft.Duration(300 * time.Millisecond)})
	// s2 has not seen the change, and s3 says nothing.
	if want := []string{"cart.default/c1", "server s2", "server s3"}; err != nil || !slices.Equal(r.Waiting, want) {
		t.Errorf("waiting for %q (%v), want %q", r.Waiting, err, want)
	}
	o.says("s2", control.Holding{Index: r.Index, Proxies: []control.Receipt{proxy}})
	proxy.Acked = r.Index
	o.says("s3", control.Holding{Index: r.Index, Proxies: []control.Receipt{{Name: "gone", Acked: 1}}})
	done := make(chan registry.DrainResult, 1)
	go func() {
		r, _ := s.Registry.Drain(context.WithoutCancel(t.Context()), registry.DrainRequest{Key: key})
		done <- r
	}()
	o.says("s2", control.Holding{Index: r.Index, Proxies: []control.Receipt{proxy}})
	if r := <-done; len(r.Waiting) > 0 || !slices.Equal(r.Acked, []string{"cart.default/c1"}) {
		t.Errorf("when all have it: %+v", r)
	}
	list := s.Control.Receipts(t.Context(), order)
	if len(list) != 3 || list[1].Server != "s2" || len(list[1].Proxies) != 1 || list[2].Err != nil {
		t.Errorf("receipts: %+v", list)
	}
}

func TestHoldingOverTheWire(t *testing.T) {
	now := time.Now().UTC()
	want := control.Holding{Index: 7, Known: 9, Watchers: 3, Proxies: []control.Receipt{
		{Name: "order.default/o1", Identity: "spiffe://cluster.local/ns/default/sa/order", ID: "o1", Role: "sidecar", Address: "10.0.0.1:4000",
			PID: 12, Connected: true, Acked: 6, Since: now, Waiting: now.Add(time.Second), Refused: "why not"},
		{Name: "cart.shop/c1", Identity: "spiffe://cluster.local/ns/shop/sa/cart", ID: "c1", Role: "gateway", Since: now},
	}}
	if got := control.DecodeHolding(control.EncodeHolding(want)); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %+v,\nwant %+v", got, want)
	}
	q := control.Question{Service: order, Index: 7, Patience: time.Second}
	m := control.EncodeQuestion(q, "token")
	if got := control.DecodeQuestion(m); got != q || m.GetToken() != "token" {
		t.Errorf("got %+v, want %+v", got, q)
	}
}

// count is how many changes of a type were counted, and in how many seconds.
func count(m *metric.Registry, typ string) (n uint64, seconds float64) {
	for _, f := range m.Gather() {
		for _, s := range f.Samples {
			if f.Name == "weft_propagation_duration_seconds" && s.Labels[0].Value == typ {
				return s.Histogram.Count, s.Histogram.Sum
			}
		}
	}
	return 0, 0
}

func TestPropagationIsCounted(t *testing.T) {
	m := metric.New(0)
	s := controltest.Start(t, controltest.Config{Metrics: m})
	s.Instance("order", "v1", 1)
	p := opened(t, s, "p1")
	p.silence("a")
	if n, _ := count(m, "endpoints"); n != 0 {
		t.Errorf("%d changes, but it only asked", n)
	}
	s.Instance("order", "v2", 2)
	r := p.recv()
	time.Sleep(20 * time.Millisecond) //weft:sleep it is what is measured
	p.ack(r)
	p.silence("b")
	if n, seconds := count(m, "endpoints"); n != 1 || seconds < 0.02 || seconds > 5 {
		t.Errorf("%d changes took %v s", n, seconds)
	}
	s.Instance("order", "v3", 3)
	p.send(nack(p.recv(), "nonsense"))
	p.silence("c")
	if n, _ := count(m, "endpoints"); n != 1 {
		t.Errorf("%d changes, one of them was refused", n)
	}
}

// seen reports an endpoint as a proxy does.
func seen(id string, failures, successes uint32) *weftpb.ProxyReport {
	return &weftpb.ProxyReport{Endpoints: []*weftpb.EndpointSeen{{Id: id, Failures: failures, Successes: successes, Kind: "connect"}}}
}

func TestObserversDemoteTogetherOnly(t *testing.T) {
	s := controltest.Start(t, controltest.Config{})
	for i := range 3 {
		s.Instance("order", fmt.Sprintf("v%d", i+1), i+1)
	}
	const bad = "node-1/order-v1"
	observers := make([]*reporting, 3)
	for i := range observers {
		id := fmt.Sprintf("p%d", i+1)
		opened(t, s, id)
		observers[i] = openReport(t, s, "user-service", id)
	}
	healthy := func() int {
		list, _ := s.Registry.Endpoints(order)
		return len(list)
	}
	// All call the service; one lies, loudly. Who does not follow it is not heard.
	stranger := openReport(t, s, "evil-service", "p1")
	for range 5 {
		observers[1].send(seen(bad, 0, 1))
		observers[2].send(seen(bad, 0, 1))
		observers[0].send(seen(bad, 100, 0))
		stranger.send(seen(bad, 100, 0))
		stranger.send(seen("nonsense", 100, 0))
	}
	for _, r := range append(observers, stranger) { // all of it is taken in
		r.send(&weftpb.ProxyReport{Breakers: []*weftpb.Breaker{circuit("read", "open")}})
	}
	controltest.Eventually(t, func() string {
		if n := len(s.Control.Breakers("read")); n != 4 {
			return fmt.Sprintf("%d reports are read", n)
		}
		return ""
	})
	if n := healthy(); n != 3 {
		t.Fatalf("one observer has demoted: %d endpoints", n)
	}
	// A second one agrees.
	observers[1].send(seen(bad, 3, 0))
	controltest.Eventually(t, func() string {
		if n := healthy(); n != 2 {
			return fmt.Sprintf("%d endpoints, want 2", n)
		}
		return ""
	})
	in, _ := s.Registry.Instance(weft.InstanceKey{Node: "node-1", ID: "order-v1"})
	text := in.Checks[len(in.Checks)-1].Output
	if !strings.Contains(text, "user-service.default/p1") || !strings.Contains(text, "connect") {
		t.Errorf("the reason is %q", text)
	}
}
