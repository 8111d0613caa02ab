package cluster

import (
	"strings"
	"testing"

	"github.com/weftmesh/weft"
)

func TestControlAddressAsOthersReachIt(t *testing.T) {
	for _, tt := range []struct{ control, peer, want string }{
		{"127.0.0.1:8502", "127.0.0.1:8503", "127.0.0.1:8502"},
		{"10.0.0.1:8502", "10.0.0.1:8503", "10.0.0.1:8502"},
		{"0.0.0.0:8502", "10.0.0.1:8503", "10.0.0.1:8502"},
		{"[::]:8502", "[fd00::1]:8503", "[fd00::1]:8502"},
		{"127.0.0.1:8502", "localhost:8503", "127.0.0.1:8502"},
		{"server-1.example:8502", "10.0.0.1:8503", "server-1.example:8502"},
	} {
		if got, err := reachable(tt.control, tt.peer); got != tt.want || err != nil {
			t.Errorf("%s beside %s: %s %v, want %s", tt.control, tt.peer, got, err, tt.want)
		}
	}
	_, err := reachable("127.0.0.1:8502", "10.0.0.1:8503")
	if weft.KindOf(err) != weft.Invalid || !strings.Contains(err.Error(), "--control 10.0.0.1:8502") {
		t.Errorf("a loopback address beside a peer's that is none: %v", err)
	}
}
