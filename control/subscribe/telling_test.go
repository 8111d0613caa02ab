package subscribe

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/weftmesh/weft/control/weftpb"
)

// told writes messages as "@proxy +target state -target !event (lost)".
func (t *telling) said(now []Breaker, news letter) string {
	var out []string
	for _, m := range t.next(now, news) {
		if m.GetProxy() != "" {
			out = append(out, "@"+m.GetProxy())
		}
		for _, b := range m.GetBreakers() {
			out = append(out, "+"+b.GetTarget()+" "+b.GetState())
		}
		for _, b := range m.GetRemoved() {
			out = append(out, "-"+b.GetTarget())
		}
		for _, e := range m.GetEvents() {
			out = append(out, "!"+e.GetTo())
		}
		for _, e := range m.GetEndpoints() {
			out = append(out, fmt.Sprintf("?%s %d/%d", e.GetId(), e.GetFailures(), e.GetSuccesses()))
		}
		if m.GetLost() > 0 {
			out = append(out, fmt.Sprintf("(%d)", m.GetLost()))
		}
	}
	return strings.Join(out, " ")
}

func TestOnlyWhatChangedIsTold(t *testing.T) {
	now := time.Now()
	cart := Breaker{Target: "cart", State: "closed", Since: now, Calls: 1}
	order := Breaker{Target: "order", State: "open", Since: now, Calls: 1}
	tell := telling{proxy: "p1", told: map[breakerKey]Breaker{}}
	for _, step := range []struct {
		what string
		do   func()
		news letter
		want string
	}{
		{what: "at first all", want: "@p1 +cart closed +order open"},
		{what: "nothing new", want: ""},
		{what: "figures", do: func() { cart.Calls, order.Calls = 2, 2 }, want: "+cart closed +order open"},
		{what: "another state", do: func() { cart.State = "half-open" }, want: "+cart half-open"},
		{what: "opened again at once", do: func() { order.Since = now.Add(time.Second) }, want: "+order open"},
		{what: "the same instant elsewhere", do: func() { order.Since = order.Since.UTC() }, want: ""},
		{what: "changes", news: letter{events: []BreakerEvent{{To: "x"}, {To: "y"}}, lost: 3}, want: "!x !y (3)"},
		{what: "what is seen of endpoints", news: letter{seen: []Observation{{Endpoint: "a/1", Failures: 2}, {Endpoint: "a/2", Successes: 1}}}, want: "?a/1 2/0 ?a/2 0/1"},
		{what: "a circuit that went", do: func() { cart = order }, want: "-cart"},
	} {
		if step.do != nil {
			step.do()
		}
		if got := tell.said([]Breaker{cart, order}, step.news); got != step.want {
			t.Errorf("%s: %q, want %q", step.what, got, step.want)
		}
	}
}

func TestManyCircuitsAreToldInParts(t *testing.T) {
	var all []Breaker
	for i := range weftpb.MaxBreakers + 5 {
		all = append(all, Breaker{Target: fmt.Sprint(i), State: "open"})
	}
	tell := telling{proxy: "p1", told: map[breakerKey]Breaker{}}
	n := 0
	for _, m := range tell.next(all, letter{}) {
		if len(m.GetBreakers()) > breakersAMessage {
			t.Errorf("%d in one message", len(m.GetBreakers()))
		}
		n += len(m.GetBreakers())
	}
	if n != weftpb.MaxBreakers {
		t.Errorf("%d are told", n)
	}
	if m := tell.next(all, letter{}); m != nil {
		t.Errorf("again: %d messages", len(m))
	}
}

// Whatever is told when, every event is told or counted as lost, once and in order.
func TestEveryEventIsToldOrLost(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	o := outbox{kick: make(chan struct{}, 1)}
	added, next := 0, 0
	add := func() {
		for range random.IntN(2 * maxEvents) {
			o.add(BreakerEvent{Reason: fmt.Sprint(added)})
			added++
		}
	}
	for range 60 {
		add()
		l := o.waiting()
		next += int(l.lost)
		for _, e := range l.events {
			if e.Reason != fmt.Sprint(next) {
				t.Fatalf("event %s is told, the next is %d", e.Reason, next)
			}
			next++
		}
		if next != added {
			t.Fatalf("%d were added, %d are told or lost", added, next)
		}
		if random.IntN(2) == 0 {
			add() // while the letter is under way
		}
		if random.IntN(3) == 0 { // it did not arrive
			next -= int(l.lost) + len(l.events)
			continue
		}
		o.told(l)
	}
}

func TestReasonsAreClipped(t *testing.T) {
	o := outbox{kick: make(chan struct{}, 1)}
	o.add(BreakerEvent{Reason: strings.Repeat("ü", 1000)})
	if got := o.waiting().events[0].Reason; len(got) > maxReason+len("…") || !strings.HasSuffix(got, "ü…") {
		t.Errorf("%d bytes: %q", len(got), got)
	}
}

// logged is what a client says of its report.
type logged struct {
	slog.Handler
	waits chan time.Duration
}

func (l logged) Enabled(context.Context, slog.Level) bool { return true }

func (l logged) Handle(_ context.Context, r slog.Record) error {
	r.Attrs(func(a slog.Attr) bool {
		if a.Key == "again" {
			l.waits <- a.Value.Duration()
		}
		return true
	})
	return nil
}

func TestAnOldServerIsLeftInPeace(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	old := grpc.NewServer()
	weftpb.RegisterWorkloadServer(old, weftpb.UnimplementedWorkloadServer{})
	var serving sync.WaitGroup
	serving.Go(func() { old.Serve(ln) })
	defer serving.Wait()
	defer old.Stop()
	c := &Client{breakers: outbox{kick: make(chan struct{}, 1)}}
	c.ctx, c.cancel = context.WithCancel(t.Context())
	said := logged{slog.DiscardHandler, make(chan time.Duration, 10)}
	c.log = slog.New(said)
	if c.conn, err = grpc.NewClient("passthrough:///"+ln.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials())); err != nil {
		t.Fatal(err)
	}
	c.ReportBreakers(func() []Breaker { return []Breaker{{Target: "cart", State: "open"}} })
	if wait := <-said.waits; wait < oldServerPause/2 {
		t.Errorf("it asks again after %v", wait)
	}
	c.cancel()
	c.work.Wait()
	c.conn.Close()
}
