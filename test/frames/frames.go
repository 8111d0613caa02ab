// Package frames is HTTP/2 frame by frame, for judges that have to send what no
// library sends and to see what no library shows. It does what it is told and
// checks nothing: what is right is the judge's business.
//
//	c, err := frames.Dial(address, nil)
//	err = c.Request(1, true, "GET", "/", "te", "trailers")
//	r, err := c.Response(1)
package frames

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// Timeout of each read.
const Timeout = 10 * time.Second

// Conn is one side of a connection. It is used by one goroutine at a time: reading
// with Next and Response writes, too. Only End may run beside a goroutine that
// writes.
type Conn struct {
	net.Conn
	*http2.Framer
	// Settings that the peer has sent so far.
	Settings map[http2.SettingID]uint32
	// Authority and Scheme of requests.
	Authority, Scheme string

	encoder *hpack.Encoder
	block   bytes.Buffer
}

// Dial opens a connection as a client: preface and settings are sent, the peer's
// are seen by Next. With a TLS configuration it offers "h2" by ALPN.
func Dial(address string, config *tls.Config, settings ...http2.Setting) (*Conn, error) {
	sock, err := net.DialTimeout("tcp", address, Timeout)
	if err != nil {
		return nil, err
	}
	scheme := "http"
	if config != nil {
		config = config.Clone()
		config.NextProtos = []string{"h2"}
		sock, scheme = tls.Client(sock, config), "https"
	}
	c := newConn(sock)
	c.Authority, c.Scheme = address, scheme
	_ = sock.SetDeadline(time.Now().Add(Timeout))
	if _, err := io.WriteString(sock, http2.ClientPreface); err != nil {
		return nil, errors.Join(err, sock.Close())
	}
	if err := c.WriteSettings(settings...); err != nil {
		return nil, errors.Join(err, sock.Close())
	}
	_ = sock.SetDeadline(time.Time{})
	return c, nil
}

// Accept takes the client's preface and sends settings.
func Accept(sock net.Conn, settings ...http2.Setting) (*Conn, error) {
	_ = sock.SetReadDeadline(time.Now().Add(Timeout))
	preface := make([]byte, len(http2.ClientPreface))
	if _, err := io.ReadFull(sock, preface); err != nil {
		return nil, err
	}
	if string(preface) != http2.ClientPreface {
		return nil, fmt.Errorf("no preface: %q", preface)
	}
	c := newConn(sock)
	return c, c.WriteSettings(settings...)
}

func newConn(sock net.Conn) *Conn {
	c := &Conn{Conn: sock, Framer: http2.NewFramer(sock, sock), Settings: map[http2.SettingID]uint32{}}
	c.AllowIllegalWrites = true
	c.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	c.MaxHeaderListSize = 16 << 20
	c.SetMaxReadFrameSize(1<<24 - 1)
	c.encoder = hpack.NewEncoder(&c.block)
	return c
}

// Block encodes names and values, in turn.
func (c *Conn) Block(pairs ...string) []byte {
	c.block.Reset()
	for i := 0; i+1 < len(pairs); i += 2 {
		// It writes into memory, which does not fail.
		_ = c.encoder.WriteField(hpack.HeaderField{Name: pairs[i], Value: pairs[i+1]})
	}
	return bytes.Clone(c.block.Bytes())
}

// Headers sends one HEADERS frame with all fields.
func (c *Conn) Headers(stream uint32, end bool, pairs ...string) error {
	return c.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, EndStream: end, EndHeaders: true, BlockFragment: c.Block(pairs...)})
}

// Request sends a request's head.
func (c *Conn) Request(stream uint32, end bool, method, path string, pairs ...string) error {
	return c.Headers(stream, end, append([]string{":method", method, ":scheme", c.Scheme, ":authority", c.Authority, ":path", path}, pairs...)...)
}

// Next is the next frame that is neither SETTINGS nor a PING; those are answered.
// It is valid until the following call.
func (c *Conn) Next() (http2.Frame, error) {
	for {
		_ = c.SetReadDeadline(time.Now().Add(Timeout))
		f, err := c.ReadFrame()
		if err != nil {
			return nil, err
		}
		switch f := f.(type) {
		case *http2.SettingsFrame:
			if f.IsAck() {
				continue
			}
			_ = f.ForeachSetting(func(s http2.Setting) error { c.Settings[s.ID] = s.Val; return nil })
			if err := c.WriteSettingsAck(); err != nil {
				return nil, err
			}
		case *http2.PingFrame:
			if f.IsAck() {
				continue
			}
			if err := c.WritePing(true, f.Data); err != nil {
				return nil, err
			}
		default:
			return f, nil
		}
	}
}

// Handshake awaits the peer's settings and acknowledges them.
func (c *Conn) Handshake() error {
	for {
		_ = c.SetReadDeadline(time.Now().Add(Timeout))
		f, err := c.ReadFrame()
		if err != nil {
			return err
		}
		if s, ok := f.(*http2.SettingsFrame); ok && !s.IsAck() {
			_ = s.ForeachSetting(func(s http2.Setting) error { c.Settings[s.ID] = s.Val; return nil })
			return c.WriteSettingsAck()
		}
	}
}

// Message is a response, or a request.
type Message struct {
	Head     []hpack.HeaderField
	Body     []byte
	Trailers []hpack.HeaderField
	Frames   int            // HEADERS and DATA that it took
	Reset    *http2.ErrCode // with which the stream was reset, before or after its end
	Ended    bool           // by END_STREAM
}

// Get is the value of a field of the head.
func (m *Message) Get(name string) string { return get(m.Head, name) }

// Trailer is the value of a field of the trailers.
func (m *Message) Trailer(name string) string { return get(m.Trailers, name) }

func get(fields []hpack.HeaderField, name string) string {
	for _, f := range fields {
		if f.Name == name {
			return f.Value
		}
	}
	return ""
}

// Response reads until a stream ends, and gives back what its data took of both
// windows. Frames of other streams are dropped; informational responses too.
func (c *Conn) Response(stream uint32) (*Message, error) {
	m := &Message{}
	for !m.Ended && m.Reset == nil {
		f, err := c.Next()
		if err != nil {
			return m, err
		}
		if g, ok := f.(*http2.GoAwayFrame); ok && (g.LastStreamID < stream || g.ErrCode != http2.ErrCodeNo) {
			return m, GoAway{g.ErrCode, string(g.DebugData())}
		}
		if f.Header().StreamID != stream {
			continue
		}
		if err := c.take(m, f); err != nil {
			return m, err
		}
	}
	return m, nil
}

func (c *Conn) take(m *Message, f http2.Frame) error {
	switch f := f.(type) {
	case *http2.MetaHeadersFrame:
		m.Frames++
		m.Ended = f.StreamEnded()
		switch {
		case m.Head == nil && len(f.PseudoValue("status")) == 3 && f.PseudoValue("status")[0] == '1':
		case m.Head == nil:
			m.Head = append(m.Head, f.Fields...)
		default:
			m.Trailers = append(m.Trailers, f.Fields...)
		}
	case *http2.DataFrame:
		m.Frames++
		m.Body = append(m.Body, f.Data()...)
		m.Ended = f.StreamEnded()
		return c.giveBack(f)
	case *http2.RSTStreamFrame:
		code := f.ErrCode
		m.Reset = &code
	}
	return nil
}

func (c *Conn) giveBack(f *http2.DataFrame) error {
	n := f.Header().Length
	if n == 0 {
		return nil
	}
	if err := c.WriteWindowUpdate(0, n); err != nil {
		return err
	}
	return c.WriteWindowUpdate(f.Header().StreamID, n)
}

// GoAway is the error of a connection that the peer gave up.
type GoAway struct {
	Code  http2.ErrCode
	Debug string
}

func (g GoAway) Error() string { return fmt.Sprintf("GOAWAY %s %q", g.Code, g.Debug) }

// End reads until the peer closes, answers nothing, and returns the code of the last
// GOAWAY. Seen is false when there was none.
func (c *Conn) End() (code http2.ErrCode, seen bool, err error) {
	for {
		_ = c.SetReadDeadline(time.Now().Add(Timeout))
		f, err := c.ReadFrame()
		var timeout net.Error
		switch {
		case errors.As(err, &timeout) && timeout.Timeout():
			return code, seen, err
		case err != nil:
			return code, seen, nil
		}
		if g, ok := f.(*http2.GoAwayFrame); ok {
			code, seen = g.ErrCode, true
		}
	}
}
