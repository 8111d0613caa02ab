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
