package ca

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/weftmesh/weft"
)

// handshake joins the two over loopback and exchanges a byte each way, so that
// both sides' verdicts are seen (in TLS 1.3 a client finishes before the server
// has judged its certificate).
func handshake(t *testing.T, server, client *tls.Config) error {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	deadline := time.Now().Add(10 * time.Second)
	done := make(chan error, 1)
	go func() { done <- echoByte(l, server, deadline) }()
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	conn.SetDeadline(deadline)
	c := tls.Client(conn, client)
	_, err = c.Write([]byte("x"))
	if err == nil {
		_, err = c.Read(make([]byte, 1))
	}
	conn.Close()
	return errors.Join(err, <-done)
}

func echoByte(l net.Listener, config *tls.Config, deadline time.Time) error {
	conn, err := l.Accept()
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetDeadline(deadline)
	s := tls.Server(conn, config)
	buf := make([]byte, 1)
	if _, err := s.Read(buf); err != nil {
		return err
	}
	_, err = s.Write(buf)
	return err
}

func TestHandshakes(t *testing.T) {
	mesh := &memory{}
	past := func() time.Time { return time.Now().Add(-48 * time.Hour) } // what is signed then has expired by now
	old := openAuthority(t, mesh, Config{Now: past})
	a := openAuthority(t, mesh, Config{})
	otherRoot := openAuthority(t, &memory{}, Config{}) // same trust domain, another mesh
	elsewhere := openAuthority(t, &memory{}, Config{TrustDomain: "other.example"})
	order := weft.Identity("spiffe://cluster.local/ns/default/sa/order")
	good := func(sa string) *Credentials { return issue(t, a, new(Credentials), sa) }

	for name, c := range map[string]struct {
		server *tls.Config
		client *tls.Config
		refuse string // "" accepts
	}{
		"each is who the other wants": {good("order").ServerTLS(), good("user").ClientTLS(order), ""},
		"the server is another service": {good("payment").ServerTLS(), good("user").ClientTLS(order),
			"spiffe://cluster.local/ns/default/sa/payment"},
		"the client is of another trust domain": {good("order").ServerTLS(), withRoots(t, issue(t, elsewhere, new(Credentials), "user"), order),
			"other.example"},
		"the server is of another trust domain": {issue(t, elsewhere, new(Credentials), "order").ServerTLS(), good("user").ClientTLS(order),
			"other.example"},
		"the client's root is another, though its trust domain has the same name": {good("order").ServerTLS(),
			withRoots(t, issue(t, otherRoot, new(Credentials), "user"), order), "unknown authority"},
		"the server's root is another": {issue(t, otherRoot, new(Credentials), "order").ServerTLS(), good("user").ClientTLS(order),
			"unknown authority"},
		"the client's certificate has expired": {good("order").ServerTLS(), issue(t, old, new(Credentials), "user").ClientTLS(order), "expired"},
		"the server's certificate has expired": {issue(t, old, new(Credentials), "order").ServerTLS(), good("user").ClientTLS(order), "expired"},
		"the client has no certificate":        {good("order").ServerTLS(), &tls.Config{InsecureSkipVerify: true}, "certificate"},
		"the client wants nobody":              {good("order").ServerTLS(), good("user").ClientTLS(""), "verify server"},
		"the client has nothing yet":           {good("order").ServerTLS(), new(Credentials).ClientTLS(order), "no certificate yet"},
		"the server has nothing yet":           {new(Credentials).ServerTLS(), good("user").ClientTLS(order), "no certificate yet"},
		"the client offers only TLS 1.2": {good("order").ServerTLS(),
			&tls.Config{MaxVersion: tls.VersionTLS12, InsecureSkipVerify: true}, "protocol version"},
		"the server offers only TLS 1.2": {&tls.Config{MaxVersion: tls.VersionTLS12, GetCertificate: good("order").ServerTLS().GetCertificate},
			good("user").ClientTLS(order), "protocol version"},
		"the control port lets in who has no certificate": {good("order").ControlTLS(), &tls.Config{InsecureSkipVerify: true}, ""},
		"the control port lets in who has a good one":     {good("order").ControlTLS(), good("user").ClientTLS(order), ""},
		"the control port refuses a foreign certificate":  {good("order").ControlTLS(), withRoots(t, issue(t, elsewhere, new(Credentials), "user"), order), "other.example"},
		"the control port refuses an expired certificate": {good("order").ControlTLS(), issue(t, old, new(Credentials), "user").ClientTLS(order), "expired"},
	} {
		t.Run(name, func(t *testing.T) {
			err := handshake(t, c.server, c.client)
			switch {
			case c.refuse == "" && err != nil:
				t.Errorf("refused: %v", err)
			case c.refuse != "" && err == nil:
				t.Error("accepted")
			case c.refuse != "" && !strings.Contains(err.Error(), c.refuse):
				t.Errorf("refused with %v, want %q in it", err, c.refuse)
			}
		})
	}
}

// withRoots makes a client that presents c's certificate and accepts any server:
// what a foreigner would do, so that the server has to refuse it.
func withRoots(t *testing.T, c *Credentials, expect weft.Identity) *tls.Config {
	t.Helper()
	config := c.ClientTLS(expect).Clone()
	config.VerifyConnection = nil
	return config
}

func TestPlainTextIsRefused(t *testing.T) {
	a := openAuthority(t, &memory{}, Config{})
	l, err := tls.Listen("tcp", "127.0.0.1:0", issue(t, a, new(Credentials), "order").ServerTLS())
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	served := make(chan error, 1)
	go func() {
		conn, err := l.Accept()
		if err == nil {
			_, err = conn.Read(make([]byte, 1))
			conn.Close()
		}
		served <- err
	}()
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("GET / HTTP/1.1\r\nHost: order\r\n\r\n")); err != nil {
		t.Fatal(err)
	}
	var notTLS tls.RecordHeaderError
	if err := <-served; !errors.As(err, &notTLS) {
		t.Fatalf("the server reads %v, want a refusal of what is not TLS", err)
	}
}

func TestPeerIdentity(t *testing.T) {
	a := openAuthority(t, &memory{}, Config{})
	server := issue(t, a, new(Credentials), "order").ControlTLS()
	var seen []string
	inner := server.VerifyConnection
	server.VerifyConnection = func(cs tls.ConnectionState) error {
		if err := inner(cs); err != nil {
			return err
		}
		id, err := PeerIdentity(&cs)
		if err != nil && weft.KindOf(err) != weft.Denied {
			t.Error(err)
		}
		seen = append(seen, string(id))
		return nil
	}
	if err := handshake(t, server, issue(t, a, new(Credentials), "user").ClientTLS("spiffe://cluster.local/ns/default/sa/order")); err != nil {
		t.Fatal(err)
	}
	if err := handshake(t, server, &tls.Config{InsecureSkipVerify: true}); err != nil {
		t.Fatal(err)
	}
	if len(seen) != 2 || seen[0] != "spiffe://cluster.local/ns/default/sa/user" || seen[1] != "" {
		t.Errorf("peers were %q", seen)
	}
}

func TestRotationUnderALiveListener(t *testing.T) {
	a := openAuthority(t, &memory{}, Config{})
	b := openAuthority(t, &memory{}, Config{}) // the root that comes next
	order := weft.Identity("spiffe://cluster.local/ns/default/sa/order")
	server, client := new(Credentials), new(Credentials)
	serverTLS, clientTLS := server.ServerTLS(), client.ClientTLS(order) // made once, before there is anything in them

	issue(t, a, server, "order")
	issue(t, a, client, "user")
	if err := handshake(t, serverTLS, clientTLS); err != nil {
		t.Fatalf("with the first certificates: %v", err)
	}
	first, _ := server.GetX509SVID()

	issue(t, a, server, "order")
	second, _ := server.GetX509SVID()
	if first.Certificates[0].SerialNumber.Cmp(second.Certificates[0].SerialNumber) == 0 {
		t.Fatal("the certificate did not change")
	}
	var presented *x509.Certificate
	watching := clientTLS.Clone()
	inner := watching.VerifyConnection
	watching.VerifyConnection = func(cs tls.ConnectionState) error {
		presented = cs.PeerCertificates[0]
		return inner(cs)
	}
	if err := handshake(t, serverTLS, watching); err != nil {
		t.Fatalf("after the server's rotation: %v", err)
	}
	if !presented.Equal(second.Certificates[0]) {
		t.Error("the listener presents the old certificate")
	}

	issue(t, b, server, "order")
	if err := handshake(t, serverTLS, clientTLS); err == nil {
		t.Error("a root that nobody announced is accepted")
	}
	both := append(a.Roots(), b.Roots()...)
	if err := errors.Join(server.SetRoots(both), client.SetRoots(both)); err != nil {
		t.Fatal(err)
	}
	if err := handshake(t, serverTLS, clientTLS); err != nil {
		t.Errorf("with both roots: %v", err)
	}
	if err := server.SetRoots(b.Roots()); err != nil {
		t.Fatal(err)
	}
	if err := handshake(t, serverTLS, clientTLS); err == nil {
		t.Error("a certificate of the root that went is accepted")
	}
}

func TestSetRefusesWhatDoesNotBelongTogether(t *testing.T) {
	a, b := openAuthority(t, &memory{}, Config{}), openAuthority(t, &memory{}, Config{})
	id := weft.Identity("spiffe://cluster.local/ns/default/sa/order")
	key, csr, err := NewCSR(id)
	if err != nil {
		t.Fatal(err)
	}
	otherKey, _, err := NewCSR(id)
	if err != nil {
		t.Fatal(err)
	}
	chain, _, err := a.Sign(csr, id)
	if err != nil {
		t.Fatal(err)
	}
	var c Credentials
	for name, set := range map[string]error{
		"no chain":          c.Set(nil, key, a.Roots()),
		"garbage":           c.Set([][]byte{{1, 2, 3}}, key, a.Roots()),
		"another key":       c.Set(chain, otherKey, a.Roots()),
		"another root":      c.Set(chain, key, b.Roots()),
		"no root":           c.Set(chain, key, nil),
		"a root as leaf":    c.Set([][]byte{a.Roots()[0].Raw}, a.key, a.Roots()),
		"roots before cert": c.SetRoots(a.Roots()),
	} {
		if set == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if c.Identity() != "" {
		t.Error("something was kept")
	}
	if err := c.Set(chain, key, a.Roots()); err != nil || c.Identity() != id {
		t.Errorf("the good ones: %v, %q", err, c.Identity())
	}
	if err := c.SetRoots(nil); err == nil {
		t.Error("no roots: accepted")
	}
}

func TestJoinTLS(t *testing.T) {
	a := openAuthority(t, &memory{}, Config{})
	other := openAuthority(t, &memory{}, Config{})
	serverOf := func(a *Authority, id weft.Identity, withRoot bool) *tls.Config {
		key, csr, err := NewCSR(id)
		if err != nil {
			t.Fatal(err)
		}
		chain, _, err := a.Sign(csr, id)
		if err != nil {
			t.Fatal(err)
		}
		if withRoot {
			chain = append(chain, a.Roots()[0].Raw)
		}
		var c Credentials
		if err := c.Set(chain, key, a.Roots()); err != nil {
			t.Fatal(err)
		}
		return c.ControlTLS()
	}
	pin := PinOf(a.Roots()[0])
	for name, c := range map[string]struct {
		server *tls.Config
		refuse string
	}{
		"the mesh's server":         {serverOf(a, ServerIdentity("cluster.local"), true), ""},
		"a server of another mesh":  {serverOf(other, ServerIdentity("cluster.local"), true), "another mesh"},
		"a workload of the mesh":    {serverOf(a, "spiffe://cluster.local/ns/default/sa/order", true), "want spiffe://cluster.local/ns/weft/sa/server"},
		"a server that hides roots": {serverOf(a, ServerIdentity("cluster.local"), false), "root certificate"},
	} {
		t.Run(name, func(t *testing.T) {
			err := handshake(t, c.server, JoinTLS(pin))
			if (err == nil) != (c.refuse == "") || err != nil && !strings.Contains(err.Error(), c.refuse) {
				t.Errorf("got %v, want %q", err, c.refuse)
			}
		})
	}
	t.Run("somebody who puts the pinned root under a chain of his own", func(t *testing.T) {
		config := serverOf(other, ServerIdentity("cluster.local"), false)
		get := config.GetCertificate
		config.GetCertificate = func(h *tls.ClientHelloInfo) (*tls.Certificate, error) {
			cert, err := get(h)
			if err != nil {
				return nil, err
			}
			forged := *cert
			forged.Certificate = append(forged.Certificate[:1:1], a.Roots()[0].Raw)
			return &forged, nil
		}
		if err := handshake(t, config, JoinTLS(pin)); err == nil || !strings.Contains(err.Error(), "unknown authority") {
			t.Errorf("got %v", err)
		}
	})
}
