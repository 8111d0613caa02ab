package consul

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	_ "crypto/sha256" // for crypto.SHA256
	_ "crypto/sha512" // for crypto.SHA384, crypto.SHA512
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/weftmesh/weft"
)

// jwtConfig says which JSON web tokens (RFC 7519) are believed, and which of their
// claims are told to binding rules.
type jwtConfig struct {
	JWTValidationPubKeys []string          // PEM
	JWTSupportedAlgs     []string          `json:",omitempty"` // RS256 when empty
	BoundIssuer          string            `json:",omitempty"`
	BoundAudiences       []string          `json:",omitempty"` // one of these, when there are any
	ClaimMappings        map[string]string `json:",omitempty"` // claim -> name
	ListClaimMappings    map[string]string `json:",omitempty"`
	ExpirationLeeway     weft.Duration     `json:",omitempty"`
	NotBeforeLeeway      weft.Duration     `json:",omitempty"`
	ClockSkewLeeway      weft.Duration     `json:",omitempty"`
}

// jwtConfigBody is what is sent. What would have to be fetched from elsewhere is
// refused.
type jwtConfigBody struct {
	jwtConfig
	ExpirationLeeway, NotBeforeLeeway, ClockSkewLeeway duration
	JWKSURL, OIDCDiscoveryURL                          string
}

const (
	maxJWT = 16 << 10
	// What Consul documents for tokens that do not say when they end, and for clocks.
	defaultJWTLeeway = 150 * time.Second
	defaultClockSkew = 60 * time.Second
)

// jwtAlgorithm is how a kind of signature is checked (RFC 7518 §3.1, RFC 8037).
type jwtAlgorithm struct {
	hash   crypto.Hash
	verify func(key crypto.PublicKey, hash crypto.Hash, digest, signed, signature []byte) bool
}

var jwtAlgorithms = map[string]jwtAlgorithm{
	"RS256": {crypto.SHA256, verifyPKCS1}, "RS384": {crypto.SHA384, verifyPKCS1}, "RS512": {crypto.SHA512, verifyPKCS1},
	"PS256": {crypto.SHA256, verifyPSS}, "PS384": {crypto.SHA384, verifyPSS}, "PS512": {crypto.SHA512, verifyPSS},
	"ES256": {crypto.SHA256, verifyECDSA}, "ES384": {crypto.SHA384, verifyECDSA}, "ES512": {crypto.SHA512, verifyECDSA},
	"EdDSA": {0, verifyEd25519},
}

func verifyPKCS1(key crypto.PublicKey, hash crypto.Hash, digest, _, signature []byte) bool {
	k, ok := key.(*rsa.PublicKey)
	return ok && rsa.VerifyPKCS1v15(k, hash, digest, signature) == nil
}

func verifyPSS(key crypto.PublicKey, hash crypto.Hash, digest, _, signature []byte) bool {
	k, ok := key.(*rsa.PublicKey)
	return ok && rsa.VerifyPSS(k, hash, digest, signature, nil) == nil
}

// verifyECDSA takes a signature of two numbers as long as the curve's field; the
// curve goes with the hash (RFC 7518 §3.4).
func verifyECDSA(key crypto.PublicKey, hash crypto.Hash, digest, _, signature []byte) bool {
	k, ok := key.(*ecdsa.PublicKey)
	bits := map[crypto.Hash]int{crypto.SHA256: 256, crypto.SHA384: 384, crypto.SHA512: 521}[hash]
	if !ok || k.Curve.Params().BitSize != bits || len(signature) != 2*((bits+7)/8) {
		return false
	}
	half := len(signature) / 2
	return ecdsa.Verify(k, digest, new(big.Int).SetBytes(signature[:half]), new(big.Int).SetBytes(signature[half:]))
}

func verifyEd25519(key crypto.PublicKey, _ crypto.Hash, _, signed, signature []byte) bool {
	k, ok := key.(ed25519.PublicKey)
	return ok && ed25519.Verify(k, signed, signature)
}

func (b *jwtConfigBody) config() (*jwtConfig, error) {
	c := b.jwtConfig
	switch {
	case b.JWKSURL != "" || b.OIDCDiscoveryURL != "":
		return nil, refuse(http.StatusNotImplemented, "weft fetches no keys: write them as PEM in JWTValidationPubKeys, not JWKSURL or OIDCDiscoveryURL")
	case len(c.JWTValidationPubKeys) == 0:
		return nil, refuse(http.StatusBadRequest, "Invalid Auth Method: JWTValidationPubKeys is missing")
	}
	for _, text := range c.JWTValidationPubKeys {
		if _, err := parsePublicKey(text); err != nil {
			return nil, refuse(http.StatusBadRequest, "Invalid Auth Method: JWTValidationPubKeys: %v", err)
		}
	}
	for _, name := range c.JWTSupportedAlgs {
		if _, ok := jwtAlgorithms[name]; !ok {
			return nil, refuse(http.StatusBadRequest, "Invalid Auth Method: unsupported signing algorithm %q", name)
		}
	}
	var err error
	for field, d := range map[string]struct {
		text duration
		to   *weft.Duration
	}{
		"ExpirationLeeway": {b.ExpirationLeeway, &c.ExpirationLeeway},
		"NotBeforeLeeway":  {b.NotBeforeLeeway, &c.NotBeforeLeeway},
		"ClockSkewLeeway":  {b.ClockSkewLeeway, &c.ClockSkewLeeway},
	} {
		if *d.to, err = d.text.parse(field); err != nil {
			return nil, err
		}
	}
	return &c, nil
}

// parsePublicKey reads a public key, or a certificate's.
func parsePublicKey(text string) (crypto.PublicKey, error) {
	block, _ := pem.Decode([]byte(text))
	if block == nil {
		return nil, errors.New("want a key in PEM")
	}
	switch block.Type {
	case "CERTIFICATE":
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		return c.PublicKey, nil
	case "RSA PUBLIC KEY":
		return x509.ParsePKCS1PublicKey(block.Bytes)
	}
	return x509.ParsePKIXPublicKey(block.Bytes)
}

// registered are the claims of RFC 7519 §4.1 that decide whether a token holds now.
type registered struct {
	Issuer    string          `json:"iss"`
	Audience  json.RawMessage `json:"aud"` // a text or a list
	Expires   *float64        `json:"exp"` // seconds since 1970
	NotBefore *float64        `json:"nbf"`
	IssuedAt  *float64        `json:"iat"`
}

// verify checks a token, and returns what it says. Errors do not repeat it.
func (c *jwtConfig) verify(text string, now time.Time) (*claims, error) {
	payload, err := c.open(text)
	if err != nil {
		return nil, err
	}
	var r registered
	if err := json.Unmarshal(payload, &r); err != nil {
		return nil, errors.New("the token's claims cannot be read")
	}
	if c.BoundIssuer != "" && r.Issuer != c.BoundIssuer {
		return nil, errors.New("the token is of another issuer")
	}
	// A token that is for somebody must be for us, even when nothing says who we are
	// (RFC 7519 §4.1.3).
	audience := texts(r.Audience)
	if (len(c.BoundAudiences) > 0 || len(audience) > 0) && !slices.ContainsFunc(audience, func(s string) bool { return slices.Contains(c.BoundAudiences, s) }) {
		return nil, errors.New("the token is for another audience")
	}
	if err := c.checkTime(&r, now); err != nil {
		return nil, err
	}
	return c.mapped(payload)
}

// open checks a token's signature, and returns its payload.
func (c *jwtConfig) open(text string) ([]byte, error) {
	parts := strings.Split(text, ".")
	if len(text) > maxJWT || len(parts) != 3 {
		return nil, errors.New("want a signed JSON web token")
	}
	var raw [3][]byte
	for i, part := range parts {
		var err error
		if raw[i], err = base64.RawURLEncoding.DecodeString(part); err != nil {
			return nil, errors.New("want a signed JSON web token")
		}
	}
	var header struct {
		Algorithm string   `json:"alg"`
		Critical  []string `json:"crit"`
	}
	if err := json.Unmarshal(raw[0], &header); err != nil || len(header.Critical) > 0 {
		return nil, errors.New("the token's header cannot be read")
	}
	accepted := c.JWTSupportedAlgs
	if len(accepted) == 0 {
		accepted = []string{"RS256"}
	}
	algorithm, known := jwtAlgorithms[header.Algorithm]
	if !known || !slices.Contains(accepted, header.Algorithm) {
		return nil, errors.New("the token is signed by an algorithm that is not accepted")
	}
	signed := []byte(parts[0] + "." + parts[1])
	var digest []byte
	if algorithm.hash != 0 {
		h := algorithm.hash.New()
		h.Write(signed)
		digest = h.Sum(nil)
	}
	for _, text := range c.JWTValidationPubKeys {
		key, err := parsePublicKey(text)
		if err == nil && algorithm.verify(key, algorithm.hash, digest, signed, raw[2]) {
			return raw[1], nil
		}
	}
	return nil, errors.New("no key fits the token's signature")
}

// checkTime says whether a token holds now. One that does not say when it ends is
// held to end soon after it began.
func (c *jwtConfig) checkTime(r *registered, now time.Time) error {
	leeway := func(d weft.Duration, byDefault time.Duration) time.Duration {
		switch {
		case d < 0:
			return 0
		case d == 0:
			return byDefault
		}
		return time.Duration(d)
	}
	at := func(seconds *float64) time.Time {
		if seconds == nil || *seconds < 0 || *seconds > 1<<40 {
			return time.Time{}
		}
		return time.Unix(0, 0).Add(time.Duration(*seconds * float64(time.Second)))
	}
	skew := leeway(c.ClockSkewLeeway, defaultClockSkew)
	end, begin, made := at(r.Expires), at(r.NotBefore), at(r.IssuedAt)
	if end.IsZero() {
		latest := made
		if begin.After(made) {
			latest = begin
		}
		if latest.IsZero() {
			return errors.New("the token does not say when it ends")
		}
		end = latest.Add(leeway(c.ExpirationLeeway, defaultJWTLeeway))
	}
	if begin.IsZero() && !made.IsZero() {
		begin = made.Add(-leeway(c.NotBeforeLeeway, defaultJWTLeeway))
	}
	switch {
	case !now.Before(end.Add(skew)):
		return errors.New("the token has expired")
	case now.Before(begin.Add(-skew)):
		return errors.New("the token does not hold yet")
	}
	return nil
}

// mapped are the claims that the method tells its binding rules. A claim that the
// token does not have is left out.
func (c *jwtConfig) mapped(payload []byte) (*claims, error) {
	var all map[string]any
	d := json.NewDecoder(bytes.NewReader(payload))
	d.UseNumber()
	if err := d.Decode(&all); err != nil {
		return nil, errors.New("the token's claims cannot be read")
	}
	out := &claims{value: make(map[string]string), list: make(map[string][]string)}
	for claim, name := range c.ClaimMappings {
		switch v := claimAt(all, claim).(type) {
		case nil:
		case string:
			out.value[name] = v
		case bool, json.Number:
			out.value[name] = fmt.Sprint(v)
		default:
			return nil, fmt.Errorf("the claim %q is no text", claim)
		}
	}
	for claim, name := range c.ListClaimMappings {
		switch v := claimAt(all, claim).(type) {
		case nil:
		case string:
			out.list[name] = []string{v}
		case []any:
			for _, element := range v {
				out.list[name] = append(out.list[name], fmt.Sprint(element))
			}
		default:
			return nil, fmt.Errorf("the claim %q is no list", claim)
		}
	}
	return out, nil
}

// claimAt finds a claim by its name, or by a path such as "/realm/roles".
func claimAt(all map[string]any, claim string) any {
	path, nested := strings.CutPrefix(claim, "/")
	if !nested {
		return all[claim]
	}
	var v any = all
	for name := range strings.SplitSeq(path, "/") {
		object, ok := v.(map[string]any)
		if !ok {
			return nil
		}
		v = object[name]
	}
	return v
}

// texts reads a text or a list of texts.
func texts(raw json.RawMessage) []string {
	var list []string
	if json.Unmarshal(raw, &list) == nil {
		return list
	}
	var one string
	if json.Unmarshal(raw, &one) == nil && one != "" {
		return []string{one}
	}
	return nil
}
