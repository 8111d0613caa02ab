package node

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weftmesh/weft"
)

// writeCertificate makes one for a name, by rename as tools do.
func writeCertificate(t *testing.T, f CertificateFiles, name string, serial int64) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	leaf := &x509.Certificate{SerialNumber: big.NewInt(serial), DNSNames: []string{name}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, leaf, leaf, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for file, block := range map[string]*pem.Block{f.Cert: {Type: "CERTIFICATE", Bytes: der}, f.Key: {Type: "PRIVATE KEY", Bytes: private}} {
		if err := os.WriteFile(file+".new", pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(file+".new", file); err != nil {
			t.Fatal(err)
		}
	}
}

func certificateFiles(dir, name string) CertificateFiles {
	return CertificateFiles{filepath.Join(dir, name+".pem"), filepath.Join(dir, name+".key")}
}

// shown is the name of the certificate that a client gets, with its serial number.
func shown(t *testing.T, c *certificates, asks string) string {
	t.Helper()
	got, err := c.config().GetCertificate(&tls.ClientHelloInfo{ServerName: asks, SupportedVersions: []uint16{tls.VersionTLS13},
		SignatureSchemes: []tls.SignatureScheme{tls.ECDSAWithP256AndSHA256}, CipherSuites: []uint16{tls.TLS_AES_128_GCM_SHA256}})
	if err != nil {
		t.Fatal(err)
	}
	return got.Leaf.DNSNames[0] + " " + got.Leaf.SerialNumber.String()
}

func TestCertificateIsChosenByName(t *testing.T) {
	dir := t.TempDir()
	shop, blog := certificateFiles(dir, "shop"), certificateFiles(dir, "blog")
	writeCertificate(t, shop, "shop.example", 1)
	writeCertificate(t, blog, "*.blog.example", 2)
	c, err := loadCertificates([]CertificateFiles{shop, blog}, NewLogger(io.Discard, 0))
	if err != nil {
		t.Fatal(err)
	}
	for asks, want := range map[string]string{
		"shop.example": "shop.example 1", "a.blog.example": "*.blog.example 2", "elsewhere": "shop.example 1", "": "shop.example 1",
	} {
		if got := shown(t, c, asks); got != want {
			t.Errorf("%q gets %s, want %s", asks, got, want)
		}
	}
	config := c.config()
	if config.MinVersion != tls.VersionTLS12 || strings.Join(config.NextProtos, " ") != "h2 http/1.1" {
		t.Errorf("from version %x, %v", config.MinVersion, config.NextProtos)
	}
}

func TestChangedCertificatesAreLoaded(t *testing.T) {
	dir := t.TempDir()
	shop := certificateFiles(dir, "shop")
	synctest.Test(t, func(t *testing.T) {
		writeCertificate(t, shop, "shop.example", 1)
		c, err := loadCertificates([]CertificateFiles{shop}, NewLogger(io.Discard, 0))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- c.watch(ctx) }()
		want := func(serial string) {
			t.Helper()
			<-time.After(lookInterval + time.Millisecond)
			synctest.Wait()
			if got := shown(t, c, "shop.example"); got != "shop.example "+serial {
				t.Errorf("%s, want serial %s", got, serial)
			}
		}
		want("1")
		writeCertificate(t, shop, "shop.example", 2)
		want("2")
		if err := os.WriteFile(shop.Cert, []byte("half of"), 0o600); err != nil {
			t.Fatal(err)
		}
		want("2")
		if err := os.Remove(shop.Key); err != nil {
			t.Fatal(err)
		}
		want("2")
		writeCertificate(t, shop, "shop.example", 3)
		want("3")
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestBadCertificatesSayWhatToDo(t *testing.T) {
	dir := t.TempDir()
	shop, blog := certificateFiles(dir, "shop"), certificateFiles(dir, "blog")
	writeCertificate(t, shop, "shop.example", 1)
	writeCertificate(t, blog, "blog.example", 2)
	refuses := func(f CertificateFiles, kind weft.Kind, words ...string) {
		t.Helper()
		_, err := loadCertificates([]CertificateFiles{f}, nil)
		for _, word := range words {
			if err == nil || weft.KindOf(err) != kind || !strings.Contains(err.Error(), word) {
				t.Errorf("%v (kind %d) lacks %q", err, weft.KindOf(err), word)
			}
		}
	}
	refuses(CertificateFiles{shop.Cert, blog.Key}, weft.Invalid, shop.Cert, blog.Key)
	refuses(CertificateFiles{shop.Cert, filepath.Join(dir, "none")}, weft.Invalid, "--key", "none")
	if err := os.Chmod(shop.Key, 0o640); err != nil {
		t.Fatal(err)
	}
	refuses(shop, weft.Denied, shop.Key, "0640", "chmod 600")
}
