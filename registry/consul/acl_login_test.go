package consul

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"strings"
	"testing"
	"time"
)

// issuer signs tokens.
type issuer struct {
	*testing.T
	rsa   *rsa.PrivateKey
	ec    *ecdsa.PrivateKey
	ed    ed25519.PrivateKey
	other *ecdsa.PrivateKey // its key is in no method
}

func newIssuer(t *testing.T) *issuer {
	t.Helper()
	i := &issuer{T: t}
	var errs [4]error
	i.rsa, errs[0] = rsa.GenerateKey(rand.Reader, 2048)
	i.ec, errs[1] = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	_, i.ed, errs[2] = ed25519.GenerateKey(rand.Reader)
	i.other, errs[3] = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
	return i
}

func (i *issuer) pem(key crypto.PublicKey) string {
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		i.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
}

func (i *issuer) sign(alg string, key crypto.Signer, claims map[string]any) string {
	i.Helper()
	part := func(v any) string {
		b, err := json.Marshal(v)
		if err != nil {
			i.Fatal(err)
		}
		return base64.RawURLEncoding.EncodeToString(b)
	}
	text := part(map[string]any{"alg": alg, "typ": "JWT"}) + "." + part(claims)
	digest := sha256.Sum256([]byte(text))
	var signature []byte
	var err error
	switch k := key.(type) {
	case *ecdsa.PrivateKey:
		r, s, failed := ecdsa.Sign(rand.Reader, k, digest[:])
		if err = failed; err == nil {
			signature = append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...)
		}
	case ed25519.PrivateKey:
		signature = ed25519.Sign(k, []byte(text))
	case *rsa.PrivateKey:
		signature, err = k.Sign(rand.Reader, digest[:], crypto.SHA256)
	}
	if err != nil {
		i.Fatal(err)
	}
	return text + "." + base64.RawURLEncoding.EncodeToString(signature)
}

// loginWorld has a method "ci" that believes the issuer, and says who may do what.
func loginWorld(t *testing.T, i *issuer) *world {
	t.Helper()
	w := secured(t)
	method, err := json.Marshal(map[string]any{"Name": "ci", "Type": "jwt", "MaxTokenTTL": "10m", "Config": map[string]any{
		"JWTValidationPubKeys": []string{i.pem(&i.rsa.PublicKey), i.pem(&i.ec.PublicKey), i.pem(i.ed.Public())},
		"JWTSupportedAlgs":     []string{"RS256", "ES256", "EdDSA"},
		"BoundIssuer":          "https://issuer.test", "BoundAudiences": []string{"weft"},
		"ClaimMappings":     map[string]string{"project_path": "project", "/deep/team": "team"},
		"ListClaimMappings": map[string]string{"groups": "groups"},
	}})
	if err != nil {
		t.Fatal(err)
	}
	w.as(rootSecret, "PUT", "/v1/acl/auth-method", string(method)).want(200)
	for _, rule := range []string{
		`{"AuthMethod":"ci","BindType":"service","BindName":"${value.project}","Selector":"value.team == payments"}`,
		`{"AuthMethod":"ci","BindType":"policy","BindName":"global-management","Selector":"admins in list.groups"}`,
		`{"AuthMethod":"ci","BindType":"role","BindName":"none"}`,
	} {
		w.as(rootSecret, "PUT", "/v1/acl/binding-rule", rule).want(200)
	}
	return w
}

// said are good claims, changed a little.
func said(change ...any) map[string]any {
	now := time.Now().Unix()
	c := map[string]any{
		"iss": "https://issuer.test", "aud": "weft", "sub": "job-7", "iat": now, "nbf": now, "exp": now + 300,
		"project_path": "shop", "deep": map[string]any{"team": "payments"}, "groups": []string{"devs"},
	}
	for i := 0; i+1 < len(change); i += 2 {
		if change[i+1] == nil {
			delete(c, change[i].(string))
		} else {
			c[change[i].(string)] = change[i+1]
		}
	}
	return c
}

func (w *world) login(bearer string) answer {
	return w.as("an old token", "POST", "/v1/acl/login", `{"AuthMethod":"ci","BearerToken":"`+bearer+`"}`)
}

func TestLogin(t *testing.T) {
	i := newIssuer(t)
	w := loginWorld(t, i)
	for _, bearer := range []string{
		i.sign("RS256", i.rsa, said()), i.sign("ES256", i.ec, said()), i.sign("EdDSA", i.ed, said()),
		i.sign("ES256", i.ec, said("aud", []string{"x", "weft"})), i.sign("ES256", i.ec, said("exp", nil)), i.sign("ES256", i.ec, said("nbf", nil)),
	} {
		token := w.login(bearer).want(200)
		if token.field("ServiceIdentities.0.ServiceName") != "shop" || token.field("AuthMethod") != "ci" || token.field("Local") != true || token.field("ExpirationTime") == nil {
			t.Errorf("%s", token.body)
		}
		secret := token.field("SecretID").(string)
		w.as(secret, "PUT", "/v1/agent/service/register", `{"Name":"shop"}`).want(200)
		w.as(secret, "PUT", "/v1/agent/service/register", `{"Name":"web"}`).want(403)
		w.as(secret, "POST", "/v1/acl/logout", "").want(200)
		w.as(secret, "PUT", "/v1/agent/service/register", `{"Name":"shop"}`).want(403)
	}
	admin := w.login(i.sign("ES256", i.ec, said("groups", []string{"devs", "admins"}))).want(200).field("SecretID").(string)
	w.as(admin, "GET", "/v1/acl/tokens", "").want(200)
	w.as(rootSecret, "POST", "/v1/acl/logout", "").want(403) // it did not log in
	w.as(rootSecret, "DELETE", "/v1/acl/auth-method/ci", "").want(200)
	if got := w.as(admin, "GET", "/v1/acl/tokens", "").want(403); got.body != "ACL not found\n" {
		t.Errorf("its method is gone: %q", got.body)
	}
}

func TestRefusedLogins(t *testing.T) {
	i := newIssuer(t)
	w := loginWorld(t, i)
	good := i.sign("ES256", i.ec, said())
	now := time.Now().Unix()
	unsigned := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none"}`)) + "." + strings.Split(good, ".")[1] + "."
	// A public key is no secret: it must not do as one of HMAC.
	confused := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"HS256"}`)) + "." + strings.Split(good, ".")[1] + "." + strings.Split(good, ".")[2]
	for what, bearer := range map[string]string{
		"nothing":                   "",
		"no token":                  "abc",
		"no signature":              unsigned,
		"another algorithm":         confused,
		"algorithm of other key":    i.sign("RS256", i.ec, said()),
		"algorithm not accepted":    i.sign("PS256", i.rsa, said()),
		"somebody else's key":       i.sign("ES256", i.other, said()),
		"changed claims":            strings.Split(good, ".")[0] + "." + strings.Split(i.sign("ES256", i.other, said("project_path", "web")), ".")[1] + "." + strings.Split(good, ".")[2],
		"another issuer":            i.sign("ES256", i.ec, said("iss", "https://else.test")),
		"no issuer":                 i.sign("ES256", i.ec, said("iss", nil)),
		"another audience":          i.sign("ES256", i.ec, said("aud", "else")),
		"no audience":               i.sign("ES256", i.ec, said("aud", nil)),
		"expired":                   i.sign("ES256", i.ec, said("exp", now-300)),
		"not yet":                   i.sign("ES256", i.ec, said("nbf", now+300)),
		"without any time":          i.sign("ES256", i.ec, said("exp", nil, "nbf", nil, "iat", nil)),
		"bound by no rule":          i.sign("ES256", i.ec, said("deep", nil)),
		"a name that is none":       i.sign("ES256", i.ec, said("project_path", `a" { policy = "write" }`)),
		"a name of odd letters":     i.sign("ES256", i.ec, said("project_path", "Shop")),
		"a claim that is an object": i.sign("ES256", i.ec, said("project_path", map[string]any{"a": 1})),
	} {
		if got := w.login(bearer); got.status != 403 || !strings.HasPrefix(got.body, "Permission denied") || strings.Contains(got.body, "SecretID") {
			t.Errorf("%s: %d %s", what, got.status, got.body)
		}
	}
	w.send("POST", "/v1/acl/login", `{"AuthMethod":"none","BearerToken":"`+good+`"}`).want(403)
	w.send("POST", "/v1/acl/login", `{`).want(400)
}

func TestAuthMethods(t *testing.T) {
	i := newIssuer(t)
	w := loginWorld(t, i)
	for _, c := range []struct {
		method, path, body string
		status             int
	}{
		{"PUT", "auth-method", `{"Name":"ci","Type":"jwt","Config":{"JWTValidationPubKeys":[` + quote(i.pem(&i.ec.PublicKey)) + `]}}`, 400}, // it is there
		{"PUT", "auth-method", `{"Name":"x","Type":"oidc"}`, 501},
		{"PUT", "auth-method", `{"Name":"x","Type":"jwt"}`, 400},
		{"PUT", "auth-method", `{"Name":"x","Type":"jwt","Config":{"JWTValidationPubKeys":["no key"]}}`, 400},
		{"PUT", "auth-method", `{"Name":"x","Type":"jwt","Config":{"JWKSURL":"https://x.test"}}`, 501},
		{"PUT", "auth-method", `{"Name":"x","Type":"jwt","MaxTokenTTL":"1s"}`, 400},
		{"PUT", "auth-method/none", `{"Name":"none","Type":"jwt","Config":{"JWTValidationPubKeys":[` + quote(i.pem(&i.ec.PublicKey)) + `]}}`, 404},
		{"GET", "auth-method/none", ``, 404},
		{"GET", "auth-method/ci", ``, 200},
		{"GET", "auth-methods", ``, 200},
		{"PUT", "binding-rule", `{"AuthMethod":"none","BindType":"service","BindName":"x"}`, 400},
		{"PUT", "binding-rule", `{"AuthMethod":"ci","BindType":"king","BindName":"x"}`, 400},
		{"PUT", "binding-rule", `{"AuthMethod":"ci","BindType":"service"}`, 400},
		{"PUT", "binding-rule", `{"AuthMethod":"ci","BindType":"service","BindName":"x","Selector":"nonsense =="}`, 400},
		{"PUT", "binding-rule/none", `{"AuthMethod":"ci","BindType":"service","BindName":"x"}`, 404},
		{"GET", "binding-rule/none", ``, 404},
		{"GET", "binding-rules?authmethod=ci", ``, 200},
	} {
		if got := w.as(rootSecret, c.method, "/v1/acl/"+c.path, c.body); got.status != c.status {
			t.Errorf("%s %s %s: %d, want %d: %s", c.method, c.path, c.body, got.status, c.status, got.body)
		}
	}
}
