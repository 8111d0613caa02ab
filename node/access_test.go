package node

import (
	"crypto/tls"
	"crypto/x509"
	"io"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/weftmesh/weft"
)

func TestAccessThatWouldNotHold(t *testing.T) {
	pair := []CertificateFiles{{Cert: "c", Key: "k"}}
	for _, tt := range []struct {
		access Access
		says   string // empty: it is right
	}{
		{Access{}, ""},
		{Access{Default: "allow"}, ""},
		{Access{Default: "deny", Management: "secret", EurekaHTTPS: ":8762", Certificates: pair}, ""},
		{Access{Default: "yes"}, "--acl"},
		{Access{DefaultIntention: "no"}, "--default-intention"},
		{Access{Management: "secret"}, "--acl-token-file"},
		{Access{Default: "deny", ConsulHTTPS: ":8501"}, "--cert"},
		{Access{Certificates: pair}, "--consul-https"},
	} {
		err := tt.access.check()
		if tt.says == "" && err != nil || tt.says != "" && (weft.KindOf(err) != weft.Invalid || !strings.Contains(err.Error(), tt.says)) {
			t.Errorf("%+v: %v, want %q", tt.access, err, tt.says)
		}
	}
}

func TestDoorsBeyondLoopback(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*ServerConfig)
		says   string
	}{
		{"Consul in plain text", func(c *ServerConfig) { c.Consul = "0.0.0.0:0" }, "--consul-https"},
		{"Eureka in plain text", func(c *ServerConfig) { c.Eureka = "0.0.0.0:0" }, "--eureka-https"},
		{"TLS without tokens", func(c *ServerConfig) { c.ConsulHTTPS, c.Access.Default = "0.0.0.0:0", "allow" }, "--acl deny"},
		{"DNS for everybody", func(c *ServerConfig) { c.DNS = "0.0.0.0:0" }, "--dns-clients"},
		{"the API", func(c *ServerConfig) { c.API = "0.0.0.0:0" }, "127.0.0.1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := onFreePorts(t)
			tt.change(&c)
			if c.ConsulHTTPS != "" {
				c.Certificates = []CertificateFiles{selfSigned(t)}
			}
			_, err := NewServer(t.Context(), c)
			if weft.KindOf(err) != weft.Denied || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("got %v, want weft.Denied that says %s", err, tt.says)
			}
		})
	}
}

func TestTokensOverTLS(t *testing.T) {
	c := onFreePorts(t)
	pair := selfSigned(t)
	c.Access = Access{
		Default: "deny", Management: "5f3b1a0e-5d5c-4a8e-9a55-0d1c2b3a4f5e", ConsulHTTPS: "127.0.0.1:0", EurekaHTTPS: "127.0.0.1:0",
		Certificates: []CertificateFiles{pair}, DNSClients: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")},
	}
	s := serveTest(t, c)
	browser := trusting(t, pair)
	ask := func(url string, prepare func(*http.Request)) (int, string) {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
		if err != nil {
			t.Fatal(err)
		}
		if prepare != nil {
			prepare(r)
		}
		resp, err := browser.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(b)
	}
	token := func(r *http.Request) { r.Header.Set("X-Consul-Token", c.Management) }
	basic := func(r *http.Request) { r.SetBasicAuth("weft", c.Management) }
	wrong := func(r *http.Request) { r.SetBasicAuth("weft", "wrong") }
	consulTLS, eurekaTLS := "https://"+s.doors.consulHTTPS.Addr().String(), "https://"+s.doors.eurekaHTTPS.Addr().String()
	const apps = "/eureka/apps"
	for _, tt := range []struct {
		name, url string
		prepare   func(*http.Request)
		status    int
	}{
		{"Consul with a token", consulTLS + "/v1/kv/a", token, http.StatusNotFound},
		{"Consul without", consulTLS + "/v1/kv/a", nil, http.StatusForbidden},
		{"Consul in plain text, without", "http://" + s.doors.consul.Addr().String() + "/v1/kv/a", nil, http.StatusForbidden},
		{"Eureka with a password", eurekaTLS + apps, basic, http.StatusOK},
		{"Eureka without", eurekaTLS + apps, nil, http.StatusUnauthorized},
		{"Eureka with a wrong one", eurekaTLS + apps, wrong, http.StatusForbidden},
		{"Eureka in plain text, without", "http://" + s.doors.eureka.Addr().String() + apps, nil, http.StatusUnauthorized},
	} {
		if status, body := ask(tt.url, tt.prepare); status != tt.status {
			t.Errorf("%s: status %d %s, want %d", tt.name, status, body, tt.status)
		}
	}
}

// selfSigned is a certificate for shop.example.com.
func selfSigned(t *testing.T) CertificateFiles {
	t.Helper()
	pair := certificateFiles(t.TempDir(), "shop")
	writeCertificate(t, pair, "shop.example.com", 1)
	return pair
}

// trusting is a client that trusts one certificate.
func trusting(t *testing.T, pair CertificateFiles) *http.Client {
	t.Helper()
	pem, err := os.ReadFile(pair.Cert)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		t.Fatal(filepath.Base(pair.Cert) + " has no certificate")
	}
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, ServerName: "shop.example.com"}, ForceAttemptHTTP2: true}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}
