package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/store"
)

// fleet is some servers over one store, and what lets one of them lead at a time.
type fleet struct {
	*testing.T
	store   *store.Store
	servers []*Registry
	seats   []*seat
	line    *line
}

// seat is what a server knows of who leads.
type seat struct {
	mu    sync.Mutex
	leads bool
	moved chan struct{}
}

func (s *seat) IsLeader() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.leads
}

func (s *seat) LeaderChanged() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.moved
}

func (s *seat) set(leads bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.leads = leads
	close(s.moved)
	s.moved = make(chan struct{})
}

// newFleet starts servers, of which the first leads. No fault is on yet.
func newFleet(t *testing.T, n int) *fleet {
	t.Helper()
	s, err := store.Open(t.Context(), store.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	f := &fleet{T: t, store: s}
	f.line = &line{fleet: f, faults: make(map[fault]int)}
	ctx, cancel := context.WithCancel(context.Background())
	f.line.ctx = ctx
	t.Cleanup(func() {
		cancel()
		f.line.late.Wait()
		for _, r := range f.servers {
			if err := r.Close(); err != nil {
				t.Error(err)
			}
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	for i := range n {
		f.seats = append(f.seats, &seat{leads: i == 0, moved: make(chan struct{})})
		r, err := open(t.Context(), Config{
			Store: s, Peers: f.line, Logger: slog.New(slog.DiscardHandler),
			Node: weft.Node{Name: fmt.Sprintf("server-%d", i), Address: "127.0.0.1"},
		}, f.seats[i])
		if err != nil {
			t.Fatal(err)
		}
		f.line.mu.Lock()
		f.servers = append(f.servers, r)
		f.line.mu.Unlock()
	}
	return f
}

// lead makes another server lead. The one that did may not know it: then it goes on to
// believe that it does.
func (f *fleet) lead(to int, unknown bool) {
	f.line.mu.Lock()
	defer f.line.mu.Unlock()
	f.line.leader = to
	for i, s := range f.seats {
		if i == to || !unknown || !s.IsLeader() {
			s.set(i == to)
		}
	}
}

// line carries commands between the servers, and is not to be relied on.
type line struct {
	fleet *fleet
	ctx   context.Context
	late  sync.WaitGroup // commands under way that nobody waits for

	mu     sync.Mutex
	leader int
	on     bool
	faults map[fault]int // how often each happened
}

type fault int

const (
	none         fault = iota
	notSent            // and the sender knows
	lost               // on the way there
	lostAnswer         // on the way back
	late               // arrives after another server leads
	wrongServer        // sent to one that does not lead
	numberFaults       // none of them
)

var errLine = errors.New("the line is broken")

// Forward implements Peers.
func (l *line) Forward(ctx context.Context, command []byte) (answer []byte, sent bool, err error) {
	l.mu.Lock()
	target, what := l.leader, none
	if l.on && rand.N(2) == 0 {
		what = rand.N(numberFaults)
	}
	if what == wrongServer {
		target = rand.N(len(l.fleet.servers))
	}
	if target >= len(l.fleet.servers) { // it is starting
		l.mu.Unlock()
		return nil, false, errLine
	}
	to := l.fleet.servers[target]
	l.faults[what]++
	l.mu.Unlock()
	switch what {
	case notSent:
		return nil, false, errLine
	case lost:
		return nil, true, errLine
	case lostAnswer:
		to.Execute(ctx, command)
		return nil, true, errLine
	case late:
		l.deliverLate(target, command)
		return nil, true, errLine
	}
	return to.Execute(ctx, command), true, nil
}

func (l *line) deliverLate(target int, command []byte) {
	to, moved := l.fleet.servers[target], l.fleet.seats[target].LeaderChanged()
	l.late.Go(func() {
		select {
		case <-moved:
		case <-l.ctx.Done():
			return
		}
		to.Execute(l.ctx, command)
	})
}

// attempt is one write of a client, as it looked to the client.
type attempt struct {
	name          string // it signs, or is the value of what it writes
	on            string // the record that it changes
	before, after int64  // revisions between which it happened, when it was acknowledged
	index         uint64 // that it was answered
	err           error
}

// do makes a random write.
func (f *fleet) do(name string) attempt {
	a := attempt{name: name}
	r := f.servers[rand.N(len(f.servers))]
	ctx := WithActor(f.Context(), name)
	a.before = f.now()
	key := weft.InstanceKey{Node: "server-0", ID: fmt.Sprint("i", rand.N(4))}
	entry := fmt.Sprint("k", rand.N(4))
	switch rand.N(4) {
	case 0:
		a.on = instanceRecord(key)
		a.index, a.err = r.Register(ctx, weft.Instance{
			Node: key.Node, ID: key.ID, Service: weft.NewServiceName("", "web"), Labels: map[string]string{"op": name},
		})
	case 1:
		a.on = instanceRecord(key)
		a.index, a.err = r.Deregister(ctx, key)
	default:
		op := KeyOp{Tree: KV, Verb: "set", Key: entry, Value: []byte(name)}
		if e, _ := r.Key(KV, entry); e != nil && rand.N(2) == 0 {
			op.Verb, op.Index = "cas", e.ModifyIndex
		}
		a.on = treePath(kvDir, treeRef{KV, entry})
		var result TxnResult
		if result, a.err = r.Transact(ctx, TxnRequest{Ops: []Op{{Key: &op}}}); a.err == nil {
			a.index = result.Index
			switch {
			case len(result.Errors) > 0:
				a.err = weft.Errorf(weft.Conflict, "cas", entry, "%s", result.Errors[0].What)
			case len(result.Results) != 1 || result.Results[0].Key.ModifyIndex != result.Index:
				f.Errorf("%s: at %d, with results %+v", name, result.Index, result.Results)
			}
		}
	}
	a.after = f.now()
	return a
}

func (f *fleet) now() int64 {
	rev, err := f.store.Barrier(f.Context())
	if err != nil {
		f.Error(err)
	}
	return rev
}

// effects returns at which revisions each write took place, by its name.
func (f *fleet) effects() map[string][]int64 {
	byName := make(map[string][]int64)
	batches, err := f.store.History(f.Context(), root, 1, f.now())
	if err != nil {
		f.Fatal(err)
	}
	cell := serviceCell(weft.NewServiceName("", "web"))
	for _, b := range batches {
		var gone departures
		for _, ev := range b.Events {
			if ev.Key == cell && len(ev.Value) > 0 {
				if err := json.Unmarshal(ev.Value, &gone); err != nil {
					f.Fatal(err)
				}
			}
		}
		for _, ev := range b.Events {
			var name string
			switch {
			case strings.HasPrefix(ev.Key, kvDir):
				_, name, _ = strings.Cut(string(ev.Value), "\n")
			case !strings.HasPrefix(ev.Key, instancesDir):
				continue
			case ev.Deleted:
				name = gone.of(ev.Key)
			default:
				name = signerOf(ev.Value)
			}
			byName[name] = append(byName[name], b.Rev)
		}
	}
	return byName
}

// TestWritesAreMadeOnce: whatever the line does, and whoever leads meanwhile, a write
// that was acknowledged took place once, while its client waited; one that was refused
// did not, and one of which nobody knows did at most once.
func TestWritesAreMadeOnce(t *testing.T) {
	for _, c := range []struct{ clients, each int }{{1, 60}, {8, 40}} {
		t.Run(fmt.Sprintf("%d clients", c.clients), func(t *testing.T) {
			f := newFleet(t, 3)
			for _, r := range f.servers { // so that some have to be recalled
				r.view.mu.Lock()
				r.view.tickets.limit = 6
				r.view.mu.Unlock()
			}
			attempts := f.storm(c.clients, c.each)
			byName := f.effects()
			answers := make(map[string]int)
			for _, a := range attempts {
				answers[f.judge(a, byName[a.name], attempts)]++
			}
			t.Log(answers, f.line.faults)
			if all := c.clients * c.each; answers["done"] < all/2 || answers["unknown"] > all/20 {
				t.Errorf("%v of %d", answers, all)
			}
		})
	}
}

// storm has clients write while everything goes wrong, and returns when all is quiet.
func (f *fleet) storm(clients, each int) (attempts []attempt) {
	f.line.mu.Lock()
	f.line.on = true
	f.line.mu.Unlock()
	results := make(chan attempt, clients*each)
	var work sync.WaitGroup
	for c := range clients {
		work.Go(func() {
			for i := range each {
				results <- f.do(fmt.Sprintf("op-%d-%d", c, i))
			}
		})
	}
	done := make(chan struct{})
	go func() { work.Wait(); close(done) }()
	for changing := true; changing; {
		select {
		case <-done:
			changing = false
		case <-time.After(20 * time.Millisecond): // longer than a take-over
			f.lead(rand.N(3), rand.N(3) == 0)
		}
	}
	close(results)
	f.lead(0, false)
	f.lead(1, false) // what was late has arrived then
	f.line.late.Wait()
	for a := range results {
		attempts = append(attempts, a)
	}
	return attempts
}

// judge compares what a client was told with the revisions at which its write was made.
func (f *fleet) judge(a attempt, at []int64, all []attempt) (answer string) {
	f.Helper()
	kind := weft.KindOf(a.err)
	if len(at) > 1 {
		f.Errorf("%s was made at %v; answered %d, %v", a.name, at, a.index, a.err)
	}
	switch {
	case a.err != nil && (kind == weft.NotFound || kind == weft.Conflict):
		if len(at) != 0 {
			f.Errorf("%s was refused (%v), and made at %v", a.name, a.err, at)
		}
		return "refused"
	case a.err != nil:
		if !errors.Is(a.err, errMayHaveHappened) {
			f.Errorf("%s: %v", a.name, a.err)
		}
		return "unknown"
	case len(at) == 0:
		// In one transaction another one may have taken its place.
		if !slices.ContainsFunc(all, a.meets) {
			f.Errorf("%s was acknowledged at %d, and not made", a.name, a.index)
		}
	case at[0] <= a.before || at[0] > a.after || uint64(at[0]) > a.index:
		f.Errorf("%s was made at %d, acknowledged at %d, asked for between %d and %d", a.name, at[0], a.index, a.before, a.after)
	}
	return "done"
}

// meets reports whether another attempt was under way at the same record and time.
func (a attempt) meets(b attempt) bool {
	return a.name != b.name && a.on == b.on && a.before <= b.after && b.before <= a.after
}

// command makes what a server would forward.
func (f *fleet) command(op string, argument any, t ticket) []byte {
	f.Helper()
	b, err := json.Marshal(argument)
	if err == nil {
		b, err = json.Marshal(command{Op: op, Ticket: &t, Argument: b})
	}
	if err != nil {
		f.Fatal(err)
	}
	return b
}

// TestAttempts: of several attempts of one write at most one takes place, and none after
// a later one was answered; also when the writer is another one, and when it does not
// remember the ticket any more.
func TestAttempts(t *testing.T) {
	const id = "0123456789abcdef"
	web := weft.Instance{Node: "server-0", ID: "web", Service: weft.NewServiceName("", "web"), Port: 1}
	absent := ""
	type step struct {
		op      string // by the ticket; "": by somebody else, to port or gone
		earlier uint8
		port    int    // of what is registered by somebody else; 0: deregistered
		says    string // the failure; "" is none
		now     string // what is there then
	}
	for name, steps := range map[string][]step{
		"a registration is not made again over a deregistration": {
			{op: "register", now: "1"}, {now: absent}, {op: "register", earlier: 1, now: absent},
		},
		"a registration is not made again over another one": {
			{op: "register", now: "1"}, {port: 2, now: "2"}, {op: "register", earlier: 1, now: "2"},
		},
		"a deregistration is not made again": {
			{port: 2, now: "2"}, {op: "deregister", now: absent}, {port: 2, now: "2"}, {op: "deregister", earlier: 1, now: "2"},
		},
		"a late attempt is not made after the next one": {
			{op: "register", earlier: 1, now: "1"}, {now: absent}, {op: "register", now: absent},
		},
		"nor when that was refused": {
			{op: "deregister", earlier: 1, says: "no such instance", now: absent}, {port: 2, now: "2"},
			{op: "deregister", says: "asked for again", now: "2"}, {op: "deregister", earlier: 2, now: absent},
		},
		"nor when that changed nothing": {
			{port: 1, now: "1"}, {op: "register", earlier: 1, now: "1"}, {now: absent}, {op: "register", now: absent},
		},
		"what was refused may be asked for again": {
			{op: "deregister", says: "no such instance", now: absent}, {port: 2, now: "2"}, {op: "deregister", earlier: 1, now: absent},
		},
	} {
		for _, limit := range []int{maxTickets, 0} {
			for _, move := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s, %d remembered, another leads: %v", name, limit, move), func(t *testing.T) {
					t.Parallel()
					f := newFleet(t, 2)
					for _, r := range f.servers {
						r.view.mu.Lock()
						r.view.tickets.limit = limit
						r.view.mu.Unlock()
					}
					tk := ticket{ID: id, Good: f.servers[0].view.revision()}
					for i, s := range steps {
						leader := 0
						if move {
							leader = i % 2
							f.lead(leader, false)
							waitFor(t, f.servers[leader].Writes)
						}
						r, ctx := f.servers[leader], t.Context()
						var err error
						switch {
						case s.op != "":
							tk.Earlier = s.earlier
							argument := any(web)
							if s.op == "deregister" {
								argument = web.Key()
							}
							var a reply
							if err := json.Unmarshal(r.Execute(ctx, f.command(s.op, argument, tk)), &a); err != nil {
								t.Fatal(err)
							}
							if a.Failure != nil {
								err = a.Failure.error()
							}
						case s.port != 0:
							in := web
							in.Port = s.port
							_, err = r.Register(ctx, in)
						default:
							_, err = r.Deregister(ctx, web.Key())
						}
						if s.says == "" && err != nil || s.says != "" && (err == nil || !strings.Contains(err.Error(), s.says)) {
							t.Errorf("step %d: %v, want %q", i, err, s.says)
						}
						now := absent
						if in, _ := r.Instance(web.Key()); in != nil {
							now = fmt.Sprint(in.Port)
						}
						if now != s.now {
							t.Fatalf("step %d: there is %q, want %q", i, now, s.now)
						}
					}
				})
			}
		}
	}
}

func waitFor(t *testing.T, what func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !what(); <-time.After(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it did not come to be in time")
		}
	}
}

// TestTicketsOfOthers: what is no ticket is refused.
func TestTicketsOfOthers(t *testing.T) {
	f := newFleet(t, 1)
	waitFor(t, f.servers[0].Writes)
	for _, tk := range []ticket{{}, {ID: "short"}, {ID: "0123456789abcdef", Good: -1}} {
		var a reply
		if err := json.Unmarshal(f.servers[0].Execute(t.Context(), f.command("register", weft.Instance{}, tk)), &a); err != nil {
			t.Fatal(err)
		}
		if a.Failure == nil || a.Failure.Kind != weft.Invalid {
			t.Errorf("%+v: %+v", tk, a)
		}
	}
}
