package proxy

import (
	"io"
	"log/slog"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/weftmesh/weft/proxy/overload"
)

func TestFullProxyTurnsAway(t *testing.T) {
	began, release := make(chan struct{}), make(chan struct{})
	up := server(t, func(w http.ResponseWriter, r *http.Request) {
		began <- struct{}{}
		<-release
		io.WriteString(w, "done")
	})
	load := overload.Start(overload.Limits{Connections: 2, Streams: 1, MemoryBytes: 1 << 40}, slog.New(slog.DiscardHandler))
	t.Cleanup(load.Close) // after the proxy
	m := newMeshOf(t, Config{Load: load}, up.URL)

	_, first := m.raw("GET / HTTP/1.1\r\nHost: shop\r\n\r\n")
	<-began
	_, second := m.raw("GET / HTTP/1.1\r\nHost: shop\r\n\r\n")
	resp, body := m.read(second, "GET")
	if resp.StatusCode != 503 || resp.Header.Get("Retry-After") == "" || resp.Header.Get(reasonHeader) != "overload" {
		t.Errorf("second request: %d %v %q", resp.StatusCode, resp.Header, body)
	}
	third, err := net.Dial("tcp", m.addr)
	if err == nil {
		_ = third.SetDeadline(time.Now().Add(10 * time.Second))
		if b, err := io.ReadAll(third); len(b) > 0 {
			t.Errorf("third connection got %q, %v", b, err)
		}
		third.Close()
	}
	close(release)
	if resp, body := m.read(first, "GET"); resp.StatusCode != 200 || body != "done" {
		t.Errorf("what was in flight: %d %q", resp.StatusCode, body)
	}
}
