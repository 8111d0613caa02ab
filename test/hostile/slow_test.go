package hostile

import (
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"
)

// slowClients is how many connections a slow attacker holds.
const slowClients = 5000

// siege holds connections to a gateway and drips bytes into all of them until they
// are closed.
type siege struct {
	conns []net.Conn
}

// layTo opens connections and begins a request on each.
func layTo(t *testing.T, address, begin string, clients int) *siege {
	t.Helper()
	s := &siege{}
	t.Cleanup(s.lift)
	for range clients {
		c, err := net.DialTimeout("tcp", address, 10*time.Second)
		if err != nil {
			t.Fatalf("connection %d: %v", len(s.conns), err)
		}
		s.conns = append(s.conns, c)
		if _, err := io.WriteString(c, begin); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

func (s *siege) lift() {
	for _, c := range s.conns {
		_ = c.Close()
	}
}

// drip sends a byte on every connection each second, until all are closed by the
// other side, or patience ends. It returns how many are left. What comes is read
// when read is set.
func (s *siege) drip(what string, read bool, patience time.Duration) (left int) {
	open := s.conns
	buf := make([]byte, 4096)
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for deadline := time.Now().Add(patience); len(open) > 0 && time.Now().Before(deadline); <-tick.C {
		var still []net.Conn
		for _, c := range open {
			_ = c.SetDeadline(time.Now().Add(time.Second))
			if what != "" {
				if _, err := io.WriteString(c, what); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
					continue
				}
			}
			if read && ended(c, buf) {
				continue
			}
			still = append(still, c)
		}
		open = still
	}
	return len(open)
}

// ended reads what is there and reports whether the other side has closed.
func ended(c net.Conn, buf []byte) bool {
	for {
		_ = c.SetReadDeadline(time.Now().Add(20 * time.Microsecond))
		_, err := c.Read(buf)
		if err != nil {
			return !errors.Is(err, os.ErrDeadlineExceeded)
		}
	}
}

// TestSlowHeads: slowloris. A head that never ends is given up, whatever trickles in.
func TestSlowHeads(t *testing.T) {
	s := newScene(t)
	enemy := layTo(t, s.gateway.HTTP, "GET / HTTP/1.1\r\nHost: a\r\nX-Slow: ", slowClients)
	if left := enemy.drip("a", true, 60*time.Second); left > 0 {
		t.Errorf("%d of %d slow heads are still open", left, slowClients)
	}
	s.over("head_timeout", "overload_connection")
}

// TestSlowBodies: a request that says how much it will send, and hardly does.
func TestSlowBodies(t *testing.T) {
	s := newScene(t)
	enemy := layTo(t, s.gateway.HTTP, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n", slowClients)
	if left := enemy.drip("a", true, 90*time.Second); left > 0 {
		t.Errorf("%d of %d slow bodies are still open", left, slowClients)
	}
	s.over("slow_client", "overload_connection", "overload_request")
}

// TestSlowChunks: the same without a length.
func TestSlowChunks(t *testing.T) {
	s := newScene(t)
	enemy := layTo(t, s.gateway.HTTP, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", 1000)
	if left := enemy.drip("1\r\na\r\n", true, 90*time.Second); left > 0 {
		t.Errorf("%d slow bodies are still open", left)
	}
	s.over("slow_client", "overload_connection", "overload_request")
}

// TestSilentConnections: nothing is sent at all. They may stay for the time of an
// idle connection, but they must cost little and lock nobody out.
func TestSilentConnections(t *testing.T) {
	s := newScene(t)
	before := s.gateway.Memory()
	layTo(t, s.gateway.HTTP, "", slowClients)
	s.honest.after(t, 500)
	if each := (s.gateway.Memory() - before) / slowClients; each > 16<<10 {
		t.Errorf("a connection that says nothing costs %d bytes", each)
	}
	s.over()
}

// TestHugeHeads are refused with the right status, and the connection is closed.
func TestHugeHeads(t *testing.T) {
	s := newScene(t)
	for _, c := range []struct{ name, request, status string }{
		{"a target of 100 KB", "GET /" + strings.Repeat("a", 100_000) + " HTTP/1.1\r\nHost: a\r\n\r\n", "414"},
		{"a field of 100 KB", "GET / HTTP/1.1\r\nHost: a\r\nX: " + strings.Repeat("a", 100_000) + "\r\n\r\n", "431"},
		{"5,000 fields", "GET / HTTP/1.1\r\nHost: a\r\n" + strings.Repeat("X: a\r\n", 5000) + "\r\n", "431"},
		{"an endless method", strings.Repeat("A", 100_000), "501"},
	} {
		t.Run(c.name, func(t *testing.T) {
			conn := dialTCP(t, s.gateway.HTTP)
			_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
			_, _ = io.WriteString(conn, c.request) // it may be cut off in the middle
			got, err := io.ReadAll(conn)
			if err != nil || !strings.HasPrefix(string(got), "HTTP/1.1 "+c.status) {
				t.Errorf("got %.100q, %v; want %s", got, err, c.status)
			}
		})
	}
	s.over("head_too_large", "target_too_long", "too_many_fields")
}
