package dns

import (
	"encoding/binary"
	"strings"

	"github.com/miekg/dns"
)

// packed is everything that a name has for a type, ready to be copied into answers.
// It is immutable. What depends on the question is left out: the id, the letters of
// the name, and how many of the records are given and in which order.
type packed struct {
	deps []dep
	docs *documents

	rcode         uint8
	authoritative bool
	bytes         []byte // what records, authority and glue are parts of
	records       []packedRecord
	sums          []uint64 // of the weights up to and with each record; nil: all weigh the same
	one           bool     // the records are alternatives
	hosts         []string // where each record leads, if they are CNAMEs
	authority     span     // a whole record, whose name is a pointer into the question
	glue          []span   // type to data, of the additional section
	note          []byte   // option of the OPT record that explains the answer; nil: there is nothing to explain

	follow   string
	doubtful bool
}

// packedRecord is a record of the name that was asked for, from the type on.
type packedRecord struct {
	span
	weight uint32
	glue   int32  // which, or -1
	nameAt uint16 // where the name that glue is for begins, from the type on
}

type span struct {
	at   uint32
	size uint32
}

func (p *packed) part(s span) []byte { return p.bytes[s.at : s.at+s.size] }

// cost is about how much memory it takes.
func (p *packed) cost() int {
	return 256 + len(p.bytes) + len(p.note) + 24*len(p.records) + 8*len(p.sums) + 8*len(p.glue) + 16*len(p.hosts) + 64*len(p.deps)
}

// leads says whether an answer may have to go on to another name.
func (p *packed) leads(qtype uint16) bool {
	return p.follow != "" || len(p.hosts) > 0 && qtype != dns.TypeCNAME && qtype != dns.TypeANY
}

const ofQuestion = 0xc000 | headerSize // a pointer to the name that was asked for

// pack makes the answers of a result. name is the one that was asked for, in a
// message's form.
func (s *Server) pack(t target, name []byte, r result, docs *documents) *packed {
	p := &packed{deps: r.deps, docs: docs, authoritative: !r.refused, one: r.one, follow: r.follow, doubtful: r.doubtful}
	switch {
	case r.refused:
		p.rcode = dns.RcodeRefused
		return p
	case !r.found:
		p.rcode = dns.RcodeNameError
	}
	size, same := 0, true
	for i := range r.answers {
		a := &r.answers[i]
		a.weight = weightOf(a.weight)
		size += 10 + len(a.data)
		if a.glue.IsValid() {
			size += 10 + 16
		}
		same = same && a.weight == r.answers[0].weight
	}
	p.bytes = make([]byte, 0, size)
	p.records = make([]packedRecord, 0, len(r.answers))
	if !same {
		p.sums = make([]uint64, 0, len(r.answers))
	}
	p.addRecords(r.answers)
	if r.guarded != "" && len(p.records) > 0 {
		p.note = staleNote(r.guarded)
	}
	if len(p.records) == 0 && t.zone != reverseZone {
		at := len(p.bytes)
		p.bytes = binary.BigEndian.AppendUint16(p.bytes, uint16(0xc000|headerSize+len(name)-wireLength(t.domain)))
		p.bytes = appendFixed(p.bytes, dns.TypeSOA, s.negative, s.soa(t))
		p.authority = span{uint32(at), uint32(len(p.bytes) - at)}
	}
	return p
}

func (p *packed) addRecords(answers []answer) {
	glue := make(map[string]int32) // by the target's name: that says which address
	sum := uint64(0)
	for i := range answers {
		a := &answers[i]
		rec := packedRecord{span: p.add(a.rrtype, a.ttl, a.data), weight: a.weight, glue: -1, nameAt: uint16(10 + a.nameAt)}
		if a.glue.IsValid() {
			which, known := glue[string(a.data[a.nameAt:])]
			if !known {
				which = int32(len(p.glue))
				p.glue = append(p.glue, p.add(addressType(a.glue), a.ttl, a.glue.AsSlice()))
				glue[string(a.data[a.nameAt:])] = which
			}
			rec.glue = which
		}
		if a.host != "" {
			p.hosts = append(p.hosts, a.host)
		}
		p.records = append(p.records, rec)
		if sum += uint64(a.weight); p.sums != nil {
			p.sums = append(p.sums, sum)
		}
	}
}

func (p *packed) add(rrtype uint16, ttl uint32, data []byte) span {
	at := len(p.bytes)
	p.bytes = appendFixed(p.bytes, rrtype, ttl, data)
	return span{uint32(at), uint32(len(p.bytes) - at)}
}

// appendFixed appends a record of class IN without its name.
func appendFixed(b []byte, rrtype uint16, ttl uint32, data []byte) []byte {
	b = binary.BigEndian.AppendUint16(b, rrtype)
	b = binary.BigEndian.AppendUint16(b, dns.ClassINET)
	b = binary.BigEndian.AppendUint32(b, ttl)
	b = binary.BigEndian.AppendUint16(b, uint16(len(data)))
	return append(b, data...)
}

// wireLength is that of a name with its final dot, in a message.
func wireLength(name string) int { return len(name) + 1 }

// writer puts answers together. It belongs to one goroutine.
type writer struct {
	sampler *sampler
	given   []givenRecord
	glued   []bool
}

// givenRecord is a record that an answer has, and where in it.
type givenRecord struct{ record, at uint32 }

// frame is what of an answer does not come from its records.
type frame struct {
	limit  int // bytes of the answer at most
	ra     bool
	cookie []byte // what the cookie option says, nil for no option
	note   []byte // another option, whole; nil for none
}

// write appends the answer to q. A record that does not fit ends the answers, and
// TC says so; what does not fit of the additional section is left out without
// (RFC 2181 section 9). led is which record it gives if it gives one that leads
// elsewhere, else -1.
func (w *writer) write(b []byte, q *query, p *packed, f frame) (_ []byte, led int) {
	start := len(b)
	b = begin(b, q, p.rcode, p.authoritative, f.ra)
	end := start + f.limit - f.optSize(q)
	led = -1
	w.given = w.given[:0]
	truncated := false
	w.sampler.begin(p)
	for i, ok := w.sampler.next(); ok; i, ok = w.sampler.next() {
		rec := &p.records[i]
		if len(b)+2+int(rec.size) > end {
			truncated = true
			break
		}
		w.given = append(w.given, givenRecord{uint32(i), uint32(len(b) - start)})
		b = append(b, ofQuestion>>8, ofQuestion&0xff)
		b = append(b, p.part(rec.span)...)
		if p.hosts != nil {
			led = i
		}
		if p.one {
			break
		}
	}
	authority := 0
	if p.authority.size > 0 && len(b)+int(p.authority.size) <= end {
		b = append(b, p.part(p.authority)...)
		authority = 1
	}
	additional := 0
	if len(p.glue) > 0 {
		b, additional = w.writeGlue(b, start, end, p)
	}
	if q.edns {
		f.note = p.note
		if len(b)+len(f.note) > end {
			f.note, truncated = nil, true // explanations go first, and TC tells of it (RFC 8914 section 3)
		}
		b = f.appendOPT(b, q, 0)
		additional++
	}
	if truncated {
		b[start+2] |= 0x02
	}
	binary.BigEndian.PutUint16(b[start+6:], uint16(len(w.given)))
	binary.BigEndian.PutUint16(b[start+8:], uint16(authority))
	binary.BigEndian.PutUint16(b[start+10:], uint16(additional))
	return b, led
}

// writeGlue appends the addresses of the names in the records that were given.
func (w *writer) writeGlue(b []byte, start, end int, p *packed) (_ []byte, n int) {
	w.glued = grown(w.glued, len(p.glue))
	clear(w.glued)
	for _, g := range w.given {
		rec := &p.records[g.record]
		if rec.glue < 0 || w.glued[rec.glue] {
			continue
		}
		part := p.part(p.glue[rec.glue])
		at := g.at + 2 + uint32(rec.nameAt)
		if at > 0x3fff || len(b)+2+len(part) > end {
			break // a pointer does not reach further (RFC 1035 section 4.1.4)
		}
		w.glued[rec.glue] = true
		b = append(b, 0xc0|byte(at>>8), byte(at))
		b = append(b, part...)
		n++
	}
	return b, n
}

// begin appends header and question of the answer to q.
func begin(b []byte, q *query, rcode uint8, authoritative, ra bool) []byte {
	flags1 := q.message[2]&0x01 | 0x80 // RD as it came
	flags2 := q.message[3]&0x10 | rcode
	if authoritative {
		flags1 |= 0x04
	}
	if ra {
		flags2 |= 0x80
	}
	b = append(b, q.message[0], q.message[1], flags1, flags2, 0, 1, 0, 0, 0, 0, 0, 0)
	return append(b, q.message[headerSize:q.end]...)
}

func (f frame) optSize(q *query) int {
	switch {
	case !q.edns:
		return 0
	case f.cookie == nil:
		return optSize
	}
	return optSize + 4 + len(f.cookie)
}

// maxNote bounds the text of an explanation, in bytes, so that it leaves the records
// most of a packet.
const maxNote = 240

// staleNote is the option Extended DNS Error that says "stale answer", and why
// (RFC 8914 sections 2 and 4.4).
func staleNote(why string) []byte {
	if len(why) > maxNote {
		why = strings.ToValidUTF8(why[:maxNote], "") // a letter that was cut
	}
	b := binary.BigEndian.AppendUint16(nil, dns.EDNS0EDE)
	b = binary.BigEndian.AppendUint16(b, uint16(2+len(why)))
	b = binary.BigEndian.AppendUint16(b, dns.ExtendedErrorCodeStaleAnswer)
	return append(b, why...)
}

// appendOPT appends our OPT record. high is the upper part of the response code.
func (f frame) appendOPT(b []byte, q *query, high byte) []byte {
	do := byte(0)
	if q.do {
		do = 0x80
	}
	b = append(b, 0, 0, byte(dns.TypeOPT), advertisedUDP>>8, advertisedUDP&0xff, high, 0, do, 0)
	n := len(f.cookie)
	size := len(f.note)
	if n > 0 {
		size += 4 + n
	}
	b = append(b, byte(size>>8), byte(size))
	if n > 0 {
		b = append(b, 0, dns.EDNS0COOKIE, byte(n>>8), byte(n))
		b = append(b, f.cookie...)
	}
	return append(b, f.note...)
}

// plain appends an answer without records.
func plain(b []byte, q *query, rcode int, f frame) []byte {
	start := len(b)
	b = begin(b, q, uint8(rcode&0xf), false, f.ra)
	if q.edns {
		f.note = nil // there is no answer to explain
		b = f.appendOPT(b, q, byte(rcode>>4))
		b[start+11] = 1
	}
	return b
}

// refusal is the header of an answer without any section, for a question that was
// not read.
func refusal(b, question []byte, rcode int) []byte {
	b = append(b, question[:2]...)
	b = append(b, question[2]&0x79|0x80, byte(rcode)) // QR; the opcode and RD as they came
	return append(b, 0, 0, 0, 0, 0, 0, 0, 0)
}
