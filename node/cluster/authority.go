package cluster

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io/fs"
	"math/big"
	"net"
	"os"
	"time"

	"github.com/weftmesh/weft"
)

const (
	authorityLife = 20 * 365 * 24 * time.Hour
	// peerLife is long, because the certificate is made anew at half of it, and the
	// key of its authority is on every server anyway.
	peerLife = 365 * 24 * time.Hour
	skew     = 5 * time.Minute // of the servers' clocks
)

// certify gives this server's store a certificate. The first server of a cluster
// makes the authority.
func (c *Cluster) certify() error {
	authority, key, err := c.authority()
	if err != nil {
		return err
	}
	host, _, err := net.SplitHostPort(c.config.Peer)
	if err != nil {
		return err
	}
	own, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: c.config.Name},
		NotBefore: now.Add(-skew), NotAfter: now.Add(peerLife),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	if ip := net.ParseIP(host); ip != nil {
		template.IPAddresses = []net.IP{ip}
	} else {
		template.DNSNames = []string{host}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, authority, own.Public(), key)
	if err != nil {
		return err
	}
	ownDER, err := x509.MarshalECPrivateKey(own)
	if err != nil {
		return err
	}
	if err := writePEM(c.file("peer.key"), "EC PRIVATE KEY", ownDER); err != nil {
		return err
	}
	return writePEM(c.file("peer.pem"), "CERTIFICATE", der)
}

// authority reads the servers' authority, or makes it.
func (c *Cluster) authority() (*x509.Certificate, *ecdsa.PrivateKey, error) {
	certPEM, err := os.ReadFile(c.file("ca.pem"))
	if errors.Is(err, fs.ErrNotExist) {
		return c.newAuthority()
	}
	if err != nil {
		return nil, nil, fileError("read", c.file("ca.pem"), err)
	}
	keyPEM, err := os.ReadFile(c.file("ca.key"))
	if err != nil {
		return nil, nil, fileError("read", c.file("ca.key"), err)
	}
	cert, err := x509.ParseCertificate(block(certPEM))
	if err != nil {
		return nil, nil, fileError("read", c.file("ca.pem"), err)
	}
	key, err := x509.ParseECPrivateKey(block(keyPEM))
	if err != nil {
		return nil, nil, fileError("read", c.file("ca.key"), errors.New("it is no private key in PEM")) // without a word of the key
	}
	return cert, key, nil
}

func (c *Cluster) newAuthority() (*x509.Certificate, *ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: "weft servers"},
		NotBefore: now.Add(-skew), NotAfter: now.Add(authorityLife),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, nil, err
	}
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, nil, err
	}
	if err := writePEM(c.file("ca.key"), "EC PRIVATE KEY", keyDER); err != nil {
		return nil, nil, err
	}
	return cert, key, writePEM(c.file("ca.pem"), "CERTIFICATE", der)
}

func serial() *big.Int {
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		panic(err) // package rand never fails
	}
	return n
}

func block(b []byte) []byte {
	p, _ := pem.Decode(b)
	if p == nil {
		return nil
	}
	return p.Bytes
}

func writePEM(path, what string, der []byte) error {
	return writeFile(path, pem.EncodeToMemory(&pem.Block{Type: what, Bytes: der}))
}

// writeFile replaces a file as a whole, readable by its owner only.
func writeFile(path string, b []byte) error {
	next := path + ".new"
	if err := os.WriteFile(next, b, 0o600); err != nil {
		return fileError("write", next, err)
	}
	if err := os.Rename(next, path); err != nil {
		return &weft.Error{Kind: weft.Internal, Op: "write", Thing: path, Err: err}
	}
	return nil
}
