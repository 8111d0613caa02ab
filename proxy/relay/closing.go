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

// reset closes c so that its peer cannot take it for a clean end: with RST instead
// of FIN, and without TLS's farewell. What the kernel has not sent yet is lost.
func reset(c net.Conn) {
	for under := c; ; {
		if tcp, ok := under.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0)
			_ = tcp.Close() // before TLS can say goodbye
			break
		}
		wrapper, ok := under.(interface{ NetConn() net.Conn }) // *tls.Conn has it
		if !ok {
			break
		}
		under = wrapper.NetConn()
	}
	_ = c.Close()
}
