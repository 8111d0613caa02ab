package relay

import "net"

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
