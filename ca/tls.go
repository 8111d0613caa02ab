package ca

import (
	"crypto/tls"
	"crypto/x509"
	"errors"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/weftmesh/weft"
)

// ServerIdentity is the identity of weft's own server in a trust domain. Nobody
// else is given it.
func ServerIdentity(trustDomain string) weft.Identity {
	return weft.NewIdentity(trustDomain, "weft", "server")
}

// ServerTLS accepts only clients that prove an identity of our trust domain.
func (c *Credentials) ServerTLS() *tls.Config {
	return &tls.Config{
		MinVersion:       tls.VersionTLS13,
		ClientAuth:       tls.RequireAnyClientCert, // verified below, as a SPIFFE ID and not as a host name
		GetCertificate:   tlsconfig.GetCertificate(c),
		VerifyConnection: c.verifyMember,
	}
}

// ControlTLS is ServerTLS that also lets clients without a certificate in: those
// that have yet to join. PeerIdentity tells them apart. A certificate that is
// presented and not ours is refused.
func (c *Credentials) ControlTLS() *tls.Config {
	return &tls.Config{
		MinVersion:     tls.VersionTLS13,
		ClientAuth:     tls.RequestClientCert,
		GetCertificate: tlsconfig.GetCertificate(c),
		VerifyConnection: func(cs tls.ConnectionState) error {
			if len(cs.PeerCertificates) == 0 {
				return nil
			}
			return c.verifyMember(cs)
		},
	}
}

// ClientTLS presents our certificate and accepts only a server that proves to be
// exactly expect. An empty or malformed expect fails every handshake.
func (c *Credentials) ClientTLS(expect weft.Identity) *tls.Config {
	want, err := spiffeid.FromString(string(expect))
	return &tls.Config{
		MinVersion:           tls.VersionTLS13,
		InsecureSkipVerify:   true, // host names mean nothing here: VerifyConnection checks the chain and the SPIFFE ID
		GetClientCertificate: tlsconfig.GetClientCertificate(c),
		VerifyConnection: func(cs tls.ConnectionState) error {
			if err != nil {
				return &weft.Error{Kind: weft.Invalid, Op: "verify server", Thing: string(expect), Err: err}
			}
			return verify(cs, c, tlsconfig.AuthorizeID(want))
		},
	}
}

func (c *Credentials) verifyMember(cs tls.ConnectionState) error {
	h, err := c.held()
	if err != nil {
		return err
	}
	return verify(cs, h.bundle, tlsconfig.AuthorizeMemberOf(h.svid.ID.TrustDomain()))
}

// verify runs as VerifyConnection, which, unlike VerifyPeerCertificate, also sees
// resumed sessions: a certificate that expired or a root that went since the
// session began is noticed.
func verify(cs tls.ConnectionState, bundle x509bundle.Source, authorize tlsconfig.Authorizer) error {
	id, chains, err := x509svid.Verify(cs.PeerCertificates, bundle)
	if err != nil {
		return &weft.Error{Kind: weft.Denied, Op: "verify peer", Thing: id.String(), Err: err}
	}
	if err := authorize(id, chains); err != nil {
		return &weft.Error{Kind: weft.Denied, Op: "verify peer", Thing: id.String(), Err: err}
	}
	return nil
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
