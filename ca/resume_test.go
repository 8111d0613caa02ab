package ca

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weftmesh/weft"
)

const (
	orderID = weft.Identity("spiffe://cluster.local/ns/default/sa/order")
	userID  = weft.Identity("spiffe://cluster.local/ns/default/sa/user")
)

// stream is one direction of a connection in memory, which holds what is written
// until it is read, as a socket does: a server's ticket must not wait for its
// reader.
type stream struct {
	mu     sync.Mutex
	cond   *sync.Cond
	held   bytes.Buffer
	closed bool
}

func newStream() *stream {
	s := &stream{}
	s.cond = sync.NewCond(&s.mu)
	return s
}

func (s *stream) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return 0, io.ErrClosedPipe
	}
	s.cond.Broadcast()
	return s.held.Write(p)
}

func (s *stream) Read(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.held.Len() == 0 && !s.closed {
		s.cond.Wait()
	}
	if s.held.Len() == 0 {
		return 0, io.EOF
	}
	return s.held.Read(p)
}

func (s *stream) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	s.cond.Broadcast()
	return nil
}

// end is one end of such a connection. Its net.Conn gives it addresses.
type end struct {
	net.Conn
	in, out *stream
}

func (e end) Read(p []byte) (int, error)  { return e.in.Read(p) }
func (e end) Write(p []byte) (int, error) { return e.out.Write(p) }
func (e end) Close() error                { return errors.Join(e.in.Close(), e.out.Close()) }

// pair is a connection between two configurations after its handshakes.
type pair struct{ server, client *tls.Conn }

// connect shakes hands and exchanges a byte each way, with which the client takes
// the server's ticket.
func connect(server, client *tls.Config) (*pair, error) {
	near, far := net.Pipe() // for its addresses
	there, back := newStream(), newStream()
	p := &pair{tls.Server(end{far, there, back}, server), tls.Client(end{near, back, there}, client)}
	if err := p.talk(); err != nil {
		p.close()
		return nil, err
	}
	return p, nil
}

func (p *pair) talk() error {
	served := make(chan error, 1)
	go func() {
		buf := make([]byte, 1)
		_, err := io.ReadFull(p.server, buf)
		if err == nil {
			_, err = p.server.Write(buf)
		}
		if err != nil {
			p.server.NetConn().Close() // crypto/tls has sent its alert
		}
		served <- err
	}()
	_, err := p.client.Write([]byte("x"))
	if err == nil {
		_, err = io.ReadFull(p.client, make([]byte, 1))
	}
	if err != nil {
		p.client.NetConn().Close()
	}
	return errors.Join(err, <-served)
}

func (p *pair) close() {
	p.client.NetConn().Close()
	p.server.NetConn().Close()
}

// resumes connects and tells whether the session was resumed.
func resumes(t *testing.T, server, client *tls.Config) bool {
	t.Helper()
	p, err := connect(server, client)
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	c, s := p.client.ConnectionState(), p.server.ConnectionState()
	if c.DidResume != s.DidResume {
		t.Fatalf("client resumed: %v, server: %v", c.DidResume, s.DidResume)
	}
	if id, err := PeerIdentity(&s); err != nil || id != userID {
		t.Errorf("the server sees %q, %v", id, err)
	}
	if id, err := PeerIdentity(&c); err != nil || id != orderID {
		t.Errorf("the client sees %q, %v", id, err)
	}
	return c.DidResume
}

// mesh is an authority and two of its workloads.
type mesh struct {
	a            *Authority
	order, user  *Credentials
	server, dial *tls.Config
}

func newMesh(t *testing.T) *mesh {
	a := openAuthority(t, &memory{}, Config{})
	m := &mesh{a: a, order: issue(t, a, new(Credentials), "order"), user: issue(t, a, new(Credentials), "user")}
	m.server, m.dial = m.order.ServerTLS("h2", "http/1.1"), m.user.DialTLS(orderID, "h2")
	return m
}

func TestSecondConnectionResumes(t *testing.T) {
	m := newMesh(t)
	for i, want := range []bool{false, true, true} {
		if got := resumes(t, m.server, m.dial); got != want {
			t.Errorf("connection %d resumes: %v", i+1, got)
		}
	}
	if !resumes(t, m.server, m.user.DialTLS(orderID, "http/1.1")) {
		t.Error("another protocol to the same peer begins anew")
	}
}

func TestProtocolIsAgreedOnResumedConnectionsToo(t *testing.T) {
	m := newMesh(t)
	server := m.order.ServerTLS("h2", "http/1.1", "weft-tcp")
	for _, c := range []struct {
		offer []string
		want  string
	}{
		{[]string{"h2", "http/1.1"}, "h2"}, {[]string{"h2", "http/1.1"}, "h2"},
		{[]string{"http/1.1"}, "http/1.1"}, {[]string{"weft-tcp"}, "weft-tcp"}, {nil, ""},
	} {
		p, err := connect(server, m.user.DialTLS(orderID, c.offer...))
		if err != nil {
			t.Fatal(err)
		}
		if got := p.server.ConnectionState().NegotiatedProtocol; got != c.want || p.client.ConnectionState().NegotiatedProtocol != c.want {
			t.Errorf("offered %q: %q, want %q", c.offer, got, c.want)
		}
		p.close()
	}
	if _, err := connect(server, m.user.DialTLS(orderID, "gopher")); err == nil {
		t.Error("a client that speaks none of the server's protocols was let in")
	}
	if p, err := connect(m.order.ServerTLS(), m.user.DialTLS(orderID, "h2")); err != nil {
		t.Errorf("a server that knows of no protocols refuses: %v", err)
	} else {
		p.close()
	}
}

func TestDialTLSGivesTheSameConfiguration(t *testing.T) {
	c := newMesh(t).user
	first := c.DialTLS(orderID, "h2", "http/1.1")
	if c.DialTLS(orderID, "h2", "http/1.1") != first || c.DialTLS(orderID) != c.ClientTLS(orderID) {
		t.Error("the same arguments give another configuration")
	}
	if c.DialTLS(orderID, "h2") == c.DialTLS(orderID, "http/1.1") || c.DialTLS(orderID) == c.DialTLS(userID) {
		t.Error("other arguments give the same configuration")
	}
	for i := range 3 * maxConfigs {
		c.DialTLS(weft.Identity(fmt.Sprint(orderID, i)))
	}
	if len(c.dials) > maxConfigs {
		t.Errorf("%d configurations are kept", len(c.dials))
	}
}

func TestRotationKeepsConnectionsAndSessions(t *testing.T) {
	m := newMesh(t)
	open, err := connect(m.server, m.dial)
	if err != nil {
		t.Fatal(err)
	}
	defer open.close()
	for range 3 {
		issue(t, m.a, m.order, "order")
		issue(t, m.a, m.user, "user")
		if err := open.talk(); err != nil {
			t.Fatalf("the open connection: %v", err)
		}
		if !resumes(t, m.server, m.dial) {
			t.Error("a ticket from before the rotation is not taken")
		}
	}
}

// What a session was begun under changes: the next connection proves everything
// again, and is not refused for the old session's sake.
func TestWhatEndsASession(t *testing.T) {
	next := openAuthority(t, &memory{}, Config{})
	both := func(m *mesh) []*x509.Certificate { return append(m.a.Roots(), next.Roots()...) }
	must := func(t *testing.T, err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	for name, change := range map[string]func(*testing.T, *mesh){
		"a new root for the client":   func(t *testing.T, m *mesh) { must(t, m.user.SetRoots(both(m))) },
		"a new root for the server":   func(t *testing.T, m *mesh) { must(t, m.order.SetRoots(both(m))) },
		"another root for both sides": func(t *testing.T, m *mesh) { issue(t, next, m.order, "order"); issue(t, next, m.user, "user") },
		"a server that starts again":  func(t *testing.T, m *mesh) { m.server = m.order.ServerTLS("h2") },
		"a client that was another in between": func(t *testing.T, m *mesh) {
			issue(t, m.a, m.user, "guest")
			p, err := connect(m.server, m.dial)
			must(t, err)
			defer p.close()
			if p.client.ConnectionState().DidResume {
				t.Error("as another it resumes")
			}
			issue(t, m.a, m.user, "user")
		},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMesh(t)
			resumes(t, m.server, m.dial)
			if !resumes(t, m.server, m.dial) {
				t.Fatal("it does not resume before")
			}
			change(t, m)
			if resumes(t, m.server, m.dial) {
				t.Error("it resumes")
			}
			if !resumes(t, m.server, m.dial) {
				t.Error("it never resumes again")
			}
		})
	}
}

// The root under which a client was known goes, at the server only: its session
// is over, its certificate of the root that came is good.
func TestRootThatWentAtTheServer(t *testing.T) {
	m := newMesh(t)
	next := openAuthority(t, &memory{}, Config{})
	both := append(m.a.Roots(), next.Roots()...)
	if err := errors.Join(m.order.SetRoots(both), m.user.SetRoots(both)); err != nil {
		t.Fatal(err)
	}
	resumes(t, m.server, m.dial)

	if err := m.order.SetRoots(next.Roots()); err != nil {
		t.Fatal(err)
	}
	if _, err := connect(m.server, m.dial); err == nil || !strings.Contains(err.Error(), "unknown authority") {
		t.Errorf("with a certificate of the root that went: %v", err)
	}
	rotate(t, next, m.user, "user", both)
	if resumes(t, m.server, m.dial) {
		t.Error("the session from before is resumed")
	}
}

// rotate gives c a certificate of a that it shows to those who trust a, and roots
// of its own choice.
func rotate(t *testing.T, a *Authority, c *Credentials, sa string, roots []*x509.Certificate) {
	t.Helper()
	issue(t, a, c, sa)
	if err := c.SetRoots(roots); err != nil {
		t.Fatal(err)
	}
}

func TestAnotherIdentityBehindTheSameAddressDoesNotResume(t *testing.T) {
	m := newMesh(t)
	resumes(t, m.server, m.dial)
	// The address now belongs to another service, which has the ticket keys even.
	issue(t, m.a, m.order, "payment")
	if _, err := connect(m.server, m.dial); err == nil || !strings.Contains(err.Error(), "payment") {
		t.Errorf("got %v, want a refusal of payment", err)
	}
	// And a session with order is none with payment.
	p, err := connect(m.server, m.user.DialTLS("spiffe://cluster.local/ns/default/sa/payment"))
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	if p.client.ConnectionState().DidResume {
		t.Error("the session of another identity was resumed")
	}
}

// The dialled session belongs to order by the cache, but its certificate says
// payment: VerifyConnection is the one that notices, and drops it.
func TestResumedSessionIsVerified(t *testing.T) {
	m := newMesh(t)
	payment := issue(t, m.a, new(Credentials), "payment").ServerTLS()
	paymentID := weft.Identity("spiffe://cluster.local/ns/default/sa/payment")
	p, err := connect(payment, m.user.DialTLS(paymentID))
	if err != nil {
		t.Fatal(err)
	}
	p.close()
	stolen, ok := peerSessions{m.user, paymentID}.Get("pipe")
	if !ok {
		t.Fatal("no session was kept")
	}
	peerSessions{m.user, orderID}.Put("pipe", stolen)
	if _, err := connect(payment, m.dial); err == nil || !strings.Contains(err.Error(), "payment") {
		t.Errorf("got %v, want a refusal of payment", err)
	}
	if _, ok := (peerSessions{m.user, orderID}).Get("pipe"); ok {
		t.Error("the session will be tried again")
	}
}

func TestExpiredCertificatesDoNotResume(t *testing.T) {
	for name, stale := range map[string]func(*mesh) (c *Credentials, sa string){
		"the client's": func(m *mesh) (*Credentials, string) { return m.user, "user" },
		"the server's": func(m *mesh) (*Credentials, string) { return m.order, "order" },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newMesh(t)
				resumes(t, m.server, m.dial)
				time.Sleep(23 * time.Hour)
				// Only the one that is not stale has a new certificate in time.
				old, sa := stale(m)
				if old == m.user {
					issue(t, m.a, m.order, "order")
				} else {
					issue(t, m.a, m.user, "user")
				}
				if !resumes(t, m.server, m.dial) {
					t.Fatal("an hour before the end it does not resume")
				}
				time.Sleep(2 * time.Hour)
				if _, err := connect(m.server, m.dial); err == nil || !strings.Contains(err.Error(), "expired") {
					t.Errorf("got %v, want a refusal of what has expired", err)
				}
				issue(t, m.a, old, sa)
				if resumes(t, m.server, m.dial) {
					t.Error("a session of an expired certificate is resumed")
				}
			})
		})
	}
}

// A verdict that is remembered ends with the certificate that it is about.
func TestVerdictEndsWithTheCertificate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t)
		h, peer := m.order.current.Load(), m.user.current.Load().svid.Certificates
		for range 2 {
			if err := h.verify(peer, h.member); err != nil {
				t.Fatal(err)
			}
		}
		if len(h.verdicts.known) != 1 {
			t.Fatalf("%d verdicts are known", len(h.verdicts.known))
		}
		time.Sleep(25 * time.Hour)
		if err := h.verify(peer, h.member); err == nil {
			t.Error("it is still accepted")
		}
	})
}

func TestSessionsAreBounded(t *testing.T) {
	var s sessions
	state := new(tls.ClientSessionState)
	key := func(i int) sessionKey { return sessionKey{orderID, fmt.Sprint(i)} }
	for i := range maxSessions {
		s.put(epoch{}, key(i), state)
	}
	if s.get(epoch{}, key(0)) == nil {
		t.Fatal("the first is gone before the bound")
	}
	s.put(epoch{}, key(maxSessions), state)
	if len(s.byPeer) != maxSessions || s.recent.Len() != maxSessions {
		t.Errorf("%d sessions, %d in order of use", len(s.byPeer), s.recent.Len())
	}
	if s.get(epoch{}, key(0)) == nil || s.get(epoch{}, key(1)) != nil {
		t.Error("the one that was not used for longest must go")
	}
	s.put(epoch{}, key(0), nil)
	if s.get(epoch{}, key(0)) != nil || s.recent.Len() != maxSessions-1 {
		t.Error("nil does not remove")
	}
}

func BenchmarkHandshake(b *testing.B) {
	a, err := Open(b.Context(), &memory{}, Config{SealKey: sealKey(1)})
	if err != nil {
		b.Fatal(err)
	}
	credentials := func(id weft.Identity) *Credentials {
		key, csr, err := NewCSR(id)
		if err != nil {
			b.Fatal(err)
		}
		chain, _, err := a.Sign(csr, id)
		if err != nil {
			b.Fatal(err)
		}
		c := new(Credentials)
		if err := c.Set(chain, key, a.Roots()); err != nil {
			b.Fatal(err)
		}
		return c
	}
	server, user := credentials(orderID).ServerTLS("h2"), credentials(userID)
	full := user.DialTLS(orderID, "h2").Clone()
	full.ClientSessionCache = nil
	for name, dial := range map[string]*tls.Config{"full": full, "resumed": user.DialTLS(orderID, "h2")} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				p, err := connect(server, dial)
				if err != nil {
					b.Fatal(err)
				}
				p.close()
			}
		})
	}
}
