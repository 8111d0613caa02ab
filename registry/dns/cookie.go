package dns

import (
	"crypto/rand"
	"crypto/subtle"
	"encoding/binary"
	"math/bits"
	"net/netip"
)

// Cookies (RFC 7873) in the form of RFC 9018: who sends ours back has the address
// that it says it has, and may be sent more than it asked with.
const (
	clientCookie = 8  // bytes
	serverCookie = 16 // version, 3 reserved bytes, time, hash
	cookieOld    = 3600
	cookieStale  = 1800 // then a new one is given
	cookieAhead  = 300
)

// baker makes cookies. Its secret lives as long as the process: a client whose
// cookie is of another one gets a new one with its next answer.
type baker struct{ k0, k1 uint64 }

func newBaker() baker {
	var key [16]byte
	rand.Read(key[:]) // never fails
	return bakerOf(key)
}

func bakerOf(key [16]byte) baker {
	return baker{binary.LittleEndian.Uint64(key[:8]), binary.LittleEndian.Uint64(key[8:])}
}

// fill writes into server the cookie that a client at from gets at a time, which
// is in seconds.
func (k baker) fill(server *[serverCookie]byte, client []byte, from netip.Addr, now uint32) {
	var in [clientCookie + 8 + 16]byte
	n := copy(in[:], client[:clientCookie])
	server[0], server[1], server[2], server[3] = 1, 0, 0, 0
	binary.BigEndian.PutUint32(server[4:], now)
	n += copy(in[n:], server[:8])
	if from = from.Unmap(); from.Is4() {
		a := from.As4()
		n += copy(in[n:], a[:])
	} else {
		a := from.As16()
		n += copy(in[n:], a[:])
	}
	binary.LittleEndian.PutUint64(server[8:], sipHash(k.k0, k.k1, in[:n]))
}

// proves says whether a cookie option holds a cookie of ours, for this client, that
// is not too old; and whether it is so new that it can be given again.
func (k baker) proves(option []byte, from netip.Addr, now uint32) (ours, fresh bool) {
	if len(option) != clientCookie+serverCookie || option[clientCookie] != 1 {
		return false, false
	}
	given := option[clientCookie:]
	at := binary.BigEndian.Uint32(given[4:])
	var want [serverCookie]byte
	k.fill(&want, option, from, at)
	age := int32(now - at) // serial arithmetic (RFC 9018 section 4.3)
	if age > cookieOld || age < -cookieAhead || subtle.ConstantTimeCompare(want[8:], given[8:]) == 0 {
		return false, false
	}
	return true, age <= cookieStale
}

// sipHash is SipHash-2-4.
func sipHash(k0, k1 uint64, b []byte) uint64 {
	v0, v1, v2, v3 := k0^0x736f6d6570736575, k1^0x646f72616e646f6d, k0^0x6c7967656e657261, k1^0x7465646279746573
	round := func() {
		v0 += v1
		v1 = bits.RotateLeft64(v1, 13) ^ v0
		v0 = bits.RotateLeft64(v0, 32)
		v2 += v3
		v3 = bits.RotateLeft64(v3, 16) ^ v2
		v0 += v3
		v3 = bits.RotateLeft64(v3, 21) ^ v0
		v2 += v1
		v1 = bits.RotateLeft64(v1, 17) ^ v2
		v2 = bits.RotateLeft64(v2, 32)
	}
	last := uint64(len(b)) << 56
	for ; len(b) >= 8; b = b[8:] {
		m := binary.LittleEndian.Uint64(b)
		v3 ^= m
		round()
		round()
		v0 ^= m
	}
	for i, c := range b {
		last |= uint64(c) << (8 * i)
	}
	v3 ^= last
	round()
	round()
	v0 ^= last
	v2 ^= 0xff
	for range 4 {
		round()
	}
	return v0 ^ v1 ^ v2 ^ v3
}
