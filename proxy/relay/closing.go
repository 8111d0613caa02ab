package relay

import (
	"errors"
	"io"
	"net"
	"sync/atomic"
)

// closeWrite tells the peer of c that no more bytes follow, when c has a way to.
func closeWrite(c net.Conn) (passed bool, err error) {
	half, ok := c.(interface{ CloseWrite() error })
	if !ok {
		return false, nil
	}
	return true, half.CloseWrite()
}

// socket returns the TCP socket beneath c, nil when there is none or it is hidden.
// *tls.Conn shows its own.
func socket(c net.Conn) *net.TCPConn {
	for {
		if tcp, ok := c.(*net.TCPConn); ok {
			return tcp
		}
		wrapper, ok := c.(interface{ NetConn() net.Conn })
		if !ok {
			return nil
		}
		c = wrapper.NetConn()
	}
}

// reset closes c so that its peer cannot take it for a clean end: with RST instead
// of FIN, and without TLS's farewell. What the kernel has not sent yet is lost.
func reset(c net.Conn) {
	if tcp := socket(c); tcp != nil {
		_ = tcp.SetLinger(0)
		_ = tcp.Close() // before TLS can say goodbye
	}
	_ = c.Close()
}

// Abort closes c as a relay does when what was said is not all: its peer sees that.
func Abort(c net.Conn) { reset(c) }

// Cuttable is the socket below a TLS connection whose peer always says when it ends
// (close_notify, RFC 8446 §6.1), as other sidecars do. A peer that was killed does
// not, and crypto/tls reports io.EOF for both. With Cuttable beneath, a relay takes
// the second for what it is: a reset.
type Cuttable struct {
	net.Conn
	ended atomic.Bool // the socket's end was read: TLS had not ended before
}

// Read implements net.Conn.
func (c *Cuttable) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if err == io.EOF {
		c.ended.Store(true)
	}
	return n, err
}

// NetConn is the socket.
func (c *Cuttable) NetConn() net.Conn { return c.Conn }

// errCut is the end of a TLS connection that was not announced.
var errCut = errors.New("the TLS connection was cut off")

// wasCut reports that c's io.EOF was not announced.
func wasCut(c net.Conn) bool {
	wrapper, ok := c.(interface{ NetConn() net.Conn })
	if !ok {
		return false
	}
	below, ok := wrapper.NetConn().(*Cuttable)
	return ok && below.ended.Load()
}
