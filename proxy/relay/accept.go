package relay

import (
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"github.com/weftmesh/weft/wire/proxyproto"
)

// Accepted is a connection behind a PROXY header.
type Accepted struct {
	net.Conn                   // without the header; some of its bytes may be in rest
	Header   proxyproto.Header // as the proxy in front sent it

	remote net.Addr

	mu   sync.Mutex
	rest []byte // what came with the header and was not read yet
}

// AcceptProxy reads the PROXY header (version 1 or 2) with which conn must begin,
// within timeout. What the client sent behind it is not lost. The caller decides
// whose headers to believe: call it for connections from trusted prefixes only, and
// for these always. When it fails (*proxyproto.Error, a timeout, io.EOF or
// io.ErrUnexpectedEOF), close conn.
func AcceptProxy(conn net.Conn, timeout time.Duration) (*Accepted, error) {
	if err := conn.SetReadDeadline(time.Now().Add(timeout)); err != nil {
		return nil, err
	}
	var buf [proxyproto.DefaultLimit]byte
	have := 0
	for {
		n, err := conn.Read(buf[have:])
		have += n
		header, size, parseErr := proxyproto.Parse(buf[:have])
		switch {
		case parseErr == nil:
			_ = conn.SetReadDeadline(time.Time{}) // if it fails, reading will tell
			return newAccepted(conn, header, buf[:have], size), nil
		case !errors.Is(parseErr, proxyproto.ErrIncomplete):
			return nil, parseErr
		case err == io.EOF && have > 0:
			return nil, io.ErrUnexpectedEOF
		case err != nil:
			return nil, err
		}
	}
}

// newAccepted keeps a copy of no more than what is needed.
func newAccepted(conn net.Conn, header proxyproto.Header, read []byte, size int) *Accepted {
	a := &Accepted{Conn: conn, Header: header, remote: conn.RemoteAddr()}
	switch {
	case header.Source.IsValid():
		a.remote = net.TCPAddrFromAddrPort(header.Source)
	case header.Unix:
		a.remote = &net.UnixAddr{Name: string(header.SourcePath), Net: "unix"}
	}
	if len(header.TLVs) > 0 || header.Unix { // they point into what was read
		read = append([]byte(nil), read...)
		a.Header, _, _ = proxyproto.Parse(read)
		a.rest = read[size:]
	} else if size < len(read) {
		a.rest = append([]byte(nil), read[size:]...)
	}
	return a
}

// RemoteAddr is the client's address as the header tells it, and the proxy's own
// when it does not (LOCAL, UNKNOWN).
func (a *Accepted) RemoteAddr() net.Addr { return a.remote }

// Read reads what the client said.
func (a *Accepted) Read(b []byte) (int, error) {
	a.mu.Lock()
	if len(a.rest) > 0 {
		n := copy(b, a.rest)
		a.rest = a.rest[n:]
		a.mu.Unlock()
		return n, nil
	}
	a.rest = nil
	a.mu.Unlock()
	return a.Conn.Read(b)
}

// CloseWrite ends what is said to the client.
func (a *Accepted) CloseWrite() error {
	if passed, err := closeWrite(a.Conn); passed || err != nil {
		return err
	}
	return errors.ErrUnsupported
}

// NetConn is the connection beneath. Bytes that came with the header are not in it.
func (a *Accepted) NetConn() net.Conn { return a.Conn }
