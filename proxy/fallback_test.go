package proxy

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/weftmesh/weft"
)

// What is answered in place of a failure, and what is not.

// backup adds a service to the mesh, and returns its server's end.
func (m *mesh) backup(h http.HandlerFunc) {
	s := &weft.Service{Name: weft.NewServiceName("", "backup"), Policy: weft.TrafficPolicy{}}
	s.Endpoints = []weft.Endpoint{{ID: "backup", Address: strings.TrimPrefix(server(m.t, h).URL, "http://"), Weight: 1}}
	m.others = append(m.others, s)
}

func ill(status int) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) { http.Error(w, "ill", status) }
}

// A cookie that leads to one of the service's endpoints means nothing where another
// service answers.
func TestFallbackOfStickyService(t *testing.T) {
	m := newMesh(t, server(t, ill(500)).URL)
	m.backup(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "backup") })
	m.svc.Policy = weft.TrafficPolicy{LoadBalancer: weft.RingHash, Hash: &weft.Hash{Cookie: "place", CookieTTL: time.Hour}}
	m.policy(`{"fallback":{"service":"backup"}}`)
	resp, body := m.ask("GET", "/", nil)
	if resp.StatusCode != 200 || body != "backup" || len(resp.Cookies()) != 0 {
		t.Errorf("%d %q %v", resp.StatusCode, body, resp.Header)
	}
}
