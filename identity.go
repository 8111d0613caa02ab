package weft

import (
	"fmt"
	"strings"
)

// DefaultTrustDomain is the trust domain of identities when none is configured.
const DefaultTrustDomain = "cluster.local"

// Identity is a SPIFFE ID, "spiffe://<trust domain>/ns/<namespace>/sa/<service
// account>". The zero value means that nothing is known of the peer: plain text.
type Identity string

// NewIdentity builds the identity of a service account. It does not check its
// parts; ParseIdentity does.
func NewIdentity(trustDomain, namespace, serviceAccount string) Identity {
	return Identity("spiffe://" + trustDomain + "/ns/" + namespace + "/sa/" + serviceAccount)
}

// ParseIdentity checks that s has the form that weft gives to workloads.
func ParseIdentity(s string) (Identity, error) {
	id := Identity(s)
	td, ns, sa := id.parts()
	if td == "" || ns == "" || sa == "" || strings.ContainsRune(sa, '/') {
		return "", &Error{Kind: Invalid, Op: "parse identity", Thing: s,
			Err: fmt.Errorf("want spiffe://<trust domain>/ns/<namespace>/sa/<service account>")}
	}
	return id, nil
}

// TrustDomain returns "cluster.local" of spiffe://cluster.local/ns/default/sa/x.
func (id Identity) TrustDomain() string { td, _, _ := id.parts(); return td }

// Namespace returns "default" of spiffe://cluster.local/ns/default/sa/x.
func (id Identity) Namespace() string { _, ns, _ := id.parts(); return ns }

// ServiceAccount returns "x" of spiffe://cluster.local/ns/default/sa/x.
func (id Identity) ServiceAccount() string { _, _, sa := id.parts(); return sa }

// Principal is the identity as Istio's policies write it: without "spiffe://".
func (id Identity) Principal() string { return strings.TrimPrefix(string(id), "spiffe://") }

func (id Identity) parts() (trustDomain, namespace, serviceAccount string) {
	rest, ok := strings.CutPrefix(string(id), "spiffe://")
	if !ok {
		return "", "", ""
	}
	trustDomain, rest, ok = strings.Cut(rest, "/ns/")
	if !ok || strings.ContainsRune(trustDomain, '/') {
		return "", "", ""
	}
	namespace, serviceAccount, ok = strings.Cut(rest, "/sa/")
	if !ok || strings.ContainsRune(namespace, '/') {
		return "", "", ""
	}
	return trustDomain, namespace, serviceAccount
}
