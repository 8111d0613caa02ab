package ca

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/weftmesh/weft"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// memory is a Storage. beforeCreate, when set, runs before each Create.
type memory struct {
	beforeCreate func()

	mu     sync.Mutex
	values map[string][]byte
}

func (m *memory) Load(_ context.Context, name string) ([]byte, bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	v, ok := m.values[name]
	return v, ok, nil
}

func (m *memory) Create(_ context.Context, name string, value []byte) error {
	if m.beforeCreate != nil {
		m.beforeCreate()
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.values[name]; ok {
		return weft.Errorf(weft.Conflict, "create", name, "it exists")
	}
	if m.values == nil {
		m.values = make(map[string][]byte)
	}
	m.values[name] = value
	return nil
}

func sealKey(b byte) []byte { return bytes.Repeat([]byte{b}, 32) }

func openAuthority(t *testing.T, s Storage, c Config) *Authority {
	t.Helper()
	if c.SealKey == nil {
		c.SealKey = sealKey(1)
	}
	a, err := Open(t.Context(), s, c)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// issue gives new credentials for a service account to c.
func issue(t *testing.T, a *Authority, c *Credentials, sa string) *Credentials {
	t.Helper()
	id := weft.NewIdentity(a.TrustDomain(), "default", sa)
	key, csr, err := NewCSR(id)
	if err != nil {
		t.Fatal(err)
	}
	chain, _, err := a.Sign(csr, id)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Set(chain, key, a.Roots()); err != nil {
		t.Fatal(err)
	}
	return c
}

func TestLeafCarriesTheIdentityAndNothingOfTheRequest(t *testing.T) {
	now := time.Date(2030, 5, 1, 12, 0, 0, 0, time.UTC)
	a := openAuthority(t, &memory{}, Config{Now: func() time.Time { return now }})
	_, csr, err := NewCSR("spiffe://cluster.local/ns/default/sa/somebody-else")
	if err != nil {
		t.Fatal(err)
	}
	id := weft.Identity("spiffe://cluster.local/ns/default/sa/order-service")
	chain, notAfter, err := a.Sign(csr, id)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(chain[0])
	if err != nil {
		t.Fatal(err)
	}
	if len(leaf.URIs) != 1 || leaf.URIs[0].String() != string(id) {
		t.Errorf("URI SANs %v, want only %s", leaf.URIs, id)
	}
	if leaf.Subject.String() != "" || len(leaf.DNSNames) > 0 {
		t.Errorf("the leaf has subject %q and names %v", leaf.Subject, leaf.DNSNames)
	}
	if want := now.Add(24 * time.Hour); !leaf.NotAfter.Equal(want) || !notAfter.Equal(want) {
		t.Errorf("valid until %v (told: %v), want %v", leaf.NotAfter, notAfter, want)
	}
	if want := now.Add(-time.Minute); !leaf.NotBefore.Equal(want) {
		t.Errorf("valid from %v, want %v", leaf.NotBefore, want)
	}
	if leaf.IsCA || leaf.SerialNumber.Sign() <= 0 {
		t.Errorf("IsCA %v, serial %v", leaf.IsCA, leaf.SerialNumber)
	}
	if life := a.Roots()[0].NotAfter.Sub(now); life != 10*365*24*time.Hour {
		t.Errorf("the root lives %v", life)
	}
}

func TestSignRefuses(t *testing.T) {
	a := openAuthority(t, &memory{}, Config{})
	good := weft.Identity("spiffe://cluster.local/ns/default/sa/x")
	_, csr, err := NewCSR(good)
	if err != nil {
		t.Fatal(err)
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	rsaCSR, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, rsaKey)
	if err != nil {
		t.Fatal(err)
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p384CSR, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, p384)
	if err != nil {
		t.Fatal(err)
	}
	forged := bytes.Clone(csr)
	forged[len(forged)-1] ^= 1 // the last byte of its signature
	for name, c := range map[string]struct {
		csr  []byte
		id   weft.Identity
		kind weft.Kind
	}{
		"a request whose signature is wrong":       {forged, good, weft.Invalid},
		"bytes that are no request":                {[]byte("hello"), good, weft.Invalid},
		"an RSA key":                               {rsaCSR, good, weft.Invalid},
		"another curve":                            {p384CSR, good, weft.Invalid},
		"another trust domain":                     {csr, "spiffe://other.example/ns/default/sa/x", weft.Denied},
		"an identity without service account":      {csr, "spiffe://cluster.local/ns/default", weft.Invalid},
		"characters that SPIFFE does not allow":    {csr, "spiffe://cluster.local/ns/default/sa/a b", weft.Invalid},
		"a service account that climbs (dot path)": {csr, "spiffe://cluster.local/ns/default/sa/..", weft.Invalid},
	} {
		t.Run(name, func(t *testing.T) {
			_, _, err := a.Sign(c.csr, c.id)
			if err == nil || weft.KindOf(err) != c.kind {
				t.Fatalf("got %v, want an error of kind %d", err, c.kind)
			}
		})
	}
}

func TestRootSurvivesRestartUnderItsSealKey(t *testing.T) {
	s := &memory{}
	first := openAuthority(t, s, Config{SealKey: sealKey(1)})
	again := openAuthority(t, s, Config{SealKey: sealKey(1)})
	if !first.Roots()[0].Equal(again.Roots()[0]) {
		t.Fatal("the second Open has another root")
	}
	// What it signs now is good for those who trusted the root before.
	var before, after Credentials
	issue(t, first, &before, "a")
	issue(t, again, &after, "b")
	if err := handshake(t, before.ServerTLS(), after.ClientTLS("spiffe://cluster.local/ns/default/sa/a")); err != nil {
		t.Error(err)
	}
	if bytes.Contains(s.values["root"], mustPKCS8(t, first.key)) {
		t.Error("the private key is stored as it is")
	}

	_, err := Open(t.Context(), s, Config{SealKey: sealKey(2), SealKeyFile: "/data/seal.key"})
	if err == nil || weft.KindOf(err) != weft.Denied || !strings.Contains(err.Error(), "/data/seal.key") {
		t.Errorf("a wrong seal key gives %v, want a refusal that names the file", err)
	}
	_, err = Open(t.Context(), s, Config{SealKey: sealKey(1), TrustDomain: "other.example"})
	if err == nil || !strings.Contains(err.Error(), "cluster.local") {
		t.Errorf("another trust domain on the same data gives %v", err)
	}
}

func TestTamperedRootIsRefused(t *testing.T) {
	a, b := &memory{}, &memory{}
	openAuthority(t, a, Config{})
	openAuthority(t, b, Config{})
	for name, record := range map[string]string{
		"not JSON":                        "{",
		"certificate of another root":     exchangeCertificate(t, a, b),
		"neither certificate nor a key":   `{}`,
		"a certificate without a key":     strings.Split(string(a.values["root"]), `,"sealedKey"`)[0] + "}",
		"a certificate, and a short seal": strings.Split(string(a.values["root"]), `,"sealedKey"`)[0] + `,"sealedKey":"AAAA"}`,
	} {
		t.Run(name, func(t *testing.T) {
			s := &memory{values: map[string][]byte{"root": []byte(record)}}
			if _, err := Open(t.Context(), s, Config{SealKey: sealKey(1)}); err == nil {
				t.Fatal("it was accepted")
			}
		})
	}
}

func exchangeCertificate(t *testing.T, a, b *memory) string {
	t.Helper()
	_, sealedA, okA := strings.Cut(string(a.values["root"]), `,"sealedKey"`)
	certB, _, okB := strings.Cut(string(b.values["root"]), `,"sealedKey"`)
	if !okA || !okB {
		t.Fatal("the record's form has changed")
	}
	return certB + `,"sealedKey"` + sealedA
}

func TestTwoOpensMakeOneRoot(t *testing.T) {
	// Both see an empty storage, and meet before they create.
	var meet sync.WaitGroup
	meet.Add(2)
	s := &memory{beforeCreate: func() { meet.Done(); meet.Wait() }}
	roots := make([]*x509.Certificate, 2)
	var done sync.WaitGroup
	for i := range roots {
		done.Go(func() {
			a, err := Open(t.Context(), s, Config{SealKey: sealKey(1)})
			if err != nil {
				t.Error(err)
				return
			}
			roots[i] = a.Roots()[0]
		})
	}
	done.Wait()
	if !t.Failed() && !roots[0].Equal(roots[1]) {
		t.Fatal("there are two roots")
	}
}

func TestSealKeyFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "seal.key")
	key, err := LoadOrCreateSealKey(path)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o600 || len(key) != 32 {
		t.Errorf("mode %v, %d bytes", info.Mode(), len(key))
	}
	again, err := LoadOrCreateSealKey(path)
	if err != nil || !bytes.Equal(key, again) {
		t.Errorf("the second call returns another key (%v)", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("beside the key: %v (%v)", entries, err)
	}
	other, err := LoadOrCreateSealKey(filepath.Join(dir, "other.key"))
	if err != nil || bytes.Equal(key, other) {
		t.Errorf("two files hold the same key (%v)", err)
	}
}

func TestBadSealKeyFile(t *testing.T) {
	good := hex.EncodeToString(sealKey(7))
	for name, c := range map[string]struct {
		text string
		mode os.FileMode
		says string
	}{
		"readable by others": {good, 0o644, "chmod 600"},
		"too short":          {good[:62], 0o600, "64 hex digits"},
		"empty":              {"", 0o600, "64 hex digits"},
		"not hex":            {strings.Repeat("z", 64), 0o600, "64 hex digits"},
		"huge":               {strings.Repeat("a", 4096), 0o600, "64 hex digits"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "seal.key")
			if err := os.WriteFile(path, []byte(c.text), c.mode); err != nil {
				t.Fatal(err)
			}
			_, err := LoadOrCreateSealKey(path)
			if err == nil || !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), path) {
				t.Fatalf("got %v, want the path and %q", err, c.says)
			}
			if text, _ := os.ReadFile(path); string(text) != c.text {
				t.Error("the file was changed")
			}
		})
	}
}

func TestSealKeyIsCreatedOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "seal.key")
	keys := make([][]byte, 8)
	var done sync.WaitGroup
	for i := range keys {
		done.Go(func() {
			key, err := LoadOrCreateSealKey(path)
			if err != nil {
				t.Error(err)
			}
			keys[i] = key
		})
	}
	done.Wait()
	for _, key := range keys[1:] {
		if !bytes.Equal(key, keys[0]) {
			t.Fatal("two callers have different keys")
		}
	}
}

func TestJoinToken(t *testing.T) {
	a := openAuthority(t, &memory{}, Config{})
	text, err := NewJoinToken(a.Roots())
	if err != nil {
		t.Fatal(err)
	}
	token, err := ParseJoinToken(text)
	if err != nil {
		t.Fatal(err)
	}
	if token.Pin() != PinOf(a.Roots()[0]) {
		t.Error("the pin is not the root's")
	}
	if strings.Contains(token.String(), token.secret) {
		t.Error("String shows the secret")
	}
	otherText, err := NewJoinToken(a.Roots())
	if err != nil {
		t.Fatal(err)
	}
	other, err := ParseJoinToken(otherText)
	if err != nil {
		t.Fatal(err)
	}
	if !token.Admits(token) || token.Admits(other) || token.Admits(JoinToken{}) || (JoinToken{}).Admits(JoinToken{}) {
		t.Error("a token admits exactly its own secret")
	}
	for _, bad := range []string{"", "weft-join", text + ".x", text[1:], strings.ToUpper(text), text[:len(text)-1]} {
		if _, err := ParseJoinToken(bad); err == nil || bad != "" && strings.Contains(err.Error(), bad+" ") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func mustPKCS8(t *testing.T, key *ecdsa.PrivateKey) []byte {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}
