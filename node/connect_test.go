package node

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/ca"
	"github.com/weftmesh/weft/control/controltest"
	"github.com/weftmesh/weft/registry/consul"
)

// consulWorld is a control plane that Consul's clients write to.
type consulWorld struct {
	*testing.T
	*controltest.Server
	api http.Handler
}

func newConsulWorld(t *testing.T, c consul.Config) *consulWorld {
	t.Helper()
	s := controltest.Start(t, controltest.Config{})
	c.Mesh, c.CA = consulMesh{s.Control}, s.CA
	return &consulWorld{T: t, Server: s, api: consul.New(s.Registry, c)}
}

func (w *consulWorld) send(method, path, body string) (status int, answer string) {
	w.Helper()
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	rec := httptest.NewRecorder()
	w.api.ServeHTTP(rec, r)
	return rec.Code, strings.TrimSpace(rec.Body.String())
}

func (w *consulWorld) must(method, path, body string) string {
	w.Helper()
	status, answer := w.send(method, path, body)
	if status != http.StatusOK {
		w.Fatalf("%s %s %s: %d %s", method, path, body, status, answer)
	}
	return answer
}

// resources lists what there is, as "VirtualService default/x by consul".
func (w *consulWorld) resources() string {
	var out []string
	for _, r := range w.Control.Resources() {
		line := r.Kind + " " + r.Namespace + "/" + r.Name
		if by := r.Labels[consul.WrittenBy]; by != "" {
			line += " by " + by
		}
		out = append(out, line)
	}
	return strings.Join(out, ", ")
}

func (w *consulWorld) eventually(want string) {
	w.Helper()
	controltest.Eventually(w.T, func() string {
		if got := w.resources(); got != want {
			return fmt.Sprintf("resources are %q, want %q", got, want)
		}
		return ""
	})
}

const orderHost = "order.default.svc.cluster.local"

func TestSplitThroughConsul(t *testing.T) {
	w := newConsulWorld(t, consul.Config{})
	w.Instance("order", "v1", 1)
	w.Instance("order", "v2", 2)
	w.must("PUT", "/v1/config", `{"Kind":"service-resolver","Name":"order","Subsets":{
		"v1":{"Filter":"Service.Meta.version == v1"},"v2":{"Filter":"Service.Meta.version == v2"}}}`)
	w.must("PUT", "/v1/config", `{"Kind":"service-splitter","Name":"order","Splits":[
		{"Weight":80,"ServiceSubset":"v1"},{"Weight":20,"ServiceSubset":"v2"}]}`)
	s := w.Control.Mesh("default", orderHost)
	rule := &s.Hosts[orderHost].Rules[0]
	if len(rule.Destinations) != 2 {
		t.Fatalf("destinations: %+v", rule.Destinations)
	}
	for i, want := range []struct {
		subset string
		share  float64
	}{{"v1", 0.8}, {"v2", 0.2}} {
		d := &rule.Destinations[i]
		if d.Subset != want.subset || rule.Share(d) != want.share || d.Unresolved != "" {
			t.Errorf("destination %d: %+v with a share of %v, want %v", i, d, rule.Share(d), want)
		}
	}
	if got := w.resources(); got != "DestinationRule default/consul-order by consul, VirtualService default/consul-order by consul" {
		t.Error(got)
	}
	w.must("DELETE", "/v1/config/service-splitter/order", "")
	if got := w.resources(); got != "DestinationRule default/consul-order by consul" {
		t.Error(got)
	}
}

func TestRouterThroughConsul(t *testing.T) {
	w := newConsulWorld(t, consul.Config{})
	w.Instance("order", "v1", 1)
	w.Instance("admin", "v1", 2)
	w.must("PUT", "/v1/config", `{"Kind":"service-router","Name":"order","Routes":[
		{"Match":{"HTTP":{"PathPrefix":"/admin","Header":[{"Name":"x-debug","Exact":"1"}],"Methods":["GET","POST"]}},
		 "Destination":{"Service":"admin","PrefixRewrite":"/","RequestTimeout":"3s","NumRetries":2,"RetryOnStatusCodes":[503]}}]}`)
	s := w.Control.Mesh("default", orderHost)
	for _, c := range []struct {
		method, path, debug, want string
	}{
		{"GET", "/admin/x", "1", "admin"}, {"POST", "/admin", "1", "admin"},
		{"PUT", "/admin", "1", "order"}, {"GET", "/admin", "2", "order"}, {"GET", "/", "1", "order"},
	} {
		d := s.Route(&weft.Request{Method: c.method, Path: c.path, Host: orderHost, Headers: headers{"x-debug": c.debug}}, 0)
		if d.Problem != "" || d.Destination.Service.Name != c.want {
			t.Errorf("%+v goes to %+v (%s)", c, d.Destination, d.Problem)
		}
	}
}

type headers map[string]string

func (h headers) Header(name string) (string, bool) {
	v, ok := h[strings.ToLower(name)]
	return v, ok
}

// allows asks the policies of a service's instances.
func (w *consulWorld) allows(source, destination string, r weft.Request) bool {
	w.Helper()
	if source != "" {
		r.Source = weft.NewIdentity(w.CA.TrustDomain(), "default", source)
	}
	if r.Headers == nil {
		r.Headers = headers{}
	}
	all := w.Control.AuthorizationFor(weft.NewServiceName("", destination))
	return all[0].Authorization.Decide(&weft.AuthorizationRequest{Request: &r, Port: "80"}).Allowed
}

func TestIntentionThroughConsul(t *testing.T) {
	w := newConsulWorld(t, consul.Config{})
	w.Instance("order", "v1", 1)
	w.must("PUT", "/v1/connect/intentions/exact?source=web&destination=order", `{"SourceName":"web","DestinationName":"order","Action":"deny"}`)
	if w.allows("web", "order", weft.Request{}) {
		t.Error("what an intention denies is allowed")
	}
	if !w.allows("api", "order", weft.Request{}) || !w.allows("web", "stock", weft.Request{}) {
		t.Error("an intention denies others, too")
	}
	w.must("DELETE", "/v1/connect/intentions/exact?source=web&destination=order", "")
	if !w.allows("web", "order", weft.Request{}) || w.resources() != "" {
		t.Error("a deleted intention goes on to deny:", w.resources())
	}
}

const ownRoute = `{apiVersion: networking.istio.io/v1, kind: VirtualService, metadata: {name: %s}, spec: {hosts: [%s], http: [{route: [{destination: {host: order}}]}]}}`

func TestUsersResourcesStay(t *testing.T) {
	w := newConsulWorld(t, consul.Config{})
	w.Apply(fmt.Sprintf(ownRoute, "mine", "order"))
	split := `{"Kind":"service-splitter","Name":"order","Splits":[{"Weight":100,"Service":"other"}]}`
	status, answer := w.send("PUT", "/v1/config", split)
	for _, said := range []string{"VirtualService default/consul-order", "consul/default/order", "VirtualService default/mine", "test.yaml"} {
		if status != http.StatusConflict || !strings.Contains(answer, said) {
			t.Errorf("%d %s does not say %s", status, answer, said)
		}
	}
	if status, answer := w.send("GET", "/v1/config/service-splitter/order", ""); status != http.StatusNotFound {
		t.Errorf("an entry that was refused is kept: %s", answer)
	}
	if _, err := w.Control.Delete(t.Context(), "VirtualService", "default", "mine"); err != nil {
		t.Fatal(err)
	}
	w.Apply(fmt.Sprintf(ownRoute, "consul-order", "another"))
	if status, answer := w.send("PUT", "/v1/config", split); status != http.StatusConflict {
		t.Errorf("the same name: %d %s", status, answer)
	}
	if got := w.resources(); got != "VirtualService default/consul-order" {
		t.Error(got)
	}
}

// What another server kept, or this one before it died, reaches the mesh, and what is
// gone leaves it; a user's resource stays, and does not hold up the others.
func TestMeshIsMadeAsEntriesSay(t *testing.T) {
	w := newConsulWorld(t, consul.Config{})
	whole := w.api
	w.api = consul.New(w.Registry, consul.Config{}) // one that tells no mesh
	w.Apply(fmt.Sprintf(ownRoute, "consul-taken", "another"))
	w.must("PUT", "/v1/config", `{"Kind":"service-splitter","Name":"taken","Splits":[{"Weight":100,"Service":"other"}]}`)
	w.must("PUT", "/v1/config", `{"Kind":"service-splitter","Name":"order","Splits":[{"Weight":100,"Service":"other"}]}`)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- consul.CarryOut(ctx, w.Registry, consul.Config{Mesh: consulMesh{w.Control}})
	}()
	w.eventually("VirtualService default/consul-order by consul, VirtualService default/consul-taken")
	w.must("DELETE", "/v1/config/service-splitter/order", "")
	w.eventually("VirtualService default/consul-taken")
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	w.api = whole
	w.must("PUT", "/v1/config", `{"Kind":"service-splitter","Name":"late","Splits":[{"Weight":100,"Service":"other"}]}`)
	w.eventually("VirtualService default/consul-late by consul, VirtualService default/consul-taken")
}

func TestLeafIsOfTheMesh(t *testing.T) {
	w := newConsulWorld(t, consul.Config{})
	var leaf struct{ CertPEM, PrivateKeyPEM, Service, ServiceURI string }
	if err := json.Unmarshal([]byte(w.must("GET", "/v1/agent/connect/ca/leaf/web", "")), &leaf); err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair([]byte(leaf.CertPEM), []byte(leaf.PrivateKeyPEM))
	if err != nil {
		t.Fatal(err)
	}
	if leaf.ServiceURI != "spiffe://cluster.local/ns/default/sa/web" || leaf.Service != "web" {
		t.Errorf("the leaf is of %s, %s", leaf.Service, leaf.ServiceURI)
	}
	roots := w.must("GET", "/v1/connect/ca/roots?pem=true", "")
	if block, rest := pem.Decode([]byte(roots)); block == nil || len(strings.TrimSpace(string(rest))) > 0 || string(block.Bytes) != string(w.CA.Roots()[0].Raw) {
		t.Errorf("roots: %s", roots)
	}
	// a sidecar of the mesh takes it for what it says
	order := w.Credentials("order")
	var seen weft.Identity
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		seen = weft.Identity(r.TLS.PeerCertificates[0].URIs[0].String())
	}))
	server.Listener = tls.NewListener(server.Listener, order.ServerTLS())
	server.Start()
	defer server.Close()
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: clientOf(t, pair, w.CA)}}
	answer, err := client.Get("https://" + server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, answer.Body)
	answer.Body.Close()
	client.CloseIdleConnections()
	if seen != weft.NewIdentity(w.CA.TrustDomain(), "default", "web") {
		t.Errorf("the sidecar saw %s", seen)
	}
}

// clientOf is what an application of Consul's makes of its leaf.
func clientOf(t *testing.T, pair tls.Certificate, authority *ca.Authority) *tls.Config {
	t.Helper()
	return &tls.Config{
		Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS13, InsecureSkipVerify: true, // a SPIFFE certificate has no host name
		VerifyConnection: func(s tls.ConnectionState) error {
			return s.PeerCertificates[0].CheckSignatureFrom(authority.Roots()[0])
		},
	}
}

// The policies that intentions become decide as the intentions do, read one by one.
func TestIntentionsDecideAlike(t *testing.T) {
	for _, closed := range []bool{false, true} {
		t.Run(fmt.Sprintf("closed %v", closed), func(t *testing.T) {
			w := newConsulWorld(t, consul.Config{Closed: closed})
			random := rand.New(rand.NewPCG(5, 5))
			for _, name := range []string{"x", "y"} {
				w.Instance(name, "v1", 1)
			}
			for range 60 {
				entries := randomIntentions(random)
				for name, e := range entries {
					if e == nil {
						w.must("DELETE", "/v1/config/service-intentions/"+name, "")
						continue
					}
					b, _ := json.Marshal(e)
					w.must("PUT", "/v1/config", string(b))
				}
				checkDecisions(w, random, entries, !closed)
			}
		})
	}
}

type intentionEntry struct {
	Kind, Name string
	Sources    []intentionSource
}

type intentionSource struct {
	Name, Action string
	Permissions  []permission `json:",omitempty"`
}

type permission struct {
	Action string
	HTTP   permissionHTTP
}

type permissionHTTP struct {
	PathExact, PathPrefix string             `json:",omitempty"`
	Methods               []string           `json:",omitempty"`
	Header                []permissionHeader `json:",omitempty"`
}

type permissionHeader struct {
	Name, Exact, Prefix, Suffix string
	Present, Invert             bool
}

func pick[T any](r *rand.Rand, of ...T) T { return of[r.IntN(len(of))] }

func randomIntentions(r *rand.Rand) map[string]*intentionEntry {
	out := map[string]*intentionEntry{"x": nil, "y": nil, "*": nil}
	for name := range out {
		if r.IntN(3) == 0 {
			continue
		}
		e := &intentionEntry{Kind: "service-intentions", Name: name}
		for _, source := range []string{"a", "b", "*"} {
			switch r.IntN(4) {
			case 0:
			case 1, 2:
				e.Sources = append(e.Sources, intentionSource{Name: source, Action: pick(r, "allow", "deny")})
			case 3:
				s := intentionSource{Name: source}
				for range 1 + r.IntN(3) {
					s.Permissions = append(s.Permissions, randomPermission(r))
				}
				e.Sources = append(e.Sources, s)
			}
		}
		if len(e.Sources) > 0 {
			out[name] = e
		}
	}
	return out
}

func randomPermission(r *rand.Rand) permission {
	p := permission{Action: pick(r, "allow", "deny")}
	switch r.IntN(4) {
	case 0:
		p.HTTP.PathExact = pick(r, "/p", "/p/q")
	case 1:
		p.HTTP.PathPrefix = pick(r, "/p", "/")
	}
	if r.IntN(2) == 0 {
		p.HTTP.Methods = pick(r, []string{"GET"}, []string{"GET", "PUT"})
	}
	if r.IntN(2) == 0 {
		h := pick(r, permissionHeader{Present: true}, permissionHeader{Exact: "1"}, permissionHeader{Prefix: "1"}, permissionHeader{Suffix: "2"})
		h.Name, h.Invert = "h", r.IntN(2) == 0
		p.HTTP.Header = []permissionHeader{h}
	}
	if p.HTTP.PathExact == "" && p.HTTP.PathPrefix == "" && p.HTTP.Methods == nil && p.HTTP.Header == nil {
		p.HTTP.PathPrefix = "/"
	}
	return p
}

func (p *permissionHTTP) fits(r *weft.Request) bool {
	if p.PathExact != "" && r.Path != p.PathExact || !strings.HasPrefix(r.Path, p.PathPrefix) {
		return false
	}
	if p.Methods != nil && !strings.Contains(strings.Join(p.Methods, " "), r.Method) {
		return false
	}
	for _, h := range p.Header {
		v, ok := r.Headers.Header(h.Name)
		fits := ok && (h.Exact == "" || v == h.Exact) && strings.HasPrefix(v, h.Prefix) && strings.HasSuffix(v, h.Suffix)
		if fits == h.Invert {
			return false
		}
	}
	return true
}

// decide reads intentions in the order of their precedence.
func decide(entries map[string]*intentionEntry, source, destination string, r *weft.Request, byDefault bool) bool {
	for _, d := range []string{destination, "*"} {
		e := entries[d]
		for _, name := range []string{source, "*"} {
			for i := range sourcesOf(e) {
				s := &e.Sources[i]
				if s.Name != name {
					continue
				}
				if s.Permissions == nil {
					return s.Action == "allow"
				}
				for _, p := range s.Permissions {
					if p.HTTP.fits(r) {
						return p.Action == "allow"
					}
				}
				return byDefault
			}
		}
	}
	return byDefault
}

func sourcesOf(e *intentionEntry) []intentionSource {
	if e == nil {
		return nil
	}
	return e.Sources
}

func checkDecisions(w *consulWorld, random *rand.Rand, entries map[string]*intentionEntry, byDefault bool) {
	w.Helper()
	for _, source := range []string{"a", "b", "c", ""} {
		for _, destination := range []string{"x", "y"} {
			for range 12 {
				r := weft.Request{Method: pick(random, "GET", "PUT", "POST"), Path: pick(random, "/", "/p", "/p/q", "/r")}
				r.Headers = pick(random, headers{}, headers{"h": "1"}, headers{"h": "12"}, headers{"h": "3"})
				want := decide(entries, source, destination, &r, byDefault)
				if got := w.allows(source, destination, r); got != want {
					b, _ := json.Marshal(entries)
					w.Fatalf("%q to %q, %s %s %v: the policies say %v, the intentions %v\n%s", source, destination, r.Method, r.Path, r.Headers, got, want, b)
				}
			}
		}
	}
}
