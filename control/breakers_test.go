package control_test

import (
	"context"
	"fmt"
	"math"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/control"
	"github.com/weftmesh/weft/control/controltest"
	"github.com/weftmesh/weft/control/weftpb"
)

// reporting is a Report stream of a proxy.
type reporting struct {
	t      *testing.T
	stream grpc.ClientStreamingClient[weftpb.ProxyReport, weftpb.ReportResponse]
	end    context.CancelFunc
}

func openReport(t *testing.T, s *controltest.Server, serviceAccount, id string) *reporting {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	stream, err := weftpb.NewWorkloadClient(dial(t, s, serviceAccount)).Report(ctx)
	if err != nil {
		t.Fatal(err)
	}
	r := &reporting{t, stream, cancel}
	r.send(&weftpb.ProxyReport{Proxy: id})
	return r
}

func (r *reporting) send(m *weftpb.ProxyReport) {
	r.t.Helper()
	if err := r.stream.Send(m); err != nil {
		r.t.Fatal(err)
	}
}

func circuit(target, state string) *weftpb.Breaker {
	return &weftpb.Breaker{Target: target, Policy: "ResiliencePolicy default/p", State: state, Since: timestamppb.Now()}
}

// breakersBecome waits until the circuits are "target proxy/id state", one after
// the other.
func breakersBecome(t *testing.T, s *controltest.Server, target string, want ...string) {
	t.Helper()
	controltest.Eventually(t, func() string {
		got := []string{}
		for _, b := range s.Control.Breakers(target) {
			got = append(got, fmt.Sprintf("%s %s/%s %s", b.Target, b.Proxy, b.ID, b.State))
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			return fmt.Sprintf("circuits %v, want %v", got, want)
		}
		return ""
	})
}

func TestBreakersOfConnectedProxies(t *testing.T) {
	s := controltest.Start(t, controltest.Config{})
	user := openReport(t, s, "user-service", "u1")
	user.send(&weftpb.ProxyReport{Breakers: []*weftpb.Breaker{circuit("order.default", "closed"), circuit("cart.default", "open")}})
	order := openReport(t, s, "order-service", "o1")
	order.send(&weftpb.ProxyReport{Breakers: []*weftpb.Breaker{circuit("cart.default", "closed")}})
	breakersBecome(t, s, "", "cart.default order-service.default/o1 closed", "cart.default user-service.default/u1 open", "order.default user-service.default/u1 closed")
	breakersBecome(t, s, "order.default", "order.default user-service.default/u1 closed")

	user.send(&weftpb.ProxyReport{Breakers: []*weftpb.Breaker{circuit("cart.default", "half-open")}, Removed: []*weftpb.Breaker{circuit("order.default", "")}})
	breakersBecome(t, s, "", "cart.default order-service.default/o1 closed", "cart.default user-service.default/u1 half-open")

	// A proxy that has come back while its old stream is not noticed to be broken.
	again := openReport(t, s, "user-service", "u1")
	again.send(&weftpb.ProxyReport{Breakers: []*weftpb.Breaker{circuit("cart.default", "open")}})
	breakersBecome(t, s, "", "cart.default order-service.default/o1 closed", "cart.default user-service.default/u1 open")
	user.end()
	order.end()
	breakersBecome(t, s, "", "cart.default user-service.default/u1 open")
	if _, err := again.stream.CloseAndRecv(); err != nil {
		t.Errorf("a report that ends politely: %v", err)
	}
	breakersBecome(t, s, "")
}

// What a proxy says of itself is its id among the processes of its identity; whose
// circuits they are says its certificate.
func TestAProxyReportsAsItself(t *testing.T) {
	s := controltest.Start(t, controltest.Config{})
	user := openReport(t, s, "user-service", "p1")
	user.send(&weftpb.ProxyReport{Breakers: []*weftpb.Breaker{circuit("cart.default", "open")}})
	evil := openReport(t, s, "evil-service", "p1")
	evil.send(&weftpb.ProxyReport{Breakers: []*weftpb.Breaker{circuit("cart.default", "closed")}, Events: []*weftpb.BreakerEvent{{Target: "cart.default", To: "closed", Time: timestamppb.Now()}}})
	breakersBecome(t, s, "", "cart.default evil-service.default/p1 closed", "cart.default user-service.default/p1 open")
	for _, e := range s.Control.BreakerEvents("", time.Time{}) {
		if e.Identity != weft.NewIdentity(s.CA.TrustDomain(), "default", "evil-service") {
			t.Errorf("an event of %s", e.Identity)
		}
	}
	evil.end()
	breakersBecome(t, s, "", "cart.default user-service.default/p1 open")
}

func TestBreakerEventsAreBoundedAndInOrder(t *testing.T) {
	s := controltest.Start(t, controltest.Config{})
	r := openReport(t, s, "user-service", "u1")
	start := time.Now().Truncate(time.Second)
	const sent, kept = 1500, 1000
	for i := range sent {
		target := "cart.default"
		if i%2 == 1 {
			target = "order.default"
		}
		e := &weftpb.BreakerEvent{Target: target, From: "closed", To: "open", Reason: fmt.Sprint(i), Time: timestamppb.New(start.Add(time.Duration(i) * time.Second)), Calls: 10, Failures: 7, Slow: 1}
		r.send(&weftpb.ProxyReport{Events: []*weftpb.BreakerEvent{e}, Lost: uint64(i % 3)})
	}
	var all []control.BreakerEvent
	controltest.Eventually(t, func() string {
		all = s.Control.BreakerEvents("", time.Time{})
		if len(all) != kept || all[kept-1].Reason != fmt.Sprint(sent-1) {
			return fmt.Sprintf("%d events are kept", len(all))
		}
		return ""
	})
	for i, e := range all {
		n := sent - kept + i
		if e.Reason != fmt.Sprint(n) || e.Lost != uint64(n%3) || e.ID != "u1" || e.Calls != 10 || e.Failures != 7 || e.Slow != 1 || e.From != "closed" || e.To != "open" {
			t.Fatalf("event %d: %+v", n, e)
		}
	}
	if got := s.Control.BreakerEvents("order.default", start.Add(1490*time.Second)); len(got) != 5 || got[0].Reason != "1491" {
		t.Errorf("those of order since the 1490th: %+v", got)
	}
	r.end()
	breakersBecome(t, s, "")
	if got := len(s.Control.BreakerEvents("", time.Time{})); got != kept {
		t.Errorf("%d events are left when their proxy has gone", got)
	}
}

func TestEventsThatComeLateAreSortedIn(t *testing.T) {
	s := controltest.Start(t, controltest.Config{})
	start := time.Now()
	for i, id := range []string{"late", "early"} {
		r := openReport(t, s, "user-service", id)
		r.send(&weftpb.ProxyReport{Events: []*weftpb.BreakerEvent{{Target: "cart.default", Time: timestamppb.New(start.Add(time.Duration(-i) * time.Minute))}}})
		controltest.Eventually(t, func() string {
			if got := len(s.Control.BreakerEvents("", time.Time{})); got != i+1 {
				return fmt.Sprintf("%d events", got)
			}
			return ""
		})
	}
	if got := s.Control.BreakerEvents("", time.Time{}); got[0].ID != "early" || got[1].ID != "late" {
		t.Errorf("%s before %s", got[0].ID, got[1].ID)
	}
}

func TestReportsAreBounded(t *testing.T) {
	s := controltest.Start(t, controltest.Config{})
	ending := func(r *reporting) codes.Code {
		return status.Code(r.stream.RecvMsg(new(weftpb.ReportResponse)))
	}
	if code := ending(openReport(t, s, "user-service", "")); code != codes.InvalidArgument {
		t.Errorf("a proxy without an id: %v", code)
	}
	r := openReport(t, s, "user-service", "u1")
	for i := 0; i <= weftpb.MaxBreakers; i += 100 {
		m := &weftpb.ProxyReport{}
		for j := range 100 {
			m.Breakers = append(m.Breakers, circuit(fmt.Sprint("s", i+j), "open"))
		}
		if r.stream.Send(m) != nil {
			break
		}
	}
	if code := ending(r); code != codes.ResourceExhausted {
		t.Errorf("more circuits than a proxy may have: %v", code)
	}
	breakersBecome(t, s, "")

	// What is no number, no time, or longer than any name, does not spoil the answer.
	odd := circuit("cart.default", "open")
	odd.FailureRate, odd.SlowRate, odd.Since = math.NaN(), math.Inf(1), &timestamppb.Timestamp{Seconds: math.MaxInt64}
	for len(odd.Policy) < 5000 {
		odd.Policy += "ü"
	}
	r = openReport(t, s, "user-service", "u2")
	r.send(&weftpb.ProxyReport{Breakers: []*weftpb.Breaker{odd}})
	breakersBecome(t, s, "", "cart.default user-service.default/u2 open")
	if b := s.Control.Breakers("")[0]; b.FailureRate != -1 || b.SlowRate != -1 || !b.Since.IsZero() || len(b.Policy) > 512 {
		t.Errorf("%+v", b)
	}
}

func TestReportNeedsACertificate(t *testing.T) {
	s := controltest.Start(t, controltest.Config{})
	stream, err := weftpb.NewWorkloadClient(stranger(t, s)).Report(t.Context())
	if err == nil {
		err = stream.RecvMsg(new(weftpb.ReportResponse))
	}
	if status.Code(err) != codes.PermissionDenied {
		t.Errorf("without a certificate: %v", err)
	}
}
