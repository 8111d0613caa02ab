package proxy

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// Peers that say exactly what a test makes them say, in both protocols.

// peers is a server that serves each connection by itself, and ends them all with
// the test.
func peers(t testing.TB, serve func(c net.Conn, r *bufio.Reader)) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var open []net.Conn
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			_ = c.SetDeadline(time.Now().Add(20 * time.Second))
			mu.Lock()
			open = append(open, c)
			mu.Unlock()
			serving.Go(func() {
				defer c.Close()
				serve(c, bufio.NewReader(c))
			})
		}
	})
	t.Cleanup(func() {
		_ = ln.Close()
		mu.Lock()
		for _, c := range open {
			_ = c.Close()
		}
		mu.Unlock()
		serving.Wait()
	})
	return ln.Addr().String()
}

// framer is one side of an HTTP/2 connection, frame by frame.
type framer struct {
	net.Conn
	*http2.Framer
}

func newFramer(c net.Conn, r io.Reader) *framer {
	f := &framer{c, http2.NewFramer(c, r)}
	f.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	return f
}

// dialFrames connects as a client that has said its preface.
func dialFrames(t testing.TB, address string, settings ...http2.Setting) *framer {
	t.Helper()
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	f := newFramer(c, bufio.NewReader(c))
	if _, err := io.WriteString(c, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	if err := f.WriteSettings(settings...); err != nil {
		t.Fatal(err)
	}
	return f
}

// acceptFrames is the server's side of a connection.
func acceptFrames(c net.Conn, r *bufio.Reader, settings ...http2.Setting) (*framer, error) {
	if _, err := r.Discard(len(http2.ClientPreface)); err != nil {
		return nil, err
	}
	f := newFramer(c, r)
	return f, f.WriteSettings(settings...)
}

// block encodes fields without a table, so that each head stands for itself.
func block(fields ...string) []byte {
	var b bytes.Buffer
	e := hpack.NewEncoder(&b)
	e.SetMaxDynamicTableSize(0)
	for i := 0; i < len(fields); i += 2 {
		_ = e.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
	}
	return b.Bytes()
}

func (f *framer) head(id uint32, end bool, fields ...string) error {
	return f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block(fields...), EndStream: end, EndHeaders: true})
}

// ask sends the head of a request to the shop.
func (f *framer) ask(id uint32, end bool, method, path string, fields ...string) error {
	return f.head(id, end, append([]string{":method", method, ":scheme", "http", ":authority", "shop", ":path", path}, fields...)...)
}

// next reads a frame that is not about the connection, and answers those that are.
// Windows are opened behind DATA.
func (f *framer) next() (http2.Frame, error) {
	for {
		frame, err := f.ReadFrame()
		if err != nil {
			return nil, err
		}
		switch frame := frame.(type) {
		case *http2.SettingsFrame:
			if !frame.IsAck() {
				err = f.WriteSettingsAck()
			}
		case *http2.PingFrame:
			if !frame.IsAck() {
				err = f.WritePing(true, frame.Data)
			}
		case *http2.WindowUpdateFrame, *http2.PriorityFrame:
		case *http2.DataFrame:
			if n := frame.Length; n > 0 {
				err = f.WriteWindowUpdate(0, n)
				if err == nil && !frame.StreamEnded() {
					err = f.WriteWindowUpdate(frame.StreamID, n)
				}
			}
			return frame, err
		default:
			return frame, nil
		}
		if err != nil {
			return nil, err
		}
	}
}

// reply is what came on a stream until it ended.
type reply struct {
	status   string
	interim  []string
	fields   map[string]string
	body     string
	trailers map[string]string
	ended    bool // in good order
	reset    *http2.ErrCode
}

func (r *reply) String() string {
	if r.reset != nil {
		return fmt.Sprintf("%s %q reset by %v", r.status, r.body, *r.reset)
	}
	return fmt.Sprintf("%s %q %v", r.status, r.body, r.trailers)
}

var errGoAway = errors.New("GOAWAY")

// reply reads what comes on a stream, and passes other streams over.
func (f *framer) reply(id uint32) (*reply, error) {
	r := &reply{fields: map[string]string{}, trailers: map[string]string{}}
	for !r.ended && r.reset == nil {
		frame, err := f.next()
		if err != nil {
			return r, err
		}
		if g, ok := frame.(*http2.GoAwayFrame); ok && (g.ErrCode != http2.ErrCodeNo || g.LastStreamID < id) {
			return r, fmt.Errorf("%w %v %s", errGoAway, g.ErrCode, g.DebugData())
		}
		if frame.Header().StreamID != id {
			continue
		}
		switch frame := frame.(type) {
		case *http2.MetaHeadersFrame:
			r.ended = frame.StreamEnded()
			into := r.fields
			if s := frame.PseudoValue("status"); s != "" {
				if s[0] == '1' {
					r.interim = append(r.interim, s)
					continue
				}
				r.status = s
			} else {
				into = r.trailers
			}
			for _, field := range frame.RegularFields() {
				into[field.Name] += field.Value
			}
		case *http2.DataFrame:
			r.body += string(frame.Data())
			r.ended = frame.StreamEnded()
		case *http2.RSTStreamFrame:
			code := frame.ErrCode
			r.reset = &code
		}
	}
	return r, nil
}

// heard is one request that a recorder heard.
type heard struct {
	head string // as it came, lines ended by "\n"
	body string // decoded
}

func (h heard) String() string { return strings.ReplaceAll(h.head, "\n", "|") + " " + h.body }

// field is the value of a field of the head; many are joined by "&".
func (h heard) field(name string) string {
	var all []string
	for _, line := range strings.Split(h.head, "\n")[1:] {
		if n, v, ok := strings.Cut(line, ":"); ok && strings.EqualFold(n, name) {
			all = append(all, strings.TrimSpace(v))
		}
	}
	return strings.Join(all, "&")
}

// recorder is an HTTP/1 server that believes what it reads literally, and keeps it.
type recorder struct {
	address string
	mu      sync.Mutex
	all     []heard
	broken  []string
}

func record(t testing.TB) *recorder {
	r := &recorder{}
	r.address = peers(t, func(c net.Conn, in *bufio.Reader) {
		for {
			h, err := hear(in)
			if err != nil {
				if h.head != "" {
					r.mu.Lock()
					r.broken = append(r.broken, fmt.Sprintf("%v: %v", err, h))
					r.mu.Unlock()
				}
				return
			}
			r.mu.Lock()
			r.all = append(r.all, h)
			r.mu.Unlock()
			if _, err := io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"); err != nil {
				return
			}
		}
	})
	return r
}

// take returns what was heard since.
func (r *recorder) take() []heard {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := r.all
	r.all = nil
	return all
}

// cut returns the requests that ended in the middle.
func (r *recorder) cut() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	b := r.broken
	r.broken = nil
	return b
}

// hear reads one request.
func hear(in *bufio.Reader) (h heard, err error) {
	for {
		line, err := in.ReadString('\n')
		h.head += strings.TrimSuffix(line, "\r\n") + "\n"
		if err != nil {
			return heard{strings.Trim(h.head, "\n"), ""}, err
		}
		if line == "\r\n" {
			break
		}
	}
	h.head = strings.Trim(h.head, "\n")
	if te := h.field("Transfer-Encoding"); te != "" {
		if te != "chunked" || h.field("Content-Length") != "" {
			return h, fmt.Errorf("transfer-encoding %q, content-length %q", te, h.field("Content-Length"))
		}
		for {
			var n int
			line, err := in.ReadString('\n')
			if err != nil {
				return h, err
			}
			if _, err := fmt.Sscanf(strings.TrimSuffix(line, "\r\n"), "%x", &n); err != nil {
				return h, fmt.Errorf("chunk size %q", line)
			}
			if n == 0 {
				break
			}
			b := make([]byte, n+2)
			if _, err := io.ReadFull(in, b); err != nil || string(b[n:]) != "\r\n" {
				return h, fmt.Errorf("chunk %q: %v", b, err)
			}
			h.body += string(b[:n])
		}
		for {
			line, err := in.ReadString('\n')
			if err != nil {
				return h, err
			}
			if line == "\r\n" {
				return h, nil
			}
			h.head += "\ntrailer " + strings.TrimSuffix(line, "\r\n")
		}
	}
	var n int
	if _, err := fmt.Sscanf(h.field("Content-Length"), "%d", &n); err != nil {
		return h, nil
	}
	b := make([]byte, n)
	_, err = io.ReadFull(in, b)
	h.body = string(b)
	return h, err
}
