package consul

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/weftmesh/weft"
)

// CA signs for Connect. It is the mesh's own authority: what is signed for a client
// of this dialect is accepted by sidecars, and the other way round.
type CA interface {
	TrustDomain() string
	Roots() []*x509.Certificate
	// Sign makes a certificate for the key of a signing request (PKCS #10, DER), with
	// the identity and nothing of what the request says.
	Sign(csr []byte, id weft.Identity) (chainDER [][]byte, notAfter time.Time, err error)
}

// rootRecord is a root certificate.
type rootRecord struct {
	ID                  string
	Name                string
	SerialNumber        uint64
	SigningKeyID        string
	ExternalTrustDomain string
	NotBefore           time.Time
	NotAfter            time.Time
	RootCert            string
	Active              bool
	PrivateKeyType      string
	PrivateKeyBits      int
	CreateIndex         uint64
	ModifyIndex         uint64
}

type rootList struct {
	ActiveRootID string
	TrustDomain  string
	Roots        []rootRecord
}

// leafRecord is a certificate with its key, which only its answer has.
type leafRecord struct {
	SerialNumber  string
	CertPEM       string
	PrivateKeyPEM string
	Service       string
	ServiceURI    string
	ValidAfter    time.Time
	ValidBefore   time.Time
	CreateIndex   uint64
	ModifyIndex   uint64
}

// leaves are the certificates that were made for services here. Who asks again gets
// the same one until two thirds of its life are over.
type leaves struct {
	mu   sync.Mutex
	by   map[weft.ServiceName]*leaf
	last uint64 // index of the last one
}

type leaf struct {
	record leafRecord
	renew  time.Time
}

// maxLeaves bounds the services whose certificates are remembered; a few KB each.
const maxLeaves = 4 << 10

var errConnectOff = refuse(http.StatusInternalServerError, "Connect must be enabled in order to use this endpoint")

func (a *api) connectEndpoints() endpoints {
	return endpoints{
		"connect/ca/roots":         {get: a.caRoots},
		"connect/ca/configuration": {get: a.caConfiguration, put: a.caConfigure},
		"agent/connect/ca/roots":   {get: a.caRoots},
		"agent/connect/ca/leaf/":   {get: a.caLeaf},
		"agent/connect/authorize":  {post: a.connectAuthorize, put: a.connectAuthorize},
	}
}

// GET /v1/connect/ca/roots, GET /v1/agent/connect/ca/roots. The root of a mesh stays
// as it was made.
func (a *api) caRoots(w http.ResponseWriter, q *query) error {
	if a.ca == nil {
		return errConnectOff
	}
	list := rootList{TrustDomain: a.ca.TrustDomain(), Roots: []rootRecord{}}
	for i, c := range a.ca.Roots() {
		r := newRootRecord(c)
		if r.Active = i == 0; r.Active {
			list.ActiveRootID = r.ID
		}
		list.Roots = append(list.Roots, r)
	}
	if pemOnly, err := q.flag("pem"); err != nil {
		return err
	} else if pemOnly {
		q.setHeaders(w, 1)
		w.Header().Set("Content-Type", "application/pem-certificate-chain")
		for _, r := range list.Roots {
			fmt.Fprint(w, r.RootCert)
		}
		return nil
	}
	return a.fixedUntilTimeout(w, q, list)
}

// fixedUntilTimeout answers what does not change; who waits for a change waits for
// nothing.
func (a *api) fixedUntilTimeout(w http.ResponseWriter, q *query, body any) error {
	if q.index >= 1 {
		ctx, cancel := a.waiting(q)
		defer cancel()
		<-ctx.Done()
	}
	return a.fixed(w, q, body)
}

func newRootRecord(c *x509.Certificate) rootRecord {
	sum := sha256.Sum256(c.Raw)
	r := rootRecord{
		ID: colons(sum[:20]), Name: "weft CA root", SigningKeyID: colons(c.SubjectKeyId),
		NotBefore: c.NotBefore, NotAfter: c.NotAfter, CreateIndex: 1, ModifyIndex: 1,
		RootCert: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})),
	}
	r.SerialNumber = c.SerialNumber.Uint64() // its last 64 bits: the API has room for no more
	if len(c.URIs) > 0 {
		r.ExternalTrustDomain = c.URIs[0].Host
	}
	if key, ok := c.PublicKey.(*ecdsa.PublicKey); ok {
		r.PrivateKeyType, r.PrivateKeyBits = "ec", key.Curve.Params().BitSize
	}
	return r
}

// colons is hex with a colon between bytes.
func colons(b []byte) string {
	var out strings.Builder
	for i := range b {
		if i > 0 {
			out.WriteByte(':')
		}
		out.WriteString(hex.EncodeToString(b[i : i+1]))
	}
	return out.String()
}

// caConfig is what the authority is like. Nothing of it can be set here.
func (a *api) caConfig() map[string]any {
	root := a.ca.Roots()[0]
	return map[string]any{
		"Provider":    "weft",
		"Config":      map[string]any{"RootCertTTL": root.NotAfter.Sub(root.NotBefore).Round(time.Hour).String()},
		"CreateIndex": 1, "ModifyIndex": 1,
	}
}

// GET /v1/connect/ca/configuration
func (a *api) caConfiguration(w http.ResponseWriter, q *query) error {
	if a.ca == nil {
		return errConnectOff
	}
	if err := a.authorize(q, operatorResource, "", readable); err != nil {
		return err
	}
	return a.fixed(w, q, a.caConfig())
}

// PUT /v1/connect/ca/configuration takes what the configuration is already.
func (a *api) caConfigure(w http.ResponseWriter, q *query) error {
	if a.ca == nil {
		return errConnectOff
	}
	if err := a.authorize(q, operatorResource, "", writable); err != nil {
		return err
	}
	var body struct {
		Provider string
		Config   map[string]any
	}
	if err := decode(w, q, &body); err != nil {
		return err
	}
	if body.Provider != "" && body.Provider != "weft" {
		return refuse(http.StatusNotImplemented, "weft signs with its own authority: the provider %q cannot take its place", body.Provider)
	}
	own := a.caConfig()["Config"].(map[string]any)
	for key, v := range body.Config {
		if own[key] != v {
			return refuse(http.StatusNotImplemented, "weft's authority is as it was made: %s cannot be set", key)
		}
	}
	return a.fixed(w, q, nil)
}

// GET /v1/agent/connect/ca/leaf/{service}. It blocks until the certificate is
// renewed.
func (a *api) caLeaf(w http.ResponseWriter, q *query) error {
	if a.ca == nil {
		return errConnectOff
	}
	name, err := q.need("service name")
	if err != nil {
		return err
	}
	if err := a.authorize(q, serviceResource, name, writable); err != nil {
		return err
	}
	n := q.service(name)
	l, err := a.leaf(n)
	if err != nil {
		return err
	}
	if q.index >= l.record.ModifyIndex {
		ctx, cancel := a.waiting(q)
		defer cancel()
		renewal := time.NewTimer(time.Until(l.renew))
		defer renewal.Stop()
		select {
		case <-renewal.C:
		case <-ctx.Done():
		}
		if l, err = a.leaf(n); err != nil {
			return err
		}
	}
	return a.answer(w, q, view{build: func() (any, uint64) { return l.record, l.record.ModifyIndex }})
}

// leaf returns the certificate of a service, and makes one when there is none that
// is young enough.
func (a *api) leaf(n weft.ServiceName) (*leaf, error) {
	a.leaves.mu.Lock()
	defer a.leaves.mu.Unlock()
	now := time.Now()
	if l := a.leaves.by[n]; l != nil && now.Before(l.renew) {
		return l, nil
	}
	l, err := a.signLeaf(n, now)
	if err != nil {
		return nil, err
	}
	// An index that a restart does not take back: watchers compare it.
	a.leaves.last = max(a.leaves.last+1, uint64(now.Unix()))
	l.record.CreateIndex, l.record.ModifyIndex = a.leaves.last, a.leaves.last
	if a.leaves.by == nil || len(a.leaves.by) >= maxLeaves {
		a.leaves.by = make(map[weft.ServiceName]*leaf)
	}
	a.leaves.by[n] = l
	return l, nil
}

func (a *api) signLeaf(n weft.ServiceName, now time.Time) (*leaf, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, weft.Errorf(weft.Internal, "make key", n.String(), "%w", err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, weft.Errorf(weft.Internal, "make signing request", n.String(), "%w", err)
	}
	id := weft.NewIdentity(a.ca.TrustDomain(), n.Namespace, n.Name)
	chain, notAfter, err := a.ca.Sign(csr, id)
	if err != nil {
		return nil, err
	}
	first, err := x509.ParseCertificate(chain[0])
	if err != nil {
		return nil, weft.Errorf(weft.Internal, "read certificate", n.String(), "%w", err)
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, weft.Errorf(weft.Internal, "encode key", n.String(), "%w", err)
	}
	var certs strings.Builder
	for _, c := range chain {
		certs.Write(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c}))
	}
	return &leaf{
		renew: now.Add(notAfter.Sub(now) * 2 / 3),
		record: leafRecord{
			SerialNumber: colons(first.SerialNumber.Bytes()), CertPEM: certs.String(),
			PrivateKeyPEM: string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der})),
			Service:       n.Name, ServiceURI: string(id), ValidAfter: first.NotBefore, ValidBefore: first.NotAfter,
		},
	}, nil
}

// POST /v1/agent/connect/authorize says whether a client with a certificate may
// connect to a service.
func (a *api) connectAuthorize(w http.ResponseWriter, q *query) error {
	if a.ca == nil {
		return errConnectOff
	}
	var body struct{ Target, Namespace, ClientCertURI, ClientCertSerial string }
	if err := decode(w, q, &body); err != nil {
		return err
	}
	if body.Target == "" {
		return refuse(http.StatusBadRequest, "Target service must be specified")
	}
	target := weft.NewServiceName(body.Namespace, body.Target)
	if err := a.authorize(q, serviceResource, target.Name, writable); err != nil {
		return err
	}
	trustDomain, source, err := parseClient(body.ClientCertURI)
	if err != nil {
		return err
	}
	allowed, reason := false, "Identity from an external trust domain: "+trustDomain
	if strings.EqualFold(trustDomain, a.ca.TrustDomain()) {
		allowed, reason = a.entries().decide(source, target, !a.closed, false)
	}
	return a.fixed(w, q, map[string]any{"Authorized": allowed, "Reason": reason})
}

// parseClient reads the identity of a certificate: weft's, or Consul's
// spiffe://<trust domain>/ns/<namespace>/dc/<datacenter>/svc/<service>.
func parseClient(uri string) (trustDomain string, n weft.ServiceName, err error) {
	u, err := url.Parse(uri)
	if err != nil || u.Scheme != "spiffe" || u.Host == "" {
		return "", n, refuse(http.StatusBadRequest, "ClientCertURI not a valid Connect identifier")
	}
	parts := strings.Split(strings.TrimPrefix(u.Path, "/"), "/")
	if len(parts) > 2 && parts[0] == "ap" {
		parts = parts[2:]
	}
	switch {
	case len(parts) == 4 && parts[0] == "ns" && parts[2] == "sa":
		return u.Host, weft.NewServiceName(parts[1], parts[3]), nil
	case len(parts) == 6 && parts[0] == "ns" && parts[2] == "dc" && parts[4] == "svc":
		return u.Host, weft.NewServiceName(parts[1], parts[5]), nil
	}
	return "", n, refuse(http.StatusBadRequest, "ClientCertURI not a valid Service identifier")
}
