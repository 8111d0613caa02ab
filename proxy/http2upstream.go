package proxy

import (
	"crypto/tls"
	"errors"
	"net"
	"os"
	"sync"
	"time"

	"github.com/weftmesh/weft/proxy/mux"
	"github.com/weftmesh/weft/wire/http1"
	"github.com/weftmesh/weft/wire/http2"
)

// http2Upstream is the upstream's side of an exchange on a stream of a connection
// that other exchanges share.
type http2Upstream struct {
	x       *Exchange
	st      *mux.Stream
	conn    *mux.Conn // of st
	fresh   bool      // it was opened for this exchange
	secured bool      // the connection is mTLS
	until   time.Time // deadline of the attempt
	head    http2.RequestHead
	lines   []byte
	path    []byte
	tail    []byte
}

// open takes a stream of one of the endpoint's connections, or opens a connection.
func (s *http2Upstream) open(o *opening) error {
	s.fresh, s.secured = false, o.endpoint.identity != ""
	e := o.endpoint
	var call *dialing
	var mine bool
	for {
		if s.conn, s.st, call, mine = e.muxes.stream(); s.st != nil {
			break
		}
		patience := o.group.patience(time.Now(), o.until)
		if !mine {
			if err := call.wait(patience); err != nil {
				return err
			}
			continue
		}
		c, err := o.p.dialMux(o.cluster, e, patience)
		if err == nil { // before others take all there is, or a drain ends it
			s.conn, s.fresh = c, true
			s.st, err = c.Open()
		}
		if e.muxes.called(call, c, err) {
			o.cluster.adopt(e)
		}
		if err != nil {
			return err
		}
		e.connected()
		break
	}
	s.until = o.until
	s.st.SetDeadline(s.until)
	if o.grpc {
		s.st.LetRest()
	}
	return nil
}

func (s *http2Upstream) send(x *Exchange, pl *plan) (unsent bool, err error) {
	h := &x.head
	path, authority := x.decision.Onward(&x.request)
	s.path = append(s.path[:0], path...)
	if h.HasQuery {
		s.path = append(append(s.path, '?'), h.Query...)
	}
	scheme := schemeHTTP // what the next hop sees, not what the client used
	if s.secured {
		scheme = schemeHTTPS
	}
	s.head = http2.RequestHead{Method: h.Method, Scheme: scheme, Authority: h.Authority, Path: s.path}
	if authority != "" {
		s.head.Authority = append(s.tail[:0], authority...)
		s.tail = s.head.Authority
	}
	lines := x.appendRequest(s.lines[:0], pl)
	if h.Framing == http1.FixedLength {
		lines = http1.AppendFraming(lines, http1.FixedLength, h.Length)
	}
	s.lines = lines
	err = s.st.SendRequest(&s.head, lines, x.body, x.whole)
	return err != nil && !s.st.Sent(), err
}

var schemeHTTP, schemeHTTPS = []byte("http"), []byte("https")

func (s *http2Upstream) write(data []byte, last bool) error { return s.st.Write(data, last) }
func (s *http2Upstream) flush() error                       { return nil }

func (s *http2Upstream) end(trailers []byte) error {
	if len(trailers) == 0 {
		return s.st.Write(nil, true)
	}
	return s.st.SendTrailers(trailers)
}

func (s *http2Upstream) await(x *Exchange) error {
	if err := s.st.AwaitHead(); err != nil {
		return err
	}
	x.response, *s.st.Response() = *s.st.Response(), x.response
	x.conn.progress()
	return nil
}

// ready implements upstream.
func (s *http2Upstream) ready(until time.Time) (ok bool, err error) {
	ours := !until.IsZero() && (s.until.IsZero() || until.Before(s.until))
	if ours {
		s.st.SetDeadline(until)
	}
	err = s.st.WaitHead()
	if ours {
		s.st.SetDeadline(s.until)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return false, nil
		}
	}
	return true, err
}

func (s *http2Upstream) next() (data []byte, last bool, err error) {
	data, err = s.st.Next()
	if err != nil {
		return nil, false, err
	}
	s.x.conn.progress()
	n, ended := s.st.Ready()
	return data, ended && n == 0 && s.st.Trailers() == nil, nil
}

func (s *http2Upstream) more() bool {
	n, ended := s.st.Ready()
	return n > 0 || ended
}

func (s *http2Upstream) trailers() []byte {
	t := s.st.Trailers()
	if t == nil {
		return nil
	}
	s.tail = t.AppendFields(s.tail[:0])
	if s.x.grpc {
		s.x.record.GRPCStatus = grpcStatusIn(s.tail)
	}
	return s.tail
}

func (s *http2Upstream) sent() bool   { return s.st.Sent() }
func (s *http2Upstream) reused() bool { return !s.fresh }
func (s *http2Upstream) interrupt()   { s.st.Interrupt() }

// release ends the stream; the connection goes on.
func (s *http2Upstream) release(*Exchange, *plan, bool) {
	s.st.Close()
	s.st, s.conn = nil, nil
}

// muxes are an endpoint's HTTP/2 connections.
type muxes struct {
	mu      sync.Mutex
	conns   []*mux.Conn
	dialing *dialing // nil: nobody dials
	drained bool
}

// dialing is a connection that is being opened: whoever needs one waits for it
// rather than opening another.
type dialing struct {
	done chan struct{}
	err  error // valid when done is closed
}

func (d *dialing) wait(patience time.Duration) error {
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-d.done:
		return d.err
	case <-timer.C:
		return os.ErrDeadlineExceeded
	}
}

// stream opens a stream on the connection with the fewest. Without one it returns
// the dialing to wait for, or one that the caller has to make (mine).
func (m *muxes) stream() (c *mux.Conn, st *mux.Stream, d *dialing, mine bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var best *mux.Conn
	least := 0
	for _, c := range m.conns {
		if c.Room() > 0 {
			if n := c.Active(); best == nil || n < least {
				best, least = c, n
			}
		}
	}
	if best != nil {
		if st, err := best.Open(); err == nil {
			return best, st, nil, false
		}
	}
	if m.dialing == nil {
		m.dialing = &dialing{done: make(chan struct{})}
		return nil, nil, m.dialing, true
	}
	return nil, nil, m.dialing, false
}

// called ends a dialing. It reports that nobody else will look after c: the
// endpoint has left.
func (m *muxes) called(d *dialing, c *mux.Conn, err error) (orphan bool) {
	m.mu.Lock()
	if c != nil {
		m.conns = append(m.conns, c)
		if m.drained {
			c.Drain()
		}
	}
	d.err = err
	m.dialing = nil
	orphan = c != nil && m.drained
	m.mu.Unlock()
	close(d.done)
	return orphan
}

// expire looks at the connections' time limits and forgets those that ended; it
// returns how many are left.
func (m *muxes) expire(now time.Time, open func(int)) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	kept := m.conns[:0]
	for _, c := range m.conns {
		c.Expire(now)
		select {
		case <-c.Done():
			open(-1)
		default:
			kept = append(kept, c)
		}
	}
	clear(m.conns[len(kept):])
	m.conns = kept
	return len(kept)
}

// drain lets the streams that are open end, and refuses others.
func (m *muxes) drain() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.drained = true
	for _, c := range m.conns {
		c.Drain()
	}
}

// close ends the connections and waits for their goroutines.
func (m *muxes) close(open func(int)) {
	m.mu.Lock()
	conns := m.conns
	m.conns, m.drained = nil, true
	m.mu.Unlock()
	for _, c := range conns {
		c.Close()
		<-c.Done()
		open(-1)
	}
}

var errNotHTTP2 = errors.New("the endpoint does not speak HTTP/2")

// dialMux opens an HTTP/2 connection to the endpoint.
func (p *Proxy) dialMux(cl *cluster, e *endpoint, timeout time.Duration) (*mux.Conn, error) {
	sock, _, err := p.dial(e, timeout, protocolHTTP2)
	if err != nil {
		return nil, err
	}
	if protocol, secured := negotiated(sock); secured && protocol != protocolHTTP2 {
		_ = sock.Close()
		return nil, errNotHTTP2
	}
	cl.open.Add(1)
	return mux.NewClient(sock, mux.Config{
		Protocol: http2.Config{StreamWindow: streamWindow, ConnWindow: connWindow, HeadBytes: limits.HeadBytes, Fields: http2Fields},
		Refused:  p.upstreamRefused, Idle: idleUpstream, Stall: stallTimeout, Hurry: p.short,
	}), nil
}

// upstreamRefused counts connections that were ended for what the endpoint did.
func (p *Proxy) upstreamRefused(reason string) { p.refused.count("upstream_" + reason) }

// negotiated is what a TLS connection's peer chose to speak.
func negotiated(sock net.Conn) (protocol string, secured bool) {
	t, ok := sock.(*tls.Conn)
	if !ok {
		return "", false
	}
	return t.ConnectionState().NegotiatedProtocol, true
}
