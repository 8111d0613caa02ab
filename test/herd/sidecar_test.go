package herd

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/weftmesh/weft/test/world"
)

// ServeHTTP makes the service an application, whose process dies as far as its
// clients can tell: every connection is reset, and every new one too.
func (s *service) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if s.arrive() {
		return
	}
	conn, _, err := w.(http.Hijacker).Hijack()
	if err != nil {
		return
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	_ = conn.Close()
}

// throughASidecar is the same as inVirtualTime for one program whose sidecar has the
// policy; the service is away for a shorter time.
func throughASidecar(t *testing.T, retry string) (ratio float64) {
	t.Helper()
	const dies, down, watch = 3 * time.Second, 2500 * time.Millisecond, 3 * time.Second
	routes := http.NewServeMux()
	routes.HandleFunc("/warm", func(http.ResponseWriter, *http.Request) {})
	app := httptest.NewServer(routes)
	defer app.Close()
	w := world.New(t)
	w.Register("away", "away-1", app.Listener.Addr().String())
	w.Apply(`
apiVersion: weft.dev/v1
kind: ResiliencePolicy
metadata: {name: away}
spec:
  targetRef: {kind: Service, name: away}
  retry: ` + retry)
	_, door := w.Caller("herd", "away")
	world.Eventually(t, 10*time.Second, "the sidecar", world.Answers("http://"+door+"/warm"))

	transport := &http.Transport{MaxIdleConnsPerHost: 4 * clients}
	defer transport.CloseIdleConnections()
	web := &http.Client{Transport: transport, Timeout: 30 * time.Second}
	s := newService(dies, down) // its time begins
	routes.Handle("/", s)
	died := make(chan struct{})
	go func() {
		defer close(died)
		s.die()
	}()
	herd(s, s.back+watch, func(int) {
		if resp, err := web.Get("http://" + door + "/"); err == nil {
			_, _ = io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
		}
	})
	<-died
	if n := s.peak(0, dies); n == 0 {
		t.Error("nobody came")
	}
	return float64(s.peak(s.back, s.back+watch)) / float64(steady)
}

// What a machine that does other things as well can tell: without jitter and budget
// the herd comes back as one, and with both it does not.
func TestTheHerdThroughASidecar(t *testing.T) {
	wild, tame := throughASidecar(t, eager), throughASidecar(t, polite)
	said := fmt.Sprintf("the peak is %.2f × the steady state without jitter and budget, and %.2f × with both", wild, tame)
	t.Log(said)
	if tame > wild/2 {
		t.Error(said)
	}
}
