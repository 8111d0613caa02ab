package dns

import (
	"context"
	"encoding/binary"
	"net/netip"
	"runtime/debug"
	"strings"
	"time"

	"github.com/miekg/dns"
)

const (
	advertisedUDP = 1232  // bytes that we say we take, safe on every path (DNS flag day 2020)
	maxUDPAnswer  = 65467 // bytes that a UDP answer has at most, for who proved its address
	maxTCPAnswer  = 65535
)

// asker is who asked, and how.
type asker struct {
	addr netip.Addr
	tcp  bool
}

// responder answers questions. It belongs to one goroutine.
type responder struct {
	server *Server
	writer writer
	query  query
	key    []byte
	cookie [clientCookie + serverCookie]byte
}

func (s *Server) newResponder() *responder {
	return &responder{server: s, writer: writer{sampler: newSampler()}}
}

// respond appends the answer to a packet to b. When there is nothing to answer it
// appends nothing. later is not nil when the answer must be asked for elsewhere:
// then it has that to do, and nothing was appended. A failure of ours is SERVFAIL,
// and never more than this one question's.
func (r *responder) respond(b, packet []byte, from asker) (answer []byte, later *errand) {
	start := len(b)
	defer func() {
		if cause := recover(); cause != nil {
			r.server.logger.Error("DNS question failed", "error", cause, "stack", string(debug.Stack()))
			answer, later = refusal(b[:start], packet, dns.RcodeServerFailure), nil
		}
	}()
	q := &r.query
	switch q.read(packet) {
	case silence:
		return b, nil
	case malformed:
		return refusal(b, packet, dns.RcodeFormatError), nil
	case notImplemented:
		return refusal(b, packet, dns.RcodeNotImplemented), nil
	}
	f := r.frame(q, from)
	switch {
	case q.version != 0:
		return plain(b, q, dns.RcodeBadVers, f), nil
	case q.qclass != dns.ClassINET && q.qclass != dns.ClassANY:
		return plain(b, q, dns.RcodeRefused, f), nil
	}
	p := r.find(q)
	if p.rcode == dns.RcodeRefused && r.server.recursor != nil && q.rd() && recursed(q.qtype) {
		return r.recurse(b, q, from, f)
	}
	answer, led := r.writer.write(b, q, p, f)
	if p.leads(q.qtype) && (led >= 0 || p.follow != "") { // else not even an alias fits
		return r.lead(b, answer, q, from, f, p, led)
	}
	return answer, nil
}

// recursed says whether questions of a type are passed on.
func recursed(qtype uint16) bool {
	switch qtype {
	case dns.TypeAXFR, dns.TypeIXFR, dns.TypeMAILA, dns.TypeMAILB, dns.TypeANY, dns.TypeOPT, dns.TypeTSIG:
		return false
	}
	return true
}

// frame decides how large the answer may be. Without a cookie of ours the sender
// may be a lie: then a packet that is much larger than the question is a weapon, but
// within this machine.
func (r *responder) frame(q *query, from asker) frame {
	f := frame{limit: dns.MinMsgSize, ra: r.server.recursor != nil}
	known := from.addr.IsLoopback()
	if q.cookie != nil {
		now := uint32(time.Now().Unix())
		ours, fresh := r.server.baker.proves(q.cookie, from.addr, now)
		known = known || ours
		if fresh {
			f.cookie = append(r.cookie[:0], q.cookie...)
		} else {
			f.cookie = append(r.cookie[:0], q.cookie[:clientCookie]...)
			r.server.baker.fill((*[serverCookie]byte)(r.cookie[clientCookie:]), q.cookie, from.addr, now)
			f.cookie = r.cookie[:]
		}
	}
	switch {
	case from.tcp:
		f.limit = maxTCPAnswer
	case q.edns:
		f.limit = min(max(q.size, dns.MinMsgSize), maxUDPAnswer)
		if !known {
			f.limit = min(f.limit, advertisedUDP)
		}
	}
	return f
}

// find returns what the name has for the type, packed.
func (r *responder) find(q *query) *packed {
	s := r.server
	qtype := kindOf(q.qtype)
	r.key = q.folded(r.key[:0])
	n := len(r.key)
	r.key = append(r.key, byte(qtype>>8), byte(qtype))
	docs := s.documents.Load()
	if p, ok := s.packed.get(r.key); ok && p.docs == docs && s.holds(p.deps) {
		return p
	}
	p, keep := s.packName(r.key[:n:n], qtype, docs)
	if keep {
		s.packed.put(r.key, p)
	}
	return p
}

// packName finds and packs what a name in lower case has for a type.
func (s *Server) packName(name []byte, qtype uint16, docs *documents) (p *packed, keep bool) {
	labels, _ := labelsOf(name) // a question was read with it
	t, r := s.lookup(labels, qtype)
	return s.pack(t, name, r, docs), r.keep
}

// kindOf makes one of all the types that no name has: their answers are the same.
func kindOf(qtype uint16) uint16 {
	switch qtype {
	case dns.TypeA, dns.TypeAAAA, dns.TypeSRV, dns.TypeTXT, dns.TypeCNAME, dns.TypePTR, dns.TypeNS, dns.TypeSOA,
		dns.TypeSVCB, dns.TypeHTTPS, dns.TypeANY, dns.TypeAXFR, dns.TypeIXFR, dns.TypeMAILA, dns.TypeMAILB:
		return qtype
	}
	return dns.TypeHINFO
}

// errand is a question that others must be asked for. It has all that it needs.
type errand struct {
	packet []byte
	from   asker
}

func (r *responder) errand(q *query, from asker) *errand {
	return &errand{packet: append([]byte(nil), q.message...), from: from}
}

// recurse answers a question about a name that is not ours, now if what others said
// is remembered.
func (r *responder) recurse(b []byte, q *query, from asker, f frame) ([]byte, *errand) {
	e := r.server.recursor.remembered(q)
	if e == nil {
		return b, r.errand(q, from)
	}
	return r.passOn(b, q, f, e), nil
}

// passOn appends what others said as the answer to q.
func (r *responder) passOn(b []byte, q *query, f frame, e *remembered) []byte {
	if answer, ok := e.appendTo(b, q, f, time.Now()); ok {
		return answer
	}
	m, err := e.message(time.Now())
	if err != nil {
		return plain(b, q, dns.RcodeServerFailure, f)
	}
	return r.send(b, q, f, m)
}

// lead completes an answer that leads to another name, now if everything it needs is
// known. own is the answer without that.
func (r *responder) lead(b, own []byte, q *query, from asker, f frame, p *packed, led int) ([]byte, *errand) {
	if p.follow == "" && !r.server.reaches(q, p.hosts[led]) {
		return own, nil
	}
	answer, ok := r.complete(context.Background(), false, b, q, f, p, led)
	if !ok {
		return b, r.errand(q, from)
	}
	return answer, nil
}

// reaches says whether a name can be looked up for q: it is ours, or others may be
// asked.
func (s *Server) reaches(q *query, host string) bool {
	if s.recursor != nil && q.rd() && recursed(q.qtype) {
		return true
	}
	labels := strings.Split(strings.TrimSuffix(strings.ToLower(host), "."), ".")
	return s.parseName(labels).zone != outside
}

// maxChase bounds how many more names one answer leads through.
const maxChase = 3

// complete appends the answer that begins with the name that was asked for and an
// alias for another one: that of a record of p, or the one that p follows. With wait
// it asks others; else ok is false when it would have to.
func (r *responder) complete(ctx context.Context, wait bool, b []byte, q *query, f frame, p *packed, led int) (_ []byte, ok bool) {
	asked, _, err := dns.UnpackDomainName(q.name, 0)
	if err != nil {
		return plain(b, q, dns.RcodeServerFailure, f), true
	}
	f.note = p.note
	host, ttl := p.follow, r.server.ttl
	if led >= 0 {
		host, ttl = p.hosts[led], binary.BigEndian.Uint32(p.part(p.records[led].span)[4:])
	}
	m := &dns.Msg{Answer: []dns.RR{&dns.CNAME{
		Hdr: dns.RR_Header{Name: asked, Rrtype: dns.TypeCNAME, Class: dns.ClassINET, Ttl: ttl}, Target: dns.Fqdn(host),
	}}}
	for hop := 1; hop <= maxChase; hop++ {
		next, note, known := r.ask(ctx, wait, q, host)
		switch {
		case !known:
			return b, false
		case p.doubtful && hop == 1 && next.Rcode != dns.RcodeSuccess:
			b, _ = r.writer.write(b, q, r.server.absent(q.name), f)
			return b, true
		case next.Rcode == dns.RcodeRefused: // a name that we cannot look up: the client may
			return r.send(b, q, f, m), true
		case next.Rcode == dns.RcodeServerFailure:
			return plain(b, q, dns.RcodeServerFailure, f), true
		}
		if f.note == nil {
			f.note = note
		}
		m.Answer, m.Extra, m.Rcode = append(m.Answer, next.Answer...), next.Extra, next.Rcode
		if len(next.Answer) == 0 {
			m.Ns = next.Ns
		}
		if host = aliasAtEnd(next.Answer, q.qtype); host == "" {
			break
		}
	}
	return r.send(b, q, f, m), true
}

// aliasAtEnd returns where records lead on, "" when they do not.
func aliasAtEnd(list []dns.RR, qtype uint16) string {
	if len(list) == 0 || qtype == dns.TypeCNAME {
		return ""
	}
	if c, isAlias := list[len(list)-1].(*dns.CNAME); isAlias {
		return c.Target
	}
	return ""
}

// ask finds what another name has for the type of q: among our names, or with
// others. It answers REFUSED when there is nobody to ask, SERVFAIL when they do not
// know. note explains what we answer ourselves. known is false when it must be waited
// for.
func (r *responder) ask(ctx context.Context, wait bool, q *query, host string) (m *dns.Msg, note []byte, known bool) {
	failed := &dns.Msg{MsgHdr: dns.MsgHdr{Rcode: dns.RcodeServerFailure}}
	s := r.server
	name, ok := appendName(nil, strings.ToLower(host))
	if !ok {
		return failed, nil, true
	}
	sub := query{message: subMessage(q, name), name: name, qtype: q.qtype, qclass: dns.ClassINET, do: q.do}
	sub.end = len(sub.message)
	p, _ := s.packName(name, kindOf(q.qtype), s.documents.Load())
	m = new(dns.Msg)
	switch {
	case p.follow != "": // one completion is enough
		return &dns.Msg{MsgHdr: dns.MsgHdr{Rcode: dns.RcodeNameError}}, nil, true
	case p.rcode != dns.RcodeRefused:
		answer, _ := r.writer.write(nil, &sub, p, frame{limit: maxTCPAnswer})
		if m.Unpack(answer) != nil {
			return failed, nil, true
		}
		return m, p.note, true
	case !s.reaches(q, host):
		m.Rcode = dns.RcodeRefused
		return m, nil, true
	}
	e := s.recursor.remembered(&sub)
	if e == nil && !wait {
		return nil, nil, false
	}
	if e == nil {
		e = s.recursor.resolve(ctx, &sub)
	}
	if e == nil {
		return failed, nil, true
	}
	m, err := e.message(time.Now())
	if err != nil {
		return failed, nil, true
	}
	return m, nil, true
}

// subMessage is a question for another name, with the flags of q.
func subMessage(q *query, name []byte) []byte {
	b := []byte{0, 0, q.message[2] & 0x01, q.message[3] & 0x10, 0, 1, 0, 0, 0, 0, 0, 0}
	b = append(b, name...)
	return append(b, byte(q.qtype>>8), byte(q.qtype), 0, dns.ClassINET)
}

// absent is the answer that a name of Kubernetes' does not exist.
func (s *Server) absent(name []byte) *packed {
	return s.pack(target{zone: kubeZone, domain: kubeDomain}, name, result{}, nil)
}

// send appends a message that was put together of several as the answer to q.
func (r *responder) send(b []byte, q *query, f frame, m *dns.Msg) []byte {
	name, _, err := dns.UnpackDomainName(q.name, 0)
	if err != nil {
		return plain(b, q, dns.RcodeServerFailure, f)
	}
	m.Id, m.Response, m.Authoritative = q.id(), true, r.server.owns(q)
	m.RecursionDesired, m.RecursionAvailable, m.CheckingDisabled = q.rd(), f.ra, q.cd()
	m.Question = []dns.Question{{Name: name, Qtype: q.qtype, Qclass: q.qclass}}
	whole := len(m.Answer)
	m.Extra = withoutOPT(m.Extra)
	m.Truncate(f.limit - f.optSize(q))
	m.Truncated = len(m.Answer) < whole
	m.Compress = true
	packed, err := m.Pack()
	if err != nil {
		r.server.logger.Error("DNS answer not packed", "question", name, "error", err)
		return plain(b, q, dns.RcodeServerFailure, f)
	}
	start := len(b)
	b = append(b, packed...)
	if q.edns {
		if len(packed)+f.optSize(q)+len(f.note) > f.limit {
			f.note = nil // as in writer.write
			b[start+2] |= 0x02
		}
		b = f.appendOPT(b, q, 0)
		b[start+11]++
		if b[start+11] == 0 {
			b[start+10]++
		}
	}
	return b
}

// owns says whether the name that was asked for is ours.
func (s *Server) owns(q *query) bool {
	labels, _ := labelsOf(q.folded(nil))
	return s.parseName(labels).zone != outside
}

func withoutOPT(list []dns.RR) []dns.RR {
	var out []dns.RR
	for _, rr := range list {
		if rr.Header().Rrtype != dns.TypeOPT {
			out = append(out, rr)
		}
	}
	return out
}

// run does an errand, and appends the answer to b.
func (r *responder) run(ctx context.Context, e *errand, b []byte) []byte {
	q := &r.query
	if q.read(e.packet) != asked {
		return b
	}
	f := r.frame(q, e.from)
	p := r.find(q)
	if p.rcode == dns.RcodeRefused {
		if got := r.server.recursor.resolve(ctx, q); got != nil {
			return r.passOn(b, q, f, got)
		}
		return plain(b, q, dns.RcodeServerFailure, f)
	}
	start := len(b)
	b, led := r.writer.write(b, q, p, f)
	if p.leads(q.qtype) && (led >= 0 || p.follow != "") {
		b, _ = r.complete(ctx, true, b[:start], q, f, p, led)
	}
	return b
}
