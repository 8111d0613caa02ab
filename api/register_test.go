package api

import (
	"net/http"
	"testing"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/client"
)

func TestALeaseMovesToAnotherServer(t *testing.T) {
	h := openHouse(t)
	if _, err := h.registry.RegisterNode(t.Context(), weft.Node{Name: "first-server", Address: "127.0.0.1"}); err != nil {
		t.Fatal(err)
	}
	const register = `{"service":"order-service","id":"o1","port":3000}`
	for _, tt := range []struct{ asked, node string }{
		{"first-server", "first-server"},
		{"gone-server", "laptop"}, // the node that this server stands on
	} {
		status, body := h.do(t, "POST", "/api/instances?node="+tt.asked, register, nil)
		var leased client.Leased
		unmarshal(t, body, &leased)
		if status != http.StatusOK || leased.Node != tt.node {
			t.Errorf("registered on %s: status %d %s, want node %s", tt.asked, status, body, tt.node)
		}
		if status, body := h.do(t, "PUT", "/api/instances/o1/heartbeat?node="+leased.Node, `{}`, nil); status != http.StatusNoContent {
			t.Errorf("heartbeat for %s: status %d %s", leased.Node, status, body)
		}
		if status, body := h.do(t, "DELETE", "/api/instances/o1?node="+leased.Node, "", nil); status != http.StatusOK {
			t.Errorf("drain of %s: status %d %s", leased.Node, status, body)
		}
	}
	if all, _ := h.registry.AllInstances(); len(all) != 0 {
		t.Errorf("%d instances are left", len(all))
	}
}
