package balance

import "math/bits"

// HashString is the hash for Query.Hash of a header, a cookie or an address: XXH64
// with seed 0, so that every process and every release says the same. It is no
// defence: whoever knows it can find keys that fall on one target.
func HashString(s string) uint64 { return xxh64(s) }

// HashBytes is HashString of the same bytes.
func HashBytes(b []byte) uint64 { return xxh64(b) }

// The primes of XXH64.
const (
	prime1 = 0x9E3779B185EBCA87
	prime2 = 0xC2B2AE3D27D4EB4F
	prime3 = 0x165667B19E3779F9
	prime4 = 0x85EBCA77C2B2AE63
	prime5 = 0x27D4EB2F165667C5
)

func xxh64[T string | []byte](s T) uint64 {
	var h uint64 = prime5
	n := len(s)
	i := 0
	if n >= 32 {
		seed := uint64(0)
		a, b, c, d := seed+prime1+prime2, seed+prime2, seed, seed-prime1
		for ; i+32 <= n; i += 32 {
			a = lane(a, load64(s[i:]))
			b = lane(b, load64(s[i+8:]))
			c = lane(c, load64(s[i+16:]))
			d = lane(d, load64(s[i+24:]))
		}
		h = bits.RotateLeft64(a, 1) + bits.RotateLeft64(b, 7) + bits.RotateLeft64(c, 12) + bits.RotateLeft64(d, 18)
		for _, v := range [...]uint64{a, b, c, d} {
			h = (h^lane(0, v))*prime1 + prime4
		}
	}
	h += uint64(n)
	for ; i+8 <= n; i += 8 {
		h = bits.RotateLeft64(h^lane(0, load64(s[i:])), 27)*prime1 + prime4
	}
	if i+4 <= n {
		v := uint64(s[i]) | uint64(s[i+1])<<8 | uint64(s[i+2])<<16 | uint64(s[i+3])<<24
		h = bits.RotateLeft64(h^v*prime1, 23)*prime2 + prime3
		i += 4
	}
	for ; i < n; i++ {
		h = bits.RotateLeft64(h^uint64(s[i])*prime5, 11) * prime1
	}
	h = (h ^ h>>33) * prime2
	h = (h ^ h>>29) * prime3
	return h ^ h>>32
}

func lane(acc, v uint64) uint64 { return bits.RotateLeft64(acc+v*prime2, 31) * prime1 }

func load64[T string | []byte](s T) uint64 {
	_ = s[7]
	return uint64(s[0]) | uint64(s[1])<<8 | uint64(s[2])<<16 | uint64(s[3])<<24 |
		uint64(s[4])<<32 | uint64(s[5])<<40 | uint64(s[6])<<48 | uint64(s[7])<<56
}

// golden is 2^64 divided by the golden ratio: its multiples are spread over the 64-bit
// numbers as evenly as multiples can be.
const golden = 0x9E3779B97F4A7C15

// mix turns any 64 bits into 64 that look random; different ones stay different
// (the finalizer of SplitMix64).
func mix(x uint64) uint64 {
	x = (x ^ x>>30) * 0xBF58476D1CE4E5B9
	x = (x ^ x>>27) * 0x94D049BB133111EB
	return x ^ x>>31
}
