package proxy

import (
	"fmt"
	"net"
	"net/http"
	"sync/atomic"
	"testing"

	"github.com/weftmesh/weft"
)

// refuses is an address that nobody listens on.
func refuses(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

func TestWhatIsSeenOfEndpoints(t *testing.T) {
	var kicks atomic.Int32
	sick := server(t, func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(500) })
	m := newMeshOf(t, Config{OnUnreachable: func() { kicks.Add(1) }}, sick.URL)
	m.rule.Retry = weft.Retry{}
	m.publish()
	observed := func() string { return fmt.Sprint(m.proxy.Observed()) }
	call := func() {
		t.Helper()
		if resp, err := http.Get("http://" + m.addr); err == nil {
			_ = resp.Body.Close()
		}
		settled(t, m.proxy)
	}
	if got := observed(); got != "[]" {
		t.Errorf("before the first call: %s", got)
	}
	call()
	call()
	if got, want := observed(), fmt.Sprintf("[{%s 0 1}]", sick.URL); got != want { // an answer, if no good one
		t.Errorf("after two answers: %s, want %s", got, want)
	}
	call()
	if got := observed(); got != "[]" {
		t.Errorf("told again too soon: %s", got)
	}
	dead := refuses(t)
	m.endpoints(dead)
	call()
	call()
	if got, want := observed(), fmt.Sprintf("[{%s 2 0}]", dead); got != want {
		t.Errorf("after two refusals: %s, want %s", got, want)
	}
	if got := observed(); got != "[]" || kicks.Load() != 2 {
		t.Errorf("told twice: %s; kicked %d times", got, kicks.Load())
	}
	call()
	ln, err := net.Listen("tcp", dead)
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: http.NotFoundHandler()}
	go s.Serve(ln)
	defer s.Close()
	call()
	if got, want := observed(), fmt.Sprintf("[{%s 0 1}]", dead); got != want { // the refusal before it says no more
		t.Errorf("after a refusal and an answer: %s, want %s", got, want)
	}
}
