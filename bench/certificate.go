package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"time"
)

// serverName is what HAProxy A expects of HAProxy B's certificate.
const serverName = "b.bench.internal"

// certificates are files in the form that HAProxy reads: a leaf and its key in one.
type certificates struct{ ca, server, client string }

// writeCertificates makes an authority and two leaves with keys as weft's: ECDSA
// on P-256, for both uses.
func writeCertificates(r *rig) (c certificates, err error) {
	rootKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return c, err
	}
	root := template(1, "bench root")
	root.IsCA, root.BasicConstraintsValid, root.KeyUsage = true, true, x509.KeyUsageCertSign
	der, err := x509.CreateCertificate(rand.Reader, root, root, &rootKey.PublicKey, rootKey)
	if err != nil {
		return c, err
	}
	if c.ca, err = r.write("ca.pem", encode("CERTIFICATE", der)); err != nil {
		return c, err
	}
	if c.server, err = writeLeaf(r, "server.pem", template(2, serverName), root, rootKey); err != nil {
		return c, err
	}
	c.client, err = writeLeaf(r, "client.pem", template(3, "a.bench.internal"), root, rootKey)
	return c, err
}

func template(serial int64, name string) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(24 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
}

func writeLeaf(r *rig, file string, leaf, root *x509.Certificate, rootKey *ecdsa.PrivateKey) (string, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return "", err
	}
	der, err := x509.CreateCertificate(rand.Reader, leaf, root, &key.PublicKey, rootKey)
	if err != nil {
		return "", err
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return "", err
	}
	return r.write(file, encode("CERTIFICATE", der)+encode("PRIVATE KEY", private))
}

func encode(kind string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}
