package dns

import (
	"encoding/binary"

	"github.com/miekg/dns"

	"github.com/weftmesh/weft"
)

// Service bindings (RFC 9460): where and how a service is spoken to.

// Keys of their parameters (RFC 9460 section 14.3.2).
const (
	alpnKey = 1
	portKey = 3
)

// bindings adds a SVCB or HTTPS record for each way of speaking to a service. When
// all instances are spoken to alike, that is one, for the name itself.
//
// HTTPS records make a client use TLS, so only instances whose protocol is TLS have
// them.
func bindings(r *result, qtype uint16, list []spot, ttl uint32, name func(spot) string) {
	var speaking []spot
	alike := true
	for _, sp := range list {
		if qtype == dns.TypeHTTPS && sp.in.Protocol != weft.TLS {
			continue
		}
		speaking = append(speaking, sp)
		first := speaking[0]
		alike = alike && sp.port == first.port && alpn(sp.in.Protocol) == alpn(first.in.Protocol) && sp.addr.IsValid()
	}
	if len(speaking) < len(list) {
		alike = false // the name's addresses are those of others, too
	}
	for _, sp := range speaking {
		target := name(sp)
		if alike {
			target = "" // the name that was asked for (RFC 9460 section 2.5.2)
		}
		a := answer{rrtype: qtype, ttl: ttl, weight: sp.weight, data: binding(sp, target), nameAt: 2}
		if alike {
			r.answers = append(r.answers, a)
			return
		}
		a.glue = sp.addr
		r.answers = append(r.answers, a)
	}
}

// binding is the data of a SVCB record: priority, target, parameters by their keys.
func binding(sp spot, target string) []byte {
	data, _ := appendName([]byte{0, 1}, target)
	if id := alpn(sp.in.Protocol); id != "" {
		data = append(data, 0, alpnKey, 0, byte(1+len(id)), byte(len(id)))
		data = append(data, id...)
	}
	if sp.port != 0 {
		data = append(data, 0, portKey, 0, 2)
		data = binary.BigEndian.AppendUint16(data, uint16(sp.port))
	}
	return data
}

// alpn is the name that TLS has for a protocol, "" when it has none.
func alpn(p weft.Protocol) string {
	switch p {
	case weft.HTTP:
		return "http/1.1"
	case weft.HTTP2, weft.GRPC:
		return "h2"
	}
	return ""
}
