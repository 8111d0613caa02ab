package node

import (
	"context"
	"testing"

	"github.com/weftmesh/weft/control/controltest"
)

func TestMembersSayWhoDoesNotAnswer(t *testing.T) {
	servers := startCluster(t, "a", "b", "c")
	away := func() (names []string) {
		list, err := servers[0].api.Servers(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range list {
			if s.Away != "" {
				names = append(names, s.Name)
			}
		}
		return names
	}
	if got := away(); got != nil {
		t.Errorf("%v do not answer, and all are there", got)
	}
	servers[2].stop()
	controltest.Eventually(t, func() string {
		if got := away(); len(got) != 1 || got[0] != "c" {
			return "c has been stopped, and is not said to be away"
		}
		return ""
	})
}

func TestANodeIsWhereTheOthersReachIt(t *testing.T) {
	c := ServerConfig{Node: "a", Peer: "localhost:" + portOf(freePort(t))}
	if n := startMember(t, c).registry.LocalNode(); n.Address != "localhost" {
		t.Errorf("the node's address is %s, want the peer's host", n.Address)
	}
}
