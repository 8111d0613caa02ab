package ca

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"slices"
	"strings"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/weftmesh/weft"
)

// ServerIdentity is the identity of weft's own server in a trust domain. Nobody
// else is given it.
func ServerIdentity(trustDomain string) weft.Identity {
	return weft.NewIdentity(trustDomain, "weft", "server")
}

// ServerTLS accepts only clients that prove an identity of our trust domain. The
// protocols are those that it speaks inside, the preferred first, by their ALPN
// names; a client that offers some and none of these is refused. Sessions are
// resumed.
func (c *Credentials) ServerTLS(protocols ...string) *tls.Config {
	return c.resumable(&tls.Config{
		MinVersion:       tls.VersionTLS13,
		ClientAuth:       tls.RequireAnyClientCert, // verified below, as a SPIFFE ID and not as a host name
		GetCertificate:   func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return c.certificate() },
		VerifyConnection: c.verifyMember,
		NextProtos:       protocols,
	})
}

// ControlTLS is ServerTLS that also lets clients without a certificate in: those
// that have yet to join. PeerIdentity tells them apart. A certificate that is
// presented and not ours is refused.
func (c *Credentials) ControlTLS() *tls.Config {
	config := c.ServerTLS()
	config.ClientAuth = tls.RequestClientCert
	config.VerifyConnection = func(cs tls.ConnectionState) error {
		if len(cs.PeerCertificates) == 0 {
			return nil
		}
		return c.verifyMember(cs)
	}
	return config
}

// ClientTLS is DialTLS without a protocol.
func (c *Credentials) ClientTLS(expect weft.Identity) *tls.Config { return c.DialTLS(expect) }

// maxConfigs bounds the configurations that are kept for calls to come.
const maxConfigs = 256

type dialKey struct {
	expect    weft.Identity
	protocols string // joined by a byte that no identifier has
}

// DialTLS presents our certificate and accepts only a server that proves to be
// exactly expect. An empty or malformed expect fails every handshake. The
// protocols, by their ALPN names, are offered to the server: its choice is the
// connection's NegotiatedProtocol, "" when the server knows of no protocols.
//
// Connections to a server that was called before resume its session, which
// spares both sides the signatures: what is left is the key exchange. Who the server is, and that its certificate
// is valid now and under the roots of now, is checked all the same.
//
// The same arguments give the same configuration, so that it may be asked for at
// each dial; clone it to change it.
func (c *Credentials) DialTLS(expect weft.Identity, protocols ...string) *tls.Config {
	key := dialKey{expect, strings.Join(protocols, "\x00")}
	c.mu.Lock()
	defer c.mu.Unlock()
	config := c.dials[key]
	if config == nil {
		if c.dials == nil || len(c.dials) >= maxConfigs {
			// They are cheap to make again, and the sessions are kept elsewhere.
			c.dials = make(map[dialKey]*tls.Config)
		}
		config = c.newDial(expect, slices.Clone(protocols))
		c.dials[key] = config
	}
	return config
}

func (c *Credentials) newDial(expect weft.Identity, protocols []string) *tls.Config {
	want, err := spiffeid.FromString(string(expect))
	matches := spiffeid.MatchID(want)
	return &tls.Config{
		MinVersion:           tls.VersionTLS13,
		InsecureSkipVerify:   true, // host names mean nothing here: VerifyConnection checks the chain and the SPIFFE ID
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return c.certificate() },
		VerifyConnection: func(cs tls.ConnectionState) error {
			if err != nil {
				return &weft.Error{Kind: weft.Invalid, Op: "verify server", Thing: string(expect), Err: err}
			}
			h, err := c.held()
			if err != nil {
				return err
			}
			err = h.verify(cs.PeerCertificates, matches)
			if err != nil && cs.DidResume {
				// Roots that changed while the session was being stored: the next
				// dial must not try it again.
				c.sessions.forget(expect)
			}
			return err
		},
		NextProtos:         protocols,
		ClientSessionCache: peerSessions{c, expect},
	}
}

// verifyMember runs as VerifyConnection, which, unlike VerifyPeerCertificate, also
// sees resumed sessions: a certificate that expired or a root that went since the
// session began is noticed.
func (c *Credentials) verifyMember(cs tls.ConnectionState) error {
	h, err := c.held()
	if err != nil {
		return err
	}
	return h.verify(cs.PeerCertificates, h.member)
}

// PeerIdentity tells who the peer of a connection is that was made with one of
// the configurations above, which have verified it. Without a certificate the
// error is of kind weft.Denied.
func PeerIdentity(cs *tls.ConnectionState) (weft.Identity, error) {
	if cs == nil || len(cs.PeerCertificates) == 0 {
		return "", weft.Errorf(weft.Denied, "identify peer", "", "it presented no certificate")
	}
	return identityOf(cs.PeerCertificates[0])
}

// JoinTLS is for a client that has only a join token. It presents nothing, and
// accepts the server whose chain ends in the root that the token pins and whose
// identity is ServerIdentity of that root's trust domain. The server sends the
// root as the last certificate of its chain.
func JoinTLS(pin string) *tls.Config {
	return &tls.Config{
		MinVersion:         tls.VersionTLS13,
		InsecureSkipVerify: true, // VerifyConnection checks the pin
		VerifyConnection: func(cs tls.ConnectionState) error {
			return verifyPinned(cs.PeerCertificates, pin)
		},
	}
}

func verifyPinned(chain []*x509.Certificate, pin string) error {
	if len(chain) < 2 {
		return weft.Errorf(weft.Denied, "verify server", "", "it did not send its root certificate: is it a weft control port?")
	}
	root := chain[len(chain)-1]
	if PinOf(root) != pin {
		return &weft.Error{Kind: weft.Denied, Op: "verify server", Err: errWrongRoot}
	}
	id, err := x509svid.IDFromCert(chain[0])
	if err != nil {
		return &weft.Error{Kind: weft.Denied, Op: "verify server", Err: err}
	}
	bundle := x509bundle.FromX509Authorities(id.TrustDomain(), []*x509.Certificate{root})
	if _, _, err := x509svid.Verify(chain, bundle); err != nil {
		return &weft.Error{Kind: weft.Denied, Op: "verify server", Thing: id.String(), Err: err}
	}
	if want := ServerIdentity(id.TrustDomain().Name()); id.String() != string(want) {
		return weft.Errorf(weft.Denied, "verify server", id.String(), "want %s", want)
	}
	return nil
}

var errWrongRoot = errors.New("its root certificate is not the one that the join token names: the token belongs to another mesh, or this is not the server you think it is")
