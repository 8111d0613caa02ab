// Package ca is the certificate authority of a mesh and the workloads' side of
// it: X.509-SVIDs (SPIFFE) that prove which service a process is.
//
// The server opens one Authority on its storage. The first Open of a mesh makes
// the root: an ECDSA P-256 certificate of ten years, whose private key is sealed
// with AES-256-GCM under the seal key before it is stored. Authority.Sign turns a
// workload's signing request into a leaf certificate for the identity that the
// caller has established; what the request itself says about a name is ignored.
//
// A workload makes a key by NewCSR, has the request signed over the control port
// and puts the answer into its Credentials. The TLS configurations that
// Credentials hand out (ServerTLS, DialTLS, ControlTLS) read the current
// certificate and roots at every handshake, so that a rotation needs no new
// configuration and no new listener, and disturbs no open connection. All of them
// speak TLS 1.3 only, and resume sessions.
//
// A process that has no certificate yet knows the mesh by a join token: a secret,
// and a pin of the root (PinOf) by which JoinTLS recognises the right server.
//
// The package does not decide who may have which identity; package control does.
package ca

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net/url"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/weftmesh/weft"
)

// Storage keeps the root. Values are small and secret only as far as they are
// sealed. Calls may block and may come from several processes at once.
type Storage interface {
	// Load returns a value, or found == false when there is none.
	Load(ctx context.Context, name string) (value []byte, found bool, err error)
	// Create writes a value that does not exist yet, durably. When it exists, the
	// error is of kind weft.Conflict.
	Create(ctx context.Context, name string, value []byte) error
}

// Config of an Authority.
type Config struct {
	TrustDomain string           // weft.DefaultTrustDomain when empty
	SealKey     []byte           // 32 bytes, see LoadOrCreateSealKey
	SealKeyFile string           // where SealKey was read, for the error that a wrong one gives
	LeafTTL     time.Duration    // lifetime of workload certificates; 24 h when 0
	Now         func() time.Time // time.Now when nil
}

const (
	rootTTL        = 10 * 365 * 24 * time.Hour
	defaultLeafTTL = 24 * time.Hour
	// backdate is how far clocks of one mesh may lie behind the server's.
	backdate = time.Minute
)

// Authority signs the certificates of one trust domain. Its methods may be
// called from any goroutine.
type Authority struct {
	trustDomain spiffeid.TrustDomain
	leafTTL     time.Duration
	now         func() time.Time
	root        *x509.Certificate
	key         *ecdsa.PrivateKey
}

// Open loads the root of the trust domain, or creates it. Of several that create
// at the same time one wins and all use its root.
func Open(ctx context.Context, s Storage, c Config) (*Authority, error) {
	if c.TrustDomain == "" {
		c.TrustDomain = weft.DefaultTrustDomain
	}
	if c.LeafTTL <= 0 {
		c.LeafTTL = defaultLeafTTL
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	td, err := spiffeid.TrustDomainFromString(c.TrustDomain)
	if err != nil {
		return nil, &weft.Error{Kind: weft.Invalid, Op: "open CA", Thing: "trust domain " + c.TrustDomain, Err: err}
	}
	seal, err := newSealer(c.SealKey, c.SealKeyFile)
	if err != nil {
		return nil, err
	}
	root, key, err := loadOrCreateRoot(ctx, s, seal, td, c.Now())
	if err != nil {
		return nil, err
	}
	if root.URIs[0].Host != td.Name() {
		return nil, weft.Errorf(weft.Conflict, "open CA", "trust domain "+td.Name(),
			"the stored root belongs to trust domain %s; a mesh keeps the one it was made with", root.URIs[0].Host)
	}
	return &Authority{trustDomain: td, leafTTL: c.LeafTTL, now: c.Now, root: root, key: key}, nil
}

// TrustDomain that the authority signs for.
func (a *Authority) TrustDomain() string { return a.trustDomain.Name() }

// LeafTTL is the lifetime of the certificates that Sign makes.
func (a *Authority) LeafTTL() time.Duration { return a.leafTTL }

// Roots that verify what the authority signs.
func (a *Authority) Roots() []*x509.Certificate { return []*x509.Certificate{a.root} }

// Sign makes a certificate for the key of a signing request (PKCS #10, DER). The
// request proves only that its sender holds the key: its subject and extensions
// are ignored, the certificate carries id and nothing else.
func (a *Authority) Sign(csr []byte, id weft.Identity) (chainDER [][]byte, notAfter time.Time, err error) {
	uri, err := a.leafURI(id)
	if err != nil {
		return nil, time.Time{}, err
	}
	req, err := x509.ParseCertificateRequest(csr)
	if err == nil {
		err = req.CheckSignature()
	}
	if err != nil {
		return nil, time.Time{}, &weft.Error{Kind: weft.Invalid, Op: "sign certificate", Thing: string(id), Err: err}
	}
	if pub, ok := req.PublicKey.(*ecdsa.PublicKey); !ok || pub.Curve != elliptic.P256() {
		return nil, time.Time{}, weft.Errorf(weft.Invalid, "sign certificate", string(id), "the request's key is no ECDSA P-256 key")
	}
	now := a.now()
	notAfter = now.Add(a.leafTTL)
	if notAfter.After(a.root.NotAfter) {
		notAfter = a.root.NotAfter
	}
	leaf := &x509.Certificate{
		SerialNumber:          newSerial(),
		NotBefore:             now.Add(-backdate),
		NotAfter:              notAfter,
		URIs:                  []*url.URL{uri},
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, leaf, a.root, req.PublicKey, a.key)
	if err != nil {
		return nil, time.Time{}, &weft.Error{Op: "sign certificate", Thing: string(id), Err: err}
	}
	return [][]byte{der}, notAfter, nil
}

func (a *Authority) leafURI(id weft.Identity) (*url.URL, error) {
	parsed, err := weft.ParseIdentity(string(id))
	if err != nil {
		return nil, err
	}
	spiffe, err := spiffeid.FromString(string(parsed))
	if err != nil {
		return nil, &weft.Error{Kind: weft.Invalid, Op: "sign certificate", Thing: string(id), Err: err}
	}
	if !spiffe.MemberOf(a.trustDomain) {
		return nil, weft.Errorf(weft.Denied, "sign certificate", string(id), "this authority signs for trust domain %s only", a.trustDomain.Name())
	}
	return spiffe.URL(), nil
}

// newRoot makes a self-signed root and its key.
func newRoot(td spiffeid.TrustDomain, now time.Time) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, &weft.Error{Op: "create root", Thing: td.Name(), Err: err}
	}
	template := &x509.Certificate{
		SerialNumber:          newSerial(),
		Subject:               pkix.Name{CommonName: "weft root of " + td.Name()},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(rootTTL),
		URIs:                  []*url.URL{td.ID().URL()},
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, nil, &weft.Error{Op: "create root", Thing: td.Name(), Err: err}
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, nil, &weft.Error{Op: "create root", Thing: td.Name(), Err: err}
	}
	return cert, key, nil
}

// newSerial is 127 random bits: positive, and within the 20 octets of RFC 5280
// §4.1.2.2.
func newSerial() *big.Int {
	var b [16]byte
	rand.Read(b[:]) // never fails (crypto/rand)
	b[0] &= 0x7f
	b[15] |= 1 // not zero
	return new(big.Int).SetBytes(b[:])
}
