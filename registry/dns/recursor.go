package dns

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
)

const (
	recursorTimeout = 2 * time.Second // for one resolver to answer
	recursorTries   = 3               // resolvers that are asked for one question
	maxErrands      = 512             // questions that wait for others at a time
	recursorMemory  = 32 << 20        // bytes of answers that are remembered, about

	maxRemembered     = 24 * time.Hour
	maxRememberedNo   = 15 * time.Minute
	rememberedFailure = time.Second // RFC 9520 section 3.2
	maxStale          = time.Hour   // after its end, for when nobody answers (RFC 8767)
	staleTTL          = 30          // seconds that such an answer may be kept
)

// recursor asks other resolvers, and remembers what they say.
type recursor struct {
	// constant
	resolvers []string // host:port
	cache     *cache[*remembered]
	dial      func(ctx context.Context, network, addr string) (net.Conn, error)

	best atomic.Uint32 // the resolver that answered last

	mu     sync.Mutex
	flying map[string]*flight
}

// flight is a question on its way, for everybody who asks it meanwhile.
type flight struct {
	done chan struct{} // closed when answer is there
	got  *remembered   // nil: nobody knew
}

func newRecursor(resolvers []string) *recursor {
	return &recursor{
		resolvers: resolvers, cache: newCache[*remembered](recursorMemory),
		dial: (&net.Dialer{}).DialContext, flying: make(map[string]*flight),
	}
}

// remembered is an answer of another resolver, whose question section is as long as
// that of everybody who asks the same: so pointers into it hold. It is immutable.
type remembered struct {
	wire []byte // without an OPT record
	end  int    // of the question
	ttls []int  // where they are
	at   time.Time
	life time.Duration

	until time.Time // so long it may be given when nobody answers
	stale bool      // it is given because nobody answers
	fail  bool      // nobody answered
}

func (e *remembered) cost() int { return 160 + len(e.wire) + 8*len(e.ttls) }

func (e *remembered) fresh(now time.Time) bool { return now.Sub(e.at) < e.life }

// appendTo appends it as the answer to q. ok is false when it does not fit.
func (e *remembered) appendTo(b []byte, q *query, f frame, now time.Time) (_ []byte, ok bool) {
	if e.fail {
		return plain(b, q, dns.RcodeServerFailure, f), true
	}
	if len(e.wire)+f.optSize(q) > f.limit || e.end != q.end {
		return b, false
	}
	start := len(b)
	b = begin(b, q, e.wire[3]&0xf, false, f.ra)
	b = append(b, e.wire[e.end:]...)
	copy(b[start+6:start+headerSize], e.wire[6:headerSize])
	e.age(b[start:], now)
	if q.edns {
		b = f.appendOPT(b, q, 0)
		n := binary.BigEndian.Uint16(b[start+10:])
		binary.BigEndian.PutUint16(b[start+10:], n+1)
	}
	return b, true
}

// age writes into the answer how long it may still be kept.
func (e *remembered) age(wire []byte, now time.Time) {
	passed := uint32(max(now.Sub(e.at), 0) / time.Second)
	for _, at := range e.ttls {
		ttl := binary.BigEndian.Uint32(wire[at:])
		switch {
		case e.stale:
			ttl = staleTTL
		case ttl > passed:
			ttl -= passed
		default:
			ttl = 0
		}
		binary.BigEndian.PutUint32(wire[at:], ttl)
	}
}

// message is the answer, unpacked, the caller's.
func (e *remembered) message(now time.Time) (*dns.Msg, error) {
	m := new(dns.Msg)
	if e.fail {
		m.Rcode = dns.RcodeServerFailure
		return m, nil
	}
	wire := append([]byte(nil), e.wire...)
	e.age(wire, now)
	return m, m.Unpack(wire)
}

// keyOf is by what an answer is remembered.
func keyOf(q *query, b []byte) []byte {
	flags := byte(0)
	if q.do {
		flags |= 1
	}
	if q.cd() {
		flags |= 2
	}
	return append(q.folded(b), byte(q.qtype>>8), byte(q.qtype), flags)
}

// remembered returns an answer that still holds, or nil.
func (r *recursor) remembered(q *query) *remembered {
	var buffer [maxName + 3]byte
	e, ok := r.cache.get(keyOf(q, buffer[:0]))
	if !ok || !e.fresh(time.Now()) {
		return nil
	}
	return e
}

// resolve asks the resolvers, once for everybody who asks the same. nil: nobody
// knew in time.
func (r *recursor) resolve(ctx context.Context, q *query) *remembered {
	key := keyOf(q, nil)
	r.mu.Lock()
	fl := r.flying[string(key)]
	if fl != nil {
		r.mu.Unlock()
		select {
		case <-fl.done:
			return fl.got
		case <-ctx.Done():
			return nil
		}
	}
	old, _ := r.cache.get(key)
	if old != nil && old.fresh(time.Now()) {
		r.mu.Unlock()
		return old
	}
	fl = &flight{done: make(chan struct{})}
	r.flying[string(key)] = fl
	r.mu.Unlock()

	fl.got = r.fetch(ctx, q, key, old)
	r.mu.Lock()
	delete(r.flying, string(key))
	r.mu.Unlock()
	close(fl.done)
	return fl.got
}

// fetch asks one resolver after the other. When none answers it returns old, if that
// is not too old (RFC 8767), for a moment.
func (r *recursor) fetch(ctx context.Context, q *query, key []byte, old *remembered) *remembered {
	first := r.best.Load()
	for i := range min(recursorTries, len(r.resolvers)) {
		which := (first + uint32(i)) % uint32(len(r.resolvers))
		m := r.exchange(ctx, r.resolvers[which], q)
		if m == nil || m.Rcode != dns.RcodeSuccess && m.Rcode != dns.RcodeNameError {
			continue
		}
		if e := remember(m, q); e != nil {
			r.best.Store(which)
			r.cache.put(key, e) // with no life, too: for when nobody answers
			return e
		}
	}
	now := time.Now()
	e := &remembered{at: now, life: rememberedFailure, fail: true}
	if old != nil && now.Before(old.until) {
		again := *old
		again.at, again.life, again.stale = now, staleTTL*time.Second, true
		e = &again
	}
	if ctx.Err() == nil { // else it is we who gave up
		r.cache.put(key, e)
	}
	return e
}

// remember makes of a resolver's answer what can be given to others: the records of
// the answer, and of the others only the one that says how long a "no" holds.
func remember(m *dns.Msg, q *query) *remembered {
	life := maxRemembered
	for _, rr := range m.Answer {
		life = min(life, time.Duration(rr.Header().Ttl)*time.Second)
	}
	var authority []dns.RR
	if len(m.Answer) == 0 || m.Rcode == dns.RcodeNameError {
		no := time.Duration(0) // without SOA a "no" is not kept (RFC 2308 section 5)
		for _, rr := range m.Ns {
			if soa, ok := rr.(*dns.SOA); ok && authority == nil {
				soa.Hdr.Ttl = min(soa.Hdr.Ttl, soa.Minttl)
				no = time.Duration(soa.Hdr.Ttl) * time.Second
				authority = []dns.RR{soa}
			}
		}
		life = min(life, no, maxRememberedNo)
	}
	name, _, err := dns.UnpackDomainName(q.name, 0)
	if err != nil {
		return nil
	}
	for _, rr := range m.Answer {
		if strings.EqualFold(rr.Header().Name, name) {
			rr.Header().Name = name // a pointer into the question: in the letters of whoever asks
		}
	}
	out := &dns.Msg{Answer: m.Answer, Ns: authority, Compress: true}
	out.Rcode, out.Response = m.Rcode, true
	out.Question = []dns.Question{{Name: name, Qtype: q.qtype, Qclass: dns.ClassINET}}
	wire, err := out.Pack()
	if err != nil {
		return nil
	}
	now := time.Now()
	e := &remembered{wire: wire, end: q.end, at: now, life: life, until: now.Add(life + maxStale)}
	at := q.end
	for range len(out.Answer) + len(out.Ns) {
		data, end := skipRecord(wire, at)
		if end < 0 {
			return nil
		}
		e.ttls = append(e.ttls, data-6)
		at = end
	}
	return e
}

// exchange asks one resolver: over UDP, and over TCP when the answer does not fit,
// or when it is not sure that it is the answer.
func (r *recursor) exchange(ctx context.Context, resolver string, q *query) *dns.Msg {
	ctx, cancel := context.WithTimeout(ctx, recursorTimeout)
	defer cancel()
	m, again := r.over(ctx, "udp", resolver, q)
	if again {
		m, _ = r.over(ctx, "tcp", resolver, q)
	}
	return m
}

// over asks a resolver over one network. Each question has a socket of its own, so
// that its port is random as its id and the case of its letters are (RFC 5452,
// 0x20): who does not see it can hardly answer it. again says to ask over TCP.
func (r *recursor) over(ctx context.Context, network, resolver string, q *query) (m *dns.Msg, again bool) {
	conn, err := r.dial(ctx, network, resolver)
	if err != nil {
		return nil, false
	}
	defer conn.Close()
	unhook := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(past) })
	defer unhook()
	ask := upstreamQuestion(q, network == "udp")
	packet := ask
	if network == "tcp" {
		packet = append(binary.BigEndian.AppendUint16(nil, uint16(len(ask))), ask...)
	}
	if _, err := conn.Write(packet); err != nil {
		return nil, false
	}
	buffer := make([]byte, 4096)
	for range 16 { // answers to somebody else's questions are not for ever
		n, err := receive(conn, network, &buffer)
		if err != nil {
			return nil, false
		}
		switch fits, folded := answers(buffer[:n], ask); {
		case folded && network == "udp": // the resolver changed the letters, or somebody guesses
			return nil, true
		case !fits && !folded:
			continue
		}
		m = new(dns.Msg)
		if m.Unpack(buffer[:n]) != nil {
			return nil, network == "udp"
		}
		return m, m.Truncated && network == "udp"
	}
	return nil, true
}

func receive(conn net.Conn, network string, buffer *[]byte) (int, error) {
	if network == "udp" {
		return conn.Read(*buffer)
	}
	var length [2]byte
	if _, err := io.ReadFull(conn, length[:]); err != nil {
		return 0, err
	}
	n := int(binary.BigEndian.Uint16(length[:]))
	if n > len(*buffer) {
		*buffer = make([]byte, n)
	}
	return io.ReadFull(conn, (*buffer)[:n])
}

// upstreamQuestion is q as we ask it: with an id of our own, and mixed letters.
func upstreamQuestion(q *query, mixed bool) []byte {
	flags := q.message[3] & 0x10
	b := []byte{0, 0, 0x01, flags, 0, 1, 0, 0, 0, 0, 0, 1}
	rand.Read(b[:2]) // never fails
	b = q.folded(b)
	if mixed {
		var bits [maxName]byte
		rand.Read(bits[:])
		for i := headerSize; i < len(b); i++ {
			if c := b[i]; 'a' <= c && c <= 'z' && bits[i-headerSize]&1 != 0 {
				b[i] = c &^ 0x20
			}
		}
	}
	b = append(b, byte(q.qtype>>8), byte(q.qtype), 0, dns.ClassINET)
	opt := query{do: q.do}
	return frame{}.appendOPT(b, &opt, 0)
}

// answers says whether a packet is the answer to a question; folded: but for the
// case of its letters.
func answers(packet, question []byte) (fits, folded bool) {
	end := skipName(question, headerSize) + 4
	if len(packet) < end || packet[0] != question[0] || packet[1] != question[1] ||
		packet[2]&0xf8 != 0x80 || binary.BigEndian.Uint16(packet[4:]) != 1 {
		return false, false
	}
	same, alike := true, true
	for i := headerSize; i < end; i++ {
		a, b := packet[i], question[i]
		same = same && a == b
		if i < end-4 && 'A' <= a && a <= 'Z' {
			a |= 0x20
		}
		if i < end-4 && 'A' <= b && b <= 'Z' {
			b |= 0x20
		}
		alike = alike && a == b
	}
	return same, alike && !same
}
