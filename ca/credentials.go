package ca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/weftmesh/weft"
)

// Credentials are what a process has to prove its identity and to check others':
// certificate, key and roots, exchanged as one. The zero value holds nothing:
// handshakes fail until Set was called. It is a go-spiffe x509svid.Source and
// x509bundle.Source.
type Credentials struct {
	current  atomic.Pointer[held]
	sessions sessions

	mu    sync.Mutex // also: one writer of current at a time
	dials map[dialKey]*tls.Config
}

// held is immutable, but for what verdicts remember.
type held struct {
	identity weft.Identity
	svid     *x509svid.SVID
	cert     *tls.Certificate
	member   spiffeid.Matcher // of our trust domain
	bundle   *x509bundle.Bundle
	epoch    epoch
	verdicts *verdicts // with bundle
}

var errNoCredentials = &weft.Error{Kind: weft.Unavailable, Op: "use credentials", Err: errors.New("there is no certificate yet")}

// Set replaces certificate, key and roots. They must belong together: the key is
// the leaf's, and the chain leads to one of the roots.
func (c *Credentials) Set(chain [][]byte, key crypto.Signer, roots []*x509.Certificate) error {
	certs := make([]*x509.Certificate, len(chain))
	for i, der := range chain {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return &weft.Error{Kind: weft.Invalid, Op: "set credentials", Err: err}
		}
		certs[i] = cert
	}
	if len(certs) == 0 {
		return weft.Errorf(weft.Invalid, "set credentials", "", "no certificate")
	}
	id, err := identityOf(certs[0])
	if err != nil {
		return err
	}
	type public interface{ Equal(crypto.PublicKey) bool }
	if pub, ok := key.Public().(public); !ok || !pub.Equal(certs[0].PublicKey) {
		return weft.Errorf(weft.Invalid, "set credentials", string(id), "the key is not the certificate's")
	}
	bundle := bundleOf(id, roots)
	// At the certificate's own time: whether it is valid now is for the peers to judge.
	spiffe, _, err := x509svid.Verify(certs, bundle, x509svid.WithTime(certs[0].NotBefore))
	if err != nil {
		return &weft.Error{Kind: weft.Invalid, Op: "set credentials", Thing: string(id), Err: err}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	next := &held{
		identity: id,
		svid:     &x509svid.SVID{ID: spiffe, Certificates: certs, PrivateKey: key},
		cert:     &tls.Certificate{Certificate: chain, PrivateKey: key, Leaf: certs[0]},
		member:   spiffeid.MatchMemberOf(spiffe.TrustDomain()),
		bundle:   bundle,
		epoch:    epochOf(id, roots),
	}
	next.verdicts = c.verdictsFor(next.epoch)
	c.current.Store(next)
	return nil
}

// SetRoots replaces the roots and keeps the certificate.
func (c *Credentials) SetRoots(roots []*x509.Certificate) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.current.Load()
	if now == nil {
		return errNoCredentials
	}
	if len(roots) == 0 {
		return weft.Errorf(weft.Invalid, "set roots", string(now.identity), "no root: nobody could be trusted")
	}
	next := *now
	next.bundle = bundleOf(now.identity, roots)
	next.epoch = epochOf(now.identity, roots)
	next.verdicts = c.verdictsFor(next.epoch)
	c.current.Store(&next)
	return nil
}

// verdictsFor keeps what was verified while the roots stay what they are. It is
// called under mu.
func (c *Credentials) verdictsFor(next epoch) *verdicts {
	if now := c.current.Load(); now != nil && now.epoch == next {
		return now.verdicts
	}
	return new(verdicts)
}

func bundleOf(id weft.Identity, roots []*x509.Certificate) *x509bundle.Bundle {
	td, err := spiffeid.TrustDomainFromString(id.TrustDomain())
	if err != nil {
		return x509bundle.New(spiffeid.TrustDomain{}) // verifies nothing
	}
	return x509bundle.FromX509Authorities(td, roots)
}

func (c *Credentials) held() (*held, error) {
	if h := c.current.Load(); h != nil {
		return h, nil
	}
	return nil, errNoCredentials
}

func (c *Credentials) certificate() (*tls.Certificate, error) {
	h, err := c.held()
	if err != nil {
		return nil, err
	}
	return h.cert, nil
}

// Identity that the certificate proves; "" before Set.
func (c *Credentials) Identity() weft.Identity {
	if h := c.current.Load(); h != nil {
		return h.identity
	}
	return ""
}

// Validity of the certificate; zero times before Set.
func (c *Credentials) Validity() (notBefore, notAfter time.Time) {
	if h := c.current.Load(); h != nil {
		return h.cert.Leaf.NotBefore, h.cert.Leaf.NotAfter
	}
	return time.Time{}, time.Time{}
}

// GetX509SVID implements x509svid.Source.
func (c *Credentials) GetX509SVID() (*x509svid.SVID, error) {
	h, err := c.held()
	if err != nil {
		return nil, err
	}
	return h.svid, nil
}

// GetX509BundleForTrustDomain implements x509bundle.Source. Only the own trust
// domain is known.
func (c *Credentials) GetX509BundleForTrustDomain(td spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	h, err := c.held()
	if err != nil {
		return nil, err
	}
	return h.bundle.GetX509BundleForTrustDomain(td)
}

// NewCSR makes a key and a signing request for it. The identity in the request is
// for the reader only: the authority ignores it.
func NewCSR(id weft.Identity) (key crypto.Signer, csr []byte, err error) {
	spiffe, err := spiffeid.FromString(string(id))
	if err != nil {
		return nil, nil, &weft.Error{Kind: weft.Invalid, Op: "make signing request", Thing: string(id), Err: err}
	}
	priv, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, &weft.Error{Op: "make signing request", Thing: string(id), Err: err}
	}
	template := &x509.CertificateRequest{}
	template.URIs = append(template.URIs, spiffe.URL())
	csr, err = x509.CreateCertificateRequest(rand.Reader, template, priv)
	if err != nil {
		return nil, nil, &weft.Error{Op: "make signing request", Thing: string(id), Err: err}
	}
	return priv, csr, nil
}

func identityOf(cert *x509.Certificate) (weft.Identity, error) {
	id, err := x509svid.IDFromCert(cert)
	if err != nil {
		return "", &weft.Error{Kind: weft.Denied, Op: "read certificate", Err: err}
	}
	return weft.ParseIdentity(id.String())
}
