package ca

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"encoding/hex"
	"strings"

	"github.com/weftmesh/weft"
)

const tokenPrefix = "weft-join"

// JoinToken lets a process join a mesh: it shows the server that the process may
// have a certificate, and the process that the server is the mesh's. Written
// "weft-join.<32 hex digits>.<64 hex digits>". It is a secret.
type JoinToken struct {
	secret string
	pin    string
}

// NewJoinToken makes a token with a new secret for the mesh of a root.
func NewJoinToken(roots []*x509.Certificate) (string, error) {
	if len(roots) == 0 {
		return "", weft.Errorf(weft.Invalid, "make join token", "", "no root")
	}
	var secret [16]byte
	rand.Read(secret[:])
	return tokenPrefix + "." + hex.EncodeToString(secret[:]) + "." + PinOf(roots[0]), nil
}

// ParseJoinToken checks the form of a token. The error does not repeat the token.
func ParseJoinToken(token string) (JoinToken, error) {
	parts := strings.Split(strings.TrimSpace(token), ".")
	if len(parts) != 3 || parts[0] != tokenPrefix || !isHex(parts[1], 32) || !isHex(parts[2], 64) {
		return JoinToken{}, weft.Errorf(weft.Invalid, "read join token", "", "want %s.<32 hex digits>.<64 hex digits>", tokenPrefix)
	}
	return JoinToken{secret: parts[1], pin: parts[2]}, nil
}

// Pin of the mesh's root, for JoinTLS.
func (t JoinToken) Pin() string { return t.pin }

// Admits reports whether other carries the same secret, in a time that does not
// tell how much of it is right. The zero JoinToken admits nobody.
func (t JoinToken) Admits(other JoinToken) bool {
	return t.secret != "" && subtle.ConstantTimeCompare([]byte(t.secret), []byte(other.secret)) == 1
}

// String hides the secret.
func (t JoinToken) String() string { return tokenPrefix + ".***." + t.pin }

// PinOf names a certificate by the SHA-256 of its public key (SPKI), in hex.
func PinOf(cert *x509.Certificate) string {
	sum := sha256.Sum256(cert.RawSubjectPublicKeyInfo)
	return hex.EncodeToString(sum[:])
}

func isHex(s string, n int) bool {
	if len(s) != n {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if !('0' <= c && c <= '9' || 'a' <= c && c <= 'f') {
			return false
		}
	}
	return true
}
