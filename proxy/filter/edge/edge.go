// Package edge is the filter that stands where requests enter the mesh: it takes
// away what clients have no business to say, and notes who they are.
//
// Removed: x-weft-* (our proxies' words to each other) and
// x-forwarded-client-cert, in every spelling with "_" for "-", because many
// frameworks read both as one. Added: the client's address at the end of
// x-forwarded-for, and x-forwarded-proto.
package edge

import (
	"github.com/weftmesh/weft/proxy"
)

// Filter is stateless; its zero value is ready.
type Filter struct{}

// Request implements proxy.Filter.
func (Filter) Request(x *proxy.Exchange) *proxy.Answer {
	x.DropFunc(func(name string) bool {
		return spoof(name, "x-weft-", true) || spoof(name, "x-forwarded-client-cert", false) ||
			spoof(name, "x-forwarded-proto", false)
	})
	client := x.Peer()
	if before, ok := x.Header("x-forwarded-for"); ok {
		x.Drop("x-forwarded-for")
		client = before + ", " + client
	}
	x.Add("x-forwarded-for", client)
	if x.Secure() {
		x.Add("x-forwarded-proto", "https")
	} else {
		x.Add("x-forwarded-proto", "http")
	}
	return nil
}

// spoof reports whether name is want (or begins with it), with "_" read as "-".
func spoof(name, want string, prefix bool) bool {
	if len(name) < len(want) || !prefix && len(name) != len(want) {
		return false
	}
	for i := range len(want) {
		c := name[i]
		if c == '_' {
			c = '-'
		}
		if c|0x20 != want[i]|0x20 || (c == '-') != (want[i] == '-') {
			return false
		}
	}
	return true
}
