package dns

import (
	"encoding/binary"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/weftmesh/weft"
)

// resolver is another resolver, on loopback ports, that says what a test wants.
type resolver struct {
	addr string
	say  func(r *resolver, m *dns.Msg, network string) // fills in the answer

	mu    sync.Mutex
	asked map[string]int // "udp a.example. A" in lower case
	stop  func()
}

func newResolver(t *testing.T, say func(r *resolver, m *dns.Msg, network string)) *resolver {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	packet, err := net.ListenPacket("udp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	r := &resolver{addr: listener.Addr().String(), say: say, asked: make(map[string]int)}
	var running sync.WaitGroup
	servers := []*dns.Server{{Listener: listener, Handler: r.handler("tcp")}, {PacketConn: packet, Handler: r.handler("udp")}}
	for _, s := range servers {
		ready := make(chan struct{})
		s.NotifyStartedFunc = func() { close(ready) }
		running.Go(func() { _ = s.ActivateAndServe() })
		<-ready
	}
	r.stop = sync.OnceFunc(func() {
		for _, s := range servers {
			_ = s.Shutdown()
		}
		running.Wait()
	})
	t.Cleanup(r.stop)
	return r
}

func (r *resolver) handler(network string) dns.HandlerFunc {
	return func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg).SetReply(q)
		r.mu.Lock()
		r.asked[network+" "+strings.ToLower(q.Question[0].Name)+" "+dns.TypeToString[q.Question[0].Qtype]]++
		r.mu.Unlock()
		r.say(r, m, network)
		_ = w.WriteMsg(m)
	}
}

func (r *resolver) times(question string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.asked[question]
}

// elsewhere is a resolver that knows records, "name type data", for ttl seconds.
func elsewhere(t *testing.T, ttl int, records ...string) *resolver {
	return newResolver(t, func(_ *resolver, m *dns.Msg, _ string) {
		q := m.Question[0]
		m.RecursionAvailable = true
		exists := false
		for _, text := range records {
			rr, err := dns.NewRR(strings.Replace(text, " ", fmt.Sprintf(" %d ", ttl), 1))
			if err != nil {
				t.Error(err)
				return
			}
			if !strings.EqualFold(rr.Header().Name, q.Name) {
				continue
			}
			exists = true
			if rr.Header().Rrtype == q.Qtype {
				rr.Header().Name = q.Name
				m.Answer = append(m.Answer, rr)
			}
		}
		if !exists {
			m.Rcode = dns.RcodeNameError
		}
		if len(m.Answer) == 0 {
			soa, _ := dns.NewRR("example. 60 SOA ns.example. root.example. 1 2 3 4 30")
			m.Ns = append(m.Ns, soa)
		}
	})
}

// Other names are asked for elsewhere once, for who wants that.
func TestRecursion(t *testing.T) {
	up := elsewhere(t, 300, "www.example. A 192.0.2.1")
	w := newWorld(t, Config{Recursors: []string{up.addr}})
	for range 3 {
		a := w.ask("WWW.example", "A")
		if show(a.Answer) != "A 192.0.2.1" || !a.RecursionAvailable || a.Authoritative || a.Answer[0].Header().Name != "WWW.example." {
			t.Fatalf("%v", a)
		}
	}
	if n := up.times("udp www.example. A"); n != 1 {
		t.Errorf("asked %d times, want once: the answer holds for minutes", n)
	}
	for range 3 {
		if a := w.ask("none.example", "A"); a.Rcode != dns.RcodeNameError || len(a.Ns) != 1 || a.Ns[0].Header().Ttl != 30 {
			t.Fatalf("a name that does not exist: %v", a)
		}
	}
	if n := up.times("udp none.example. A"); n != 1 {
		t.Errorf("asked %d times for what does not exist, want once", n)
	}
	m := question("www.example", "A")
	m.RecursionDesired = false
	if a := w.exchange("udp", m); a.Rcode != dns.RcodeRefused {
		t.Errorf("without RD: %v", a)
	}
	for _, own := range []string{"none.service.consul", "none.default.svc.cluster.local"} {
		if a := w.ask(own, "A"); a.Rcode != dns.RcodeNameError || !a.Authoritative || !a.RecursionAvailable {
			t.Errorf("%s: %v", own, a)
		}
		if up.times("udp "+own+". A") != 0 {
			t.Errorf("%s was asked for elsewhere", own)
		}
	}
}

// An answer that is cut is asked for over TCP, and so is one whose letters are not
// those of the question: somebody may have guessed it.
func TestRecursionOverTCP(t *testing.T) {
	for what, spoil := range map[string]func(m *dns.Msg){
		"cut":           func(m *dns.Msg) { m.Truncated, m.Answer = true, nil },
		"other letters": func(m *dns.Msg) { m.Question[0].Name = strings.ToLower(m.Question[0].Name) },
	} {
		t.Run(what, func(t *testing.T) {
			up := newResolver(t, func(_ *resolver, m *dns.Msg, network string) {
				m.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: m.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 5}, A: net.IPv4(192, 0, 2, 66)}}
				if network == "udp" {
					spoil(m)
					return
				}
				m.Answer[0].(*dns.A).A = net.IPv4(192, 0, 2, 1)
			})
			w := newWorld(t, Config{Recursors: []string{up.addr}})
			const name = "a.very.long.name.with.many.letters.example" // mixed for sure
			if a := w.ask(name, "A"); show(a.Answer) != "A 192.0.2.1" {
				t.Errorf("%v", a)
			}
			if n := up.times("tcp " + name + ". A"); n != 1 {
				t.Errorf("asked %d times over TCP", n)
			}
		})
	}
}

// While one resolver is away another one answers; while all are, what they said last.
func TestResolversThatAreAway(t *testing.T) {
	first := elsewhere(t, 0, "www.example. A 192.0.2.1")
	second := elsewhere(t, 0, "www.example. A 192.0.2.2")
	w := newWorld(t, Config{Recursors: []string{first.addr, second.addr}})
	if a := w.ask("www.example", "A"); show(a.Answer) != "A 192.0.2.1" {
		t.Fatalf("%v", a)
	}
	first.stop()
	if a := w.ask("www.example", "A"); show(a.Answer) != "A 192.0.2.2" {
		t.Fatalf("one is away: %v", a)
	}
	second.stop()
	if a := w.ask("www.example", "A"); show(a.Answer) != "A 192.0.2.2" || a.Answer[0].Header().Ttl != staleTTL {
		t.Errorf("all are away: %v", a)
	}
	if a := w.ask("other.example", "A"); a.Rcode != dns.RcodeServerFailure {
		t.Errorf("all are away, and nobody said anything: %v", a)
	}
}

// Who asks the same at the same time waits for one answer.
func TestOneQuestionForAll(t *testing.T) {
	const askers = 8
	begun, proceed := make(chan struct{}, askers), make(chan struct{})
	up := newResolver(t, func(_ *resolver, m *dns.Msg, _ string) {
		begun <- struct{}{}
		<-proceed
		rr, _ := dns.NewRR(m.Question[0].Name + " 60 A 192.0.2.1")
		m.Answer = []dns.RR{rr}
	})
	w := newWorld(t, Config{Recursors: []string{up.addr}})
	answers := make(chan string, askers)
	for range askers {
		go func() {
			a, err := dns.Exchange(question("www.example", "A"), w.udp)
			if err != nil {
				answers <- err.Error()
				return
			}
			answers <- show(a.Answer)
		}()
	}
	<-begun
	for deadline := time.Now().Add(5 * time.Second); len(w.server.errands) < askers; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d of %d wait", len(w.server.errands), askers)
		}
	}
	close(proceed)
	for range askers {
		if got := <-answers; got != "A 192.0.2.1" {
			t.Error(got)
		}
	}
	if n := up.times("udp www.example. A"); n != 1 {
		t.Errorf("asked %d times", n)
	}
}

// What is remembered grows older, in each of its records.
func TestRememberedAnswersAge(t *testing.T) {
	name, _ := appendName(nil, "www.example")
	q := query{message: questionPacket(t, "www.example"), name: name, qtype: dns.TypeA}
	q.end = len(q.message)
	var answer []dns.RR
	for _, text := range []string{"www.example. 300 CNAME a.example.", "a.example. 60 A 192.0.2.1"} {
		rr, err := dns.NewRR(text)
		if err != nil {
			t.Fatal(err)
		}
		answer = append(answer, rr)
	}
	e := remember(&dns.Msg{Answer: answer}, &q)
	for _, c := range []struct {
		after time.Duration
		fresh bool
		ttls  [2]uint32
	}{
		{0, true, [2]uint32{300, 60}},
		{59 * time.Second, true, [2]uint32{241, 1}},
		{60 * time.Second, false, [2]uint32{240, 0}},
		{-time.Hour, true, [2]uint32{300, 60}}, // the clock was set back
	} {
		now := e.at.Add(c.after)
		m, err := e.message(now)
		if err != nil {
			t.Fatal(err)
		}
		if got := [2]uint32{m.Answer[0].Header().Ttl, m.Answer[1].Header().Ttl}; got != c.ttls || e.fresh(now) != c.fresh {
			t.Errorf("after %s: %v, fresh %v", c.after, got, e.fresh(now))
		}
	}
}

// questionPacket is a question as it stands in a packet.
func questionPacket(t *testing.T, name string) []byte {
	t.Helper()
	b, err := question(name, "A").Pack()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// With ndots:5 a resolver asks for a name with its search path first. The answer is
// there at once: what the path leads to.
func TestSearchPathIsOneQuestion(t *testing.T) {
	up := elsewhere(t, 60, "www.example. A 192.0.2.1", "www.example. TXT hello")
	w := newWorld(t, Config{Recursors: []string{up.addr}})
	w.add(weft.Passing, instance("1", "10.0.0.1", 80),
		weft.Instance{ID: "o", Service: weft.NewServiceName("shop", "orders"), Address: "10.0.0.2", Port: 80})
	const searched = ".shop.svc.cluster.local"
	w.expect([]expectation{
		{"www.example" + searched, "A", dns.RcodeSuccess, "A 192.0.2.1, CNAME www.example.", ""},
		{"www.example" + searched, "TXT", dns.RcodeSuccess, `CNAME www.example., TXT "hello"`, ""},
		{"www.example" + searched, "AAAA", dns.RcodeSuccess, "CNAME www.example.", ""}, // it exists, without
		{"none.example" + searched, "A", dns.RcodeNameError, "", ""},
		// of another namespace, and by the rest of the path
		{"web.default" + searched, "A", dns.RcodeSuccess, "A 10.0.0.1, CNAME web.default.svc.cluster.local.", ""},
		{"web.default.svc" + searched, "A", dns.RcodeSuccess, "A 10.0.0.1, CNAME web.default.svc.cluster.local.", ""},
		{"web.service.consul" + searched, "A", dns.RcodeSuccess, "A 10.0.0.1, CNAME web.service.consul.", ""},
		// nobody's search path: the namespace does not exist
		{"www.example.nowhere.svc.cluster.local", "A", dns.RcodeNameError, "", ""},
		// an instance that is gone
		{"10-0-0-9.orders" + searched, "A", dns.RcodeNameError, "", ""},
		// one label: the other suffixes are not to be guessed
		{"www" + searched, "A", dns.RcodeNameError, "", ""},
	})
	if n := up.times("udp www.example. A"); n != 1 {
		t.Errorf("asked elsewhere %d times, want once", n)
	}
}

// A Service may lead to a name elsewhere: the answer has what that has.
func TestExternalNamesAreFollowed(t *testing.T) {
	up := elsewhere(t, 60, "api.example. A 192.0.2.1")
	w := newWorld(t, Config{Recursors: []string{up.addr}})
	w.server.SetServices([]Service{{Name: weft.NewServiceName("", "bank"), ExternalName: "api.example"}})
	w.expect([]expectation{
		{"bank.default.svc.cluster.local", "A", dns.RcodeSuccess, "A 192.0.2.1, CNAME api.example.", ""},
		{"bank.default.svc.cluster.local", "CNAME", dns.RcodeSuccess, "CNAME api.example.", ""},
	})
}

// small is a value that costs its number.
type small int

func (s small) cost() int { return int(s) }

// A cache keeps what was put last, and never more than its memory.
func TestCacheIsBounded(t *testing.T) {
	c := newCache[small](16 * 100)
	var key [4]byte
	for i := range uint32(10_000) {
		binary.BigEndian.PutUint32(key[:], i)
		c.put(key[:], small(i%40))
		if got, ok := c.get(key[:]); !ok || got != small(i%40) {
			t.Fatalf("%d is not there", i)
		}
	}
	for i := range c.shards {
		s, sum := &c.shards[i], 0
		for k, v := range s.byKey {
			sum += len(k) + v.cost()
		}
		if sum != s.cost || sum > c.most {
			t.Errorf("a shard holds %d bytes, counts %d, may hold %d", sum, s.cost, c.most)
		}
	}
}
