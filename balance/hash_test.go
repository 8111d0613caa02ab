package balance

import (
	"strings"
	"testing"
)

// Made by another implementation of XXH64. If one of these changes, sessions move to
// other instances with the next release.
func TestHashIsStable(t *testing.T) {
	for text, want := range map[string]uint64{
		"":              0xef46db3751d8e999,
		"a":             0xd24ec4f1a98c6e5b,
		"abc":           0x44bc2cf5ad770999,
		"abcd":          0xde0327b0d25d92cc,
		"order-service": 0x60c059096201745d,
		"10.0.0.1:8080": 0xcb972177068eb685,
		"session=8f14e45fceea167a5a36dedd4bea2543": 0x6063e970c5e55f47,
		"0123456789abcdef0123456789abcdef":         0x642a94958e71e6c5,
		strings.Repeat("weft", 25):                 0xc7453ea810dc29fd,
	} {
		if got := HashString(text); got != want {
			t.Errorf("HashString(%q) = %#x, want %#x", text, got, want)
		}
		if got := HashBytes([]byte(text)); got != want {
			t.Errorf("HashBytes(%q) = %#x, want %#x", text, got, want)
		}
	}
}
