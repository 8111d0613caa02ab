package proxy

import (
	"crypto/rand"
	"encoding/base64"
	"io"
	"net"
	"time"

	"github.com/weftmesh/weft/proxy/mux"
	"github.com/weftmesh/weft/proxy/relay"
	"github.com/weftmesh/weft/wire/http1"
)

// Upgrades: a request that asks to speak something else from here on, by Upgrade
// in HTTP/1 or by extended CONNECT in HTTP/2 (RFC 8441). Only what is listed here
// is passed on. HTTP/2 is not: a client that could upgrade to it would speak to
// the application past all filters. The header is then as if it had not been sent.

// websocket is the one protocol that may be asked for (RFC 6455).
const websocket = "websocket"

// tunnelIdle is how long an upgraded connection may be silent. Applications
// that hold one open send pings more often than that.
const tunnelIdle = time.Hour

// prepareUpgrade decides whether the request asks for another protocol and may.
func (x *Exchange) prepareUpgrade() *Answer {
	h := &x.head
	if x.client.http2() {
		protocol := x.h2.st.Protocol()
		switch {
		case len(protocol) == 0:
			return nil
		case string(protocol) != websocket:
			return x.unserved(501, "upgrade", "the protocol "+string(protocol)+" is not passed on")
		}
		h.Method, h.Form = methodGET, http1.Origin // as everybody else will see it
		h.Framing, h.Length = http1.NoBody, -1     // the stream's data is the tunnel's
		dropFields(&h.Head, "sec-websocket-key")   // it is not used there; the application gets one of ours
		x.upgrade = true
		return nil
	}
	x.upgrade = equalFold(h.Upgrade, websocket) && string(h.Method) == "GET" && h.Framing == http1.NoBody
	return nil
}

var methodGET = []byte("GET")

// appendUpgrade appends what asks the application for the protocol.
func (x *Exchange) appendUpgrade(dst []byte) []byte {
	dst = append(dst, "Connection: Upgrade\r\nUpgrade: websocket\r\n"...)
	if x.client.http2() { // there the key is not used, RFC 8441 §5
		var key [16]byte
		_, _ = rand.Read(key[:])
		dst = base64.StdEncoding.AppendEncode(append(dst, "Sec-WebSocket-Key: "...), key[:])
		dst = append(dst, "\r\n"...)
	}
	return dst
}

// tunnel passes the 101 on and then bytes both ways until both sides are done.
func (x *Exchange) tunnel(pl *plan, u *link) {
	x.record.Status = 101
	u.setDeadline(time.Time{})
	client, err := x.accept(pl)
	if err != nil {
		x.record.Reason = "client_gone"
		return
	}
	x.join(client, relay.Side{Conn: u.sock, Already: u.in[u.r:u.w]}, tunnelIdle)
	u.r, u.w = 0, 0
}

// accept tells the client that its protocol begins.
func (x *Exchange) accept(pl *plan) (relay.Side, error) {
	r := &x.response
	if x.client.http2() {
		dropFields(&r.Head, "sec-websocket-accept")
		x.lines = x.appendResponse(x.lines[:0], pl, true, false)
		side := relay.Side{Conn: &streamConn{Conn: x.conn.sock, st: x.h2.st}}
		x.record.Status = 200
		x.h2.st.LetRest()
		return side, x.h2.st.SendResponse(200, x.lines, nil, false)
	}
	out := http1.AppendStatusLine(x.takeOut()[:0], r.Status, r.Reason)
	out = x.appendResponse(out, pl, true, false)
	out = append(out, "Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n"...)
	_, err := x.conn.sock.Write(out)
	return relay.Side{Conn: x.conn.sock, Already: x.conn.in[x.conn.r:x.conn.w]}, err
}

// streamConn is a stream as a connection: what a relay reads and writes.
type streamConn struct {
	net.Conn // addresses only
	st       *mux.Stream
	rest     []byte
	ended    bool
}

func (s *streamConn) Read(p []byte) (n int, err error) {
	for len(s.rest) == 0 {
		if s.rest, err = s.st.Next(); err != nil {
			return 0, err
		}
	}
	n = copy(p, s.rest)
	s.rest = s.rest[n:]
	return n, nil
}

func (s *streamConn) Write(p []byte) (int, error) {
	if err := s.st.Write(p, false); err != nil {
		return 0, err
	}
	return len(p), nil
}

// CloseWrite passes the end of one direction on.
func (s *streamConn) CloseWrite() error {
	if s.ended {
		return nil
	}
	s.ended = true
	return s.st.Write(nil, true)
}

// Close gives up both directions, if they are not over.
func (s *streamConn) Close() error {
	s.st.Interrupt()
	return nil
}

// SetDeadline and its kin bound both directions: a relay sets them to end one that
// nobody needs any more.
func (s *streamConn) SetDeadline(t time.Time) error      { s.st.SetDeadline(t); return nil }
func (s *streamConn) SetReadDeadline(t time.Time) error  { s.st.SetDeadline(t); return nil }
func (s *streamConn) SetWriteDeadline(t time.Time) error { s.st.SetDeadline(t); return nil }

var _ io.ReadWriteCloser = (*streamConn)(nil)
