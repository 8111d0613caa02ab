package control

import (
	"cmp"
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/control/weftpb"
)

// maxBreakerEvents is how many changes of circuits are kept, of all proxies together.
const maxBreakerEvents = 1000

// Reporter is the proxy that tells of a circuit.
type Reporter struct {
	Proxy    weft.ServiceName // of its identity
	ID       string           // as ProxyStatus has it
	Identity weft.Identity
}

// BreakerStatus is a circuit of a proxy, as the proxy told last. Times are the
// proxy's.
type BreakerStatus struct {
	Reporter
	Target      string // a service, "inventory-service.default", or a route's rule
	Policy      string // where it was asked for: "ResiliencePolicy default/inventory-service"
	State       string // "closed", "open", "half-open", "forced-open", "disabled" or "metrics-only"
	Since       time.Time
	Calls       uint32 // in its window
	Failures    uint32
	Slow        uint32
	FailureRate float64 // percent; below 0: too few calls to tell
	SlowRate    float64
}

// BreakerEvent is a change of a circuit's state.
type BreakerEvent struct {
	Reporter
	Time           time.Time
	Target, Policy string
	From, To       string // states
	Reason         string
	Calls          uint32 // in the window when it changed
	Failures       uint32
	Slow           uint32
	Lost           uint64 // changes before this one that the proxy had to drop
}

// Breakers returns the circuits of connected proxies, sorted by target, proxy, id
// and policy; those of one target when it is not "".
func (c *Control) Breakers(target string) []BreakerStatus { return c.breakers.list(target) }

// BreakerEvents returns the last changes since a time, oldest first; those of one
// target when it is not "". They outlive the connection of their proxy, but not
// this process.
func (c *Control) BreakerEvents(target string, since time.Time) []BreakerEvent {
	return c.breakers.changes(target, since)
}

// breakerBook is what proxies tell of their circuits. The zero value is ready.
type breakerBook struct {
	mu      sync.Mutex // guards what follows; nothing else is locked under it
	reports map[*breakerReport]struct{}
	events  []BreakerEvent // a ring, when it is full
	oldest  int            // in events
}

// breakerReport is one stream of a proxy. It is guarded by breakerBook.mu, but for
// what is constant.
type breakerReport struct {
	reporter Reporter  // constant
	since    time.Time // constant
	breakers map[breakerKey]BreakerStatus
}

type breakerKey struct{ target, policy string }

func (b *breakerBook) enter(of proxyKey) *breakerReport {
	r := &breakerReport{
		reporter: Reporter{Proxy: weft.ServiceName{Namespace: of.identity.Namespace(), Name: of.identity.ServiceAccount()}, ID: of.id, Identity: of.identity},
		since:    time.Now(), breakers: make(map[breakerKey]BreakerStatus),
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.reports == nil {
		b.reports = make(map[*breakerReport]struct{})
	}
	b.reports[r] = struct{}{}
	return r
}

func (b *breakerBook) leave(r *breakerReport) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.reports, r)
}

// take notes one message of a report.
func (b *breakerBook) take(r *breakerReport, m *weftpb.ProxyReport) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, gone := range m.GetRemoved() {
		delete(r.breakers, breakerKey{gone.GetTarget(), gone.GetPolicy()})
	}
	for _, v := range m.GetBreakers() {
		s := decodeBreaker(v)
		s.Reporter = r.reporter
		r.breakers[breakerKey{s.Target, s.Policy}] = s
	}
	if len(r.breakers) > weftpb.MaxBreakers {
		return status.Errorf(codes.ResourceExhausted, "more than %d circuits of one proxy", weftpb.MaxBreakers)
	}
	lost := m.GetLost()
	for _, v := range m.GetEvents() {
		e := decodeBreakerEvent(v)
		e.Reporter, e.Lost, lost = r.reporter, lost, 0
		b.keep(e)
	}
	return nil
}

func (b *breakerBook) keep(e BreakerEvent) {
	if len(b.events) < maxBreakerEvents {
		b.events = append(b.events, e)
		return
	}
	b.events[b.oldest] = e
	b.oldest = (b.oldest + 1) % maxBreakerEvents
}

func (b *breakerBook) list(target string) []BreakerStatus {
	b.mu.Lock()
	// A proxy that has just come back may have two reports: the newer counts.
	newest := make(map[Reporter]*breakerReport, len(b.reports))
	for r := range b.reports {
		if other := newest[r.reporter]; other == nil || other.since.Before(r.since) {
			newest[r.reporter] = r
		}
	}
	var out []BreakerStatus
	for _, r := range newest {
		for _, s := range r.breakers {
			if target == "" || s.Target == target {
				out = append(out, s)
			}
		}
	}
	b.mu.Unlock()
	slices.SortFunc(out, func(x, y BreakerStatus) int {
		return cmp.Or(strings.Compare(x.Target, y.Target), strings.Compare(string(x.Identity), string(y.Identity)),
			strings.Compare(x.ID, y.ID), strings.Compare(x.Policy, y.Policy))
	})
	return out
}

func (b *breakerBook) changes(target string, since time.Time) []BreakerEvent {
	b.mu.Lock()
	var out []BreakerEvent
	for i := range b.events {
		e := &b.events[(b.oldest+i)%len(b.events)]
		if !e.Time.Before(since) && (target == "" || e.Target == target) {
			out = append(out, *e)
		}
	}
	b.mu.Unlock()
	// They come in the order of each proxy, some of them late.
	slices.SortStableFunc(out, func(x, y BreakerEvent) int { return x.Time.Compare(y.Time) })
	return out
}

// shown bounds a text that a proxy sends.
func shown(s string) string {
	if len(s) > maxNameLength {
		s = strings.ToValidUTF8(s[:maxNameLength], "")
	}
	return s
}

// rate makes of what is no number "not known": JSON has no word for it.
func rate(v float64) float64 {
	if math.IsNaN(v) || math.IsInf(v, 0) {
		return -1
	}
	return v
}

func timeOf(m *timestamppb.Timestamp) time.Time {
	if m.CheckValid() != nil {
		return time.Time{}
	}
	return m.AsTime()
}

func decodeBreaker(m *weftpb.Breaker) BreakerStatus {
	return BreakerStatus{
		Target: shown(m.GetTarget()), Policy: shown(m.GetPolicy()), State: shown(m.GetState()), Since: timeOf(m.GetSince()),
		Calls: m.GetCalls(), Failures: m.GetFailures(), Slow: m.GetSlow(),
		FailureRate: rate(m.GetFailureRate()), SlowRate: rate(m.GetSlowRate()),
	}
}

func decodeBreakerEvent(m *weftpb.BreakerEvent) BreakerEvent {
	return BreakerEvent{
		Time: timeOf(m.GetTime()), Target: shown(m.GetTarget()), Policy: shown(m.GetPolicy()),
		From: shown(m.GetFrom()), To: shown(m.GetTo()), Reason: shown(m.GetReason()),
		Calls: m.GetCalls(), Failures: m.GetFailures(), Slow: m.GetSlow(),
	}
}

type reportStream = grpc.ClientStreamingServer[weftpb.ProxyReport, weftpb.ReportResponse]

// Report notes what a proxy tells of its circuits and of endpoints, until either side
// ends it. Whose word it is says the certificate.
func (w workloads) Report(rpc reportStream) error {
	c := w.control
	if err := c.begin(); err != nil {
		return rpcError(err)
	}
	defer c.work.Done()
	id, err := identityOf(rpc.Context())
	if err != nil {
		return rpcError(err)
	}
	requests := receive(c, rpc.Context(), rpc.Recv)
	m, err := nextOf(c, rpc.Context(), requests)
	if err != nil {
		return ended(err)
	}
	if m.GetProxy() == "" || len(m.GetProxy()) > maxNameLength {
		return status.Error(codes.InvalidArgument, "the first message of a report says which proxy it is of")
	}
	key := proxyKey{identity: id, id: m.GetProxy()}
	r := c.breakers.enter(key)
	defer c.breakers.leave(r)
	for err == nil {
		if err := c.breakers.take(r, m); err != nil {
			return err
		}
		c.sighted(key, m.GetEndpoints())
		m, err = nextOf(c, rpc.Context(), requests)
	}
	if err := ended(err); err != nil {
		return err
	}
	return rpc.SendAndClose(&weftpb.ReportResponse{})
}
