package consul

import (
	"fmt"
	"math"
	"regexp"
	"slices"

	"github.com/weftmesh/weft"
)

// serviceDefaults says what a service speaks. weft's proxies find that out by
// themselves; the discovery chain tells it.
type serviceDefaults struct {
	entryHead
	Protocol      string `json:",omitempty"`
	MutualTLSMode string `json:",omitempty"`
	// How a proxy spreads connections over its threads. weft's proxies have none to
	// spread over, so that it is kept and changes nothing.
	BalanceInboundConnections string `json:",omitempty"`
}

// proxyDefaults are for all proxies. Config is free for whoever reads it; weft and
// the discovery chain look at its "protocol".
type proxyDefaults struct {
	entryHead
	Config        map[string]any `json:",omitempty"`
	MutualTLSMode string         `json:",omitempty"`
}

type serviceRouter struct {
	entryHead
	Routes []serviceRoute `json:",omitempty"`
}

type serviceRoute struct {
	Match       *routeMatch       `json:",omitempty"`
	Destination *routeDestination `json:",omitempty"`
}

type routeMatch struct {
	HTTP *routeHTTP `json:",omitempty"`
}

type routeHTTP struct {
	PathExact       string        `json:",omitempty"`
	PathPrefix      string        `json:",omitempty"`
	PathRegex       string        `json:",omitempty"`
	CaseInsensitive bool          `json:",omitempty"`
	Header          []routeHeader `json:",omitempty"`
	QueryParam      []routeQuery  `json:",omitempty"`
	Methods         []string      `json:",omitempty"`
}

type routeHeader struct {
	Name    string
	Present bool   `json:",omitempty"`
	Exact   string `json:",omitempty"`
	Prefix  string `json:",omitempty"`
	Suffix  string `json:",omitempty"`
	Regex   string `json:",omitempty"`
	Invert  bool   `json:",omitempty"`
}

type routeQuery struct {
	Name    string
	Present bool   `json:",omitempty"`
	Exact   string `json:",omitempty"`
	Regex   string `json:",omitempty"`
}

type routeDestination struct {
	Service               string           `json:",omitempty"`
	ServiceSubset         string           `json:",omitempty"`
	Namespace             string           `json:",omitempty"`
	Partition             string           `json:",omitempty"`
	PrefixRewrite         string           `json:",omitempty"`
	RequestTimeout        weft.Duration    `json:",omitempty"`
	NumRetries            uint32           `json:",omitempty"`
	RetryOnConnectFailure bool             `json:",omitempty"`
	RetryOnStatusCodes    []uint32         `json:",omitempty"`
	RetryOn               []string         `json:",omitempty"`
	RequestHeaders        *headerModifiers `json:",omitempty"`
	ResponseHeaders       *headerModifiers `json:",omitempty"`
}

type headerModifiers struct {
	Add    map[string]string `json:",omitempty"`
	Set    map[string]string `json:",omitempty"`
	Remove []string          `json:",omitempty"`
}

type serviceSplitter struct {
	entryHead
	Splits []serviceSplit `json:",omitempty"`
}

type serviceSplit struct {
	Weight         float32          // percent, in hundredths
	Service        string           `json:",omitempty"`
	ServiceSubset  string           `json:",omitempty"`
	Namespace      string           `json:",omitempty"`
	Partition      string           `json:",omitempty"`
	RequestHeaders *headerModifiers `json:",omitempty"`
}

type serviceResolver struct {
	entryHead
	DefaultSubset  string                    `json:",omitempty"`
	Subsets        map[string]resolverSubset `json:",omitempty"`
	Redirect       *resolverRedirect         `json:",omitempty"`
	ConnectTimeout weft.Duration             `json:",omitempty"`
	RequestTimeout weft.Duration             `json:",omitempty"`
	LoadBalancer   *loadBalancer             `json:",omitempty"`
}

type resolverSubset struct {
	Filter      string `json:",omitempty"`
	OnlyPassing bool   `json:",omitempty"`
}

type resolverRedirect struct {
	Service       string `json:",omitempty"`
	ServiceSubset string `json:",omitempty"`
	Namespace     string `json:",omitempty"`
	Partition     string `json:",omitempty"`
	Datacenter    string `json:",omitempty"`
}

type loadBalancer struct {
	Policy             string              `json:",omitempty"`
	RingHashConfig     *ringHashConfig     `json:",omitempty"`
	LeastRequestConfig *leastRequestConfig `json:",omitempty"`
	HashPolicies       []hashPolicy        `json:",omitempty"`
}

type ringHashConfig struct {
	MinimumRingSize uint64 `json:",omitempty"`
}

type leastRequestConfig struct {
	ChoiceCount uint32 `json:",omitempty"`
}

type hashPolicy struct {
	Field        string        `json:",omitempty"`
	FieldValue   string        `json:",omitempty"`
	CookieConfig *cookieConfig `json:",omitempty"`
	SourceIP     bool          `json:",omitempty"`
	Terminal     bool          `json:",omitempty"` // of one policy it says nothing more
}

type cookieConfig struct {
	Session bool          `json:",omitempty"`
	TTL     weft.Duration `json:",omitempty"`
	Path    string        `json:",omitempty"`
}

// protocols that Consul knows, and whether they have requests.
var protocols = map[string]bool{"": false, "tcp": false, "http": true, "http2": true, "grpc": true}

func (e *serviceDefaults) normalise(string) error {
	if _, ok := protocols[e.Protocol]; !ok {
		return fieldError("Protocol", "unknown %q, want tcp, http, http2 or grpc", e.Protocol)
	}
	return checkMutualTLS(e.MutualTLSMode)
}

func (e *proxyDefaults) normalise(string) error {
	if p, ok := e.Config["protocol"]; ok {
		text, _ := p.(string)
		if _, known := protocols[text]; !known {
			return fieldError("Config.protocol", "unknown %v, want tcp, http, http2 or grpc", p)
		}
	}
	return checkMutualTLS(e.MutualTLSMode)
}

func checkMutualTLS(mode string) error {
	if mode != "" && mode != "strict" {
		return fieldError("MutualTLSMode", "weft does not carry out %q: sidecars speak mutual TLS", mode)
	}
	return nil
}

func (e *serviceRouter) normalise(string) error {
	for i := range e.Routes {
		r := &e.Routes[i]
		at := fmt.Sprintf("Routes[%d]", i)
		if r.Match != nil && r.Match.HTTP != nil {
			if err := r.Match.HTTP.check(at + ".Match.HTTP"); err != nil {
				return err
			}
		}
		if r.Destination == nil {
			continue
		}
		d := r.Destination
		if err := onePartition(at+".Destination.Partition", d.Partition); err != nil {
			return err
		}
		if d.PrefixRewrite != "" && (r.Match == nil || r.Match.HTTP == nil || r.Match.HTTP.PathPrefix == "" && r.Match.HTTP.PathExact == "") {
			return fmt.Errorf("%s.Destination.PrefixRewrite: needs Match.HTTP.PathPrefix or PathExact", at)
		}
		if d.RequestTimeout < 0 {
			return fmt.Errorf("%s.Destination.RequestTimeout: is negative", at)
		}
	}
	return nil
}

func (m *routeHTTP) check(at string) error {
	paths := 0
	for field, p := range map[string]string{"PathExact": m.PathExact, "PathPrefix": m.PathPrefix, "PathRegex": m.PathRegex} {
		if p == "" {
			continue
		}
		paths++
		if field != "PathRegex" && p[0] != '/' {
			return fmt.Errorf("%s.%s: must begin with \"/\"", at, field)
		}
	}
	if paths > 1 {
		return fmt.Errorf("%s: only one of PathExact, PathPrefix and PathRegex can be set", at)
	}
	for i, h := range m.Header {
		n := count(h.Present, h.Exact != "", h.Prefix != "", h.Suffix != "", h.Regex != "")
		switch {
		case h.Name == "":
			return fmt.Errorf("%s.Header[%d].Name: is missing", at, i)
		case n > 1 || n == 0 && !h.Invert:
			return fmt.Errorf("%s.Header[%d]: want one of Present, Exact, Prefix, Suffix and Regex", at, i)
		}
	}
	for i, p := range m.QueryParam {
		if p.Name == "" || count(p.Present, p.Exact != "", p.Regex != "") != 1 {
			return fmt.Errorf("%s.QueryParam[%d]: want a Name, and one of Present, Exact and Regex", at, i)
		}
	}
	for i, method := range m.Methods {
		if !methodForm.MatchString(method) {
			return fmt.Errorf("%s.Methods[%d]: %q is no method", at, i, method)
		}
	}
	return nil
}

var methodForm = regexp.MustCompile(`^[A-Z]{1,20}$`)

func count(said ...bool) int {
	n := 0
	for _, yes := range said {
		if yes {
			n++
		}
	}
	return n
}

func onePartition(at, name string) error {
	if name != "" && name != "default" {
		return fmt.Errorf("%s: there is only \"default\"", at)
	}
	return nil
}

func (e *serviceSplitter) normalise(string) error {
	sum := 0
	for i := range e.Splits {
		s := &e.Splits[i]
		w := hundredths(s.Weight)
		if w < 0 || w > 10000 || math.IsNaN(float64(s.Weight)) {
			return fieldError(fmt.Sprintf("Splits[%d].Weight", i), "want 0 to 100")
		}
		sum += w
		if err := onePartition(fmt.Sprintf("Splits[%d].Partition", i), s.Partition); err != nil {
			return err
		}
	}
	if len(e.Splits) == 0 {
		return fieldError("Splits", "no splits configured")
	}
	if sum != 10000 {
		return fieldError("Splits", "the sum of all split weights must be 100, not %g", float64(sum)/100)
	}
	return nil
}

// hundredths is a weight as a whole number: Consul counts in hundredths of a
// percent.
func hundredths(weight float32) int { return int(math.Round(float64(weight) * 100)) }

func (e *serviceResolver) normalise(dc string) error {
	for name, s := range e.Subsets {
		if _, err := subsetLabels(s.Filter); err != nil {
			return fieldError(fmt.Sprintf("Subsets[%s].Filter", name), "%v", err)
		}
		if s.OnlyPassing {
			return fieldError(fmt.Sprintf("Subsets[%s].OnlyPassing", name), "weft does not carry this out: the mesh calls what warns with its own weight")
		}
	}
	if _, ok := e.Subsets[e.DefaultSubset]; e.DefaultSubset != "" && !ok {
		return fieldError("DefaultSubset", "%q is not one of the Subsets", e.DefaultSubset)
	}
	if e.ConnectTimeout < 0 || e.RequestTimeout < 0 {
		return fieldError("ConnectTimeout", "a timeout is negative")
	}
	if r := e.Redirect; r != nil {
		switch {
		case len(e.Subsets) > 0 || e.DefaultSubset != "":
			return fieldError("Redirect", "cannot stand beside Subsets")
		case r.Datacenter != "" && r.Datacenter != dc:
			return fieldError("Redirect.Datacenter", "this server knows %q only", dc)
		case r.Service == "" && r.ServiceSubset == "" && r.Namespace == "":
			return fieldError("Redirect", "is empty")
		}
		if err := onePartition("Redirect.Partition", r.Partition); err != nil {
			return err
		}
	}
	if e.LoadBalancer != nil {
		return e.LoadBalancer.check()
	}
	return nil
}

func (l *loadBalancer) check() error {
	switch {
	case !slices.Contains([]string{"", "random", "round_robin", "least_request", "ring_hash", "maglev"}, l.Policy):
		return fieldError("LoadBalancer.Policy", "unsupported %q", l.Policy)
	case l.RingHashConfig != nil && l.Policy != "ring_hash":
		return fieldError("LoadBalancer.RingHashConfig", "is for the policy ring_hash")
	case l.LeastRequestConfig != nil && l.Policy != "least_request":
		return fieldError("LoadBalancer.LeastRequestConfig", "is for the policy least_request")
	case l.LeastRequestConfig != nil && l.LeastRequestConfig.ChoiceCount > 2:
		return fieldError("LoadBalancer.LeastRequestConfig.ChoiceCount", "weft compares 2")
	case !l.hashes() && len(l.HashPolicies) > 0:
		return fieldError("LoadBalancer.HashPolicies", "are for the policies ring_hash and maglev")
	case l.hashes() && len(l.HashPolicies) != 1:
		return fieldError("LoadBalancer.HashPolicies", "weft hashes by one thing, not by %d", len(l.HashPolicies))
	case !l.hashes():
		return nil
	}
	p := l.HashPolicies[0]
	switch {
	case p.SourceIP && (p.Field != "" || p.FieldValue != ""):
		return fieldError("LoadBalancer.HashPolicies[0].SourceIP", "cannot stand beside Field")
	case p.SourceIP:
	case !slices.Contains([]string{"header", "cookie", "query_parameter"}, p.Field) || p.FieldValue == "":
		return fieldError("LoadBalancer.HashPolicies[0].Field", "want header, cookie or query_parameter, and a FieldValue")
	case p.CookieConfig != nil && p.Field != "cookie":
		return fieldError("LoadBalancer.HashPolicies[0].CookieConfig", "is for cookies")
	case p.CookieConfig != nil && p.CookieConfig.Session && p.CookieConfig.TTL != 0:
		return fieldError("LoadBalancer.HashPolicies[0].CookieConfig.TTL", "a session's cookie has none")
	}
	return nil
}

func (l *loadBalancer) hashes() bool { return l.Policy == "ring_hash" || l.Policy == "maglev" }
