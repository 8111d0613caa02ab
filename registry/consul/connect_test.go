package consul

import (
	"context"
	"encoding/json"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weftmesh/weft/ca"
)

// safe is storage for a certificate authority.
type safe struct {
	mu sync.Mutex
	of map[string][]byte
}

func (m *safe) Load(_ context.Context, name string) ([]byte, bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	v, ok := m.of[name]
	return v, ok, nil
}

func (m *safe) Create(_ context.Context, name string, value []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.of[name] = value
	return nil
}

func newAuthority(t *testing.T, c ca.Config) *ca.Authority {
	t.Helper()
	c.SealKey = make([]byte, 32)
	a, err := ca.Open(t.Context(), &safe{of: map[string][]byte{}}, c)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestConnectOff(t *testing.T) {
	w := newWorld(t)
	for _, path := range []string{"/v1/connect/ca/roots", "/v1/agent/connect/ca/roots", "/v1/agent/connect/ca/leaf/web", "/v1/connect/ca/configuration"} {
		if a := w.send("GET", path, ""); a.status != 500 || !strings.Contains(a.body, "Connect must be enabled") {
			t.Errorf("%s: %d %s", path, a.status, a.body)
		}
	}
}

func TestRoots(t *testing.T) {
	w := worldWith(t, Config{CA: newAuthority(t, ca.Config{})})
	var list rootList
	a := w.get("/v1/connect/ca/roots")
	if err := json.Unmarshal([]byte(a.body), &list); err != nil {
		t.Fatal(err)
	}
	r := list.Roots[0]
	if list.TrustDomain != "cluster.local" || len(list.Roots) != 1 || !r.Active || r.ID != list.ActiveRootID || r.PrivateKeyType != "ec" || r.PrivateKeyBits != 256 ||
		!strings.HasPrefix(r.RootCert, "-----BEGIN CERTIFICATE-----") || !r.NotAfter.After(time.Now()) || a.index() == 0 {
		t.Errorf("%+v", list)
	}
	pem := w.get("/v1/agent/connect/ca/roots?pem=true")
	if pem.body != r.RootCert || pem.header.Get("Content-Type") != "application/pem-certificate-chain" {
		t.Errorf("%v %s", pem.header, pem.body)
	}
	began := time.Now()
	w.get("/v1/connect/ca/roots?wait=50ms&index=" + itoa(a.index()))
	if time.Since(began) < 50*time.Millisecond {
		t.Error("who waits for new roots is answered at once")
	}
}

func TestCAConfiguration(t *testing.T) {
	w := worldWith(t, Config{CA: newAuthority(t, ca.Config{})})
	a := w.get("/v1/connect/ca/configuration")
	w.put("/v1/connect/ca/configuration", a.body)
	for body, says := range map[string]string{
		`{"Provider":"vault"}`:                                     "vault",
		`{"Provider":"weft","Config":{"LeafCertTTL":"1h"}}`:        "LeafCertTTL",
		`{"Provider":"weft","Config":{"RootCertTTL":{"a":["b"]}}}`: "RootCertTTL",
	} {
		if a := w.send("PUT", "/v1/connect/ca/configuration", body); a.status != 501 || !strings.Contains(a.body, says) {
			t.Errorf("%s: %d %s", body, a.status, a.body)
		}
	}
	w.send("PUT", "/v1/connect/ca/configuration", "").want(400)
}

func TestLeaf(t *testing.T) {
	w := worldWith(t, Config{CA: newAuthority(t, ca.Config{})})
	leafOf := func(a answer) (l leafRecord) {
		if err := json.Unmarshal([]byte(a.body), &l); err != nil {
			t.Fatal(err)
		}
		return l
	}
	first := w.get("/v1/agent/connect/ca/leaf/web")
	l := leafOf(first)
	if l.Service != "web" || l.ServiceURI != "spiffe://cluster.local/ns/default/sa/web" || l.ModifyIndex != first.index() || l.PrivateKeyPEM == "" ||
		!l.ValidAfter.Before(time.Now()) || !l.ValidBefore.After(time.Now()) {
		t.Errorf("%+v", l)
	}
	if again := leafOf(w.get("/v1/agent/connect/ca/leaf/web")); again != l {
		t.Error("who asks again gets another certificate")
	}
	if other := leafOf(w.get("/v1/agent/connect/ca/leaf/db")); other.SerialNumber == l.SerialNumber || other.ServiceURI != "spiffe://cluster.local/ns/default/sa/db" {
		t.Errorf("%+v", other)
	}
	w.send("GET", "/v1/agent/connect/ca/leaf/", "").want(400)
	w.send("GET", "/v1/agent/connect/ca/leaf/a%2Fb", "").want(400)
}

// Who waits for the next certificate gets it when two thirds of its life are over.
func TestLeafIsRenewed(t *testing.T) {
	w := worldWith(t, Config{CA: newAuthority(t, ca.Config{LeafTTL: 1500 * time.Millisecond})})
	first := w.get("/v1/agent/connect/ca/leaf/web")
	next := w.get("/v1/agent/connect/ca/leaf/web?wait=10s&index=" + itoa(first.index()))
	if next.index() <= first.index() || next.body == first.body {
		t.Errorf("index %d after %d", next.index(), first.index())
	}
}

func TestConnectAuthorize(t *testing.T) {
	w := worldWith(t, Config{CA: newAuthority(t, ca.Config{})})
	w.intend("web", "db", `"Action":"deny"`)
	w.intend("shop", "db", `"Permissions":[{"Action":"allow","HTTP":{"PathPrefix":"/"}}]`)
	for _, c := range []struct {
		body       string
		status     int
		authorized bool
		says       string
	}{
		{`{"Target":"db","ClientCertURI":"spiffe://cluster.local/ns/default/sa/web"}`, 200, false, "DENY default/web"},
		{`{"Target":"db","ClientCertURI":"spiffe://cluster.local/ns/default/dc/dc1/svc/web"}`, 200, false, "DENY default/web"},
		{`{"Target":"db","ClientCertURI":"spiffe://cluster.local/ap/default/ns/default/dc/dc1/svc/web"}`, 200, false, "DENY default/web"},
		{`{"Target":"db","ClientCertURI":"spiffe://cluster.local/ns/other/sa/web"}`, 200, true, "Default behavior"},
		{`{"Target":"db","ClientCertURI":"spiffe://CLUSTER.local/ns/default/sa/api"}`, 200, true, "Default behavior"},
		{`{"Target":"db","ClientCertURI":"spiffe://elsewhere/ns/default/sa/api"}`, 200, false, "external trust domain"},
		{`{"Target":"db","ClientCertURI":"spiffe://cluster.local/ns/default/sa/shop"}`, 200, false, "L7 permissions"},
		{`{"Target":"db","ClientCertURI":"spiffe://cluster.local/agent/x"}`, 400, false, "valid Service identifier"},
		{`{"Target":"db","ClientCertURI":"https://cluster.local/"}`, 400, false, "valid Connect identifier"},
		{`{"Target":"db","ClientCertURI":"%"}`, 400, false, "valid Connect identifier"},
		{`{"ClientCertURI":"spiffe://cluster.local/ns/default/sa/web"}`, 400, false, "Target service must be specified"},
		{``, 400, false, "body"},
	} {
		a := w.send("POST", "/v1/agent/connect/authorize", c.body)
		if a.status != c.status || !strings.Contains(a.body, c.says) || strings.Contains(a.body, `"Authorized":true`) != c.authorized {
			t.Errorf("%s: %d %s", c.body, a.status, a.body)
		}
	}
}
