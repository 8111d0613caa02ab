package weft

import (
	"fmt"
	"regexp"
	"strings"
	"time"
)

// Request is what routing and authorization look at. The strings may point into
// a proxy's read buffer: nothing here keeps them.
type Request struct {
	Method  string
	Scheme  string // "http" or "https"
	Host    string // lower case, without port
	Path    string // normalised, without query
	Query   string // raw, without "?"
	Headers Headers
	Source  Identity // of the peer, "" when it is not known
}

// Headers gives a request's headers by name. Names are compared without case;
// several values come joined with ",".
type Headers interface {
	Header(name string) (value string, ok bool)
}

// Header returns the value of a request header.
func (r *Request) Header(name string) (string, bool) {
	if r.Headers == nil {
		return "", false
	}
	return r.Headers.Header(name)
}

// MatchKind is how a StringMatch compares.
type MatchKind uint8

const (
	MatchPresent MatchKind = iota // any value, the thing is there
	MatchExact
	MatchPrefix
	MatchSuffix
	MatchRegex // RE2, full match
)

// StringMatch compares one value. Build it by NewStringMatch, which compiles a
// regex once.
type StringMatch struct {
	Kind       MatchKind
	Value      string
	IgnoreCase bool // exact and prefix only, as Istio's ignoreUriCase
	re         *regexp.Regexp
}

// NewStringMatch checks and compiles a match.
func NewStringMatch(kind MatchKind, value string) (StringMatch, error) {
	m := StringMatch{Kind: kind, Value: value}
	if kind == MatchRegex {
		re, err := regexp.Compile("^(?:" + value + ")$")
		if err != nil {
			return m, &Error{Kind: Invalid, Op: "compile regex", Thing: value, Err: err}
		}
		m.re = re
	}
	return m, nil
}

// Match reports whether s, which is present, fits.
func (m *StringMatch) Match(s string) bool {
	switch m.Kind {
	case MatchPresent:
		return true
	case MatchExact:
		return s == m.Value || m.IgnoreCase && strings.EqualFold(s, m.Value)
	case MatchPrefix:
		if len(s) < len(m.Value) {
			return false
		}
		head := s[:len(m.Value)]
		return head == m.Value || m.IgnoreCase && strings.EqualFold(head, m.Value)
	case MatchSuffix:
		return strings.HasSuffix(s, m.Value)
	case MatchRegex:
		return m.re != nil && m.re.MatchString(s)
	}
	return false
}

func (m StringMatch) String() string {
	switch m.Kind {
	case MatchPresent:
		return "present"
	case MatchExact:
		return "= " + m.Value
	case MatchPrefix:
		return m.Value + "*"
	case MatchSuffix:
		return "*" + m.Value
	}
	return "~ " + m.Value
}

// NamedMatch is a StringMatch on a named thing: a header or a query parameter.
type NamedMatch struct {
	Name   string // a header's name in lower case
	Value  StringMatch
	Invert bool // withoutHeaders: the request must not match
}

// Match is one way for a request to fit a rule: all its fields must hold. A nil
// field asks nothing.
type Match struct {
	Name      string
	Path      *StringMatch // the whole path, or a raw string prefix
	Method    *StringMatch
	Scheme    *StringMatch
	Authority *StringMatch
	Headers   []NamedMatch
	Query     []NamedMatch
}

// Matches reports whether the request fits.
func (m *Match) Matches(r *Request) bool {
	switch {
	case m.Path != nil && !m.Path.Match(r.Path),
		m.Method != nil && !m.Method.Match(r.Method),
		m.Scheme != nil && !m.Scheme.Match(r.Scheme),
		m.Authority != nil && !m.Authority.Match(r.Host):
		return false
	}
	for i := range m.Headers {
		if !m.Headers[i].matchHeader(r) {
			return false
		}
	}
	for i := range m.Query {
		v, ok := queryValue(r.Query, m.Query[i].Name)
		if !ok || !m.Query[i].Value.Match(v) {
			return false
		}
	}
	return true
}

// A missing header counts as empty for an inverted match, except where presence
// itself is asked for (facts/mesh.md §2.1 item 5).
func (h *NamedMatch) matchHeader(r *Request) bool {
	v, ok := r.Header(h.Name)
	if h.Invert {
		if h.Value.Kind == MatchPresent {
			return !ok
		}
		return !h.Value.Match(v)
	}
	return ok && h.Value.Match(v)
}

// queryValue finds the first value of a parameter in a raw query. Escapes are
// compared as written: the common case, and no allocation.
func queryValue(query, name string) (string, bool) {
	for query != "" {
		var pair string
		pair, query, _ = strings.Cut(query, "&")
		k, v, _ := strings.Cut(pair, "=")
		if k == name {
			return v, true
		}
	}
	return "", false
}

// HeaderOps changes headers: Remove first, then Set, then Add.
type HeaderOps struct {
	Set    []HeaderField
	Add    []HeaderField
	Remove []string // lower case
}

// Empty reports whether there is nothing to do.
func (h *HeaderOps) Empty() bool { return len(h.Set)+len(h.Add)+len(h.Remove) == 0 }

// HeaderField is one header line.
type HeaderField struct{ Name, Value string }

// Destination is where a rule sends a share of its requests.
type Destination struct {
	Service ServiceName
	Subset  string // "" is all instances
	Weight  uint32
	Request HeaderOps
	// Unresolved is set when the destination cannot serve: "service X does not
	// exist", "subset v2 is not defined". Its traffic gets 503 with this reason.
	Unresolved string
	host       string // Service.Host(), made once
}

// Redirect answers a rule's requests with a Location.
type Redirect struct {
	Code      int // 301 when 0
	Scheme    string
	Authority string
	Path      string // "" keeps the request's path
}

// DirectResponse answers a rule's requests from the rule itself.
type DirectResponse struct {
	Status int
	Body   string
}

// Rewrite changes the request before it goes on.
type Rewrite struct {
	Path      string // replaces the matched prefix, or the whole path
	Prefix    bool   // the rule matched by prefix: replace only that
	Authority string
}

// Retry says when and how often an attempt is repeated. What was never sent may
// always be retried within Attempts; what was sent only when the method is
// idempotent.
type Retry struct {
	Attempts      int           // retries after the first try; 0 is none
	PerTryTimeout time.Duration // 0 is none
	On            RetryOn
	Statuses      []int // upstream's own answers that are retried
	// Backoff is the pause before the second retry, doubling from there. 0: 25 ms.
	Backoff time.Duration
	// Chosen says that somebody wrote this, and that it is not the default: it then
	// goes before the retries of a service's ResiliencePolicy.
	Chosen bool
}

// RetryOn is a set of conditions, as Istio's retryOn words.
type RetryOn uint16

const (
	RetryConnectFailure RetryOn = 1 << iota // no connection, nothing sent
	RetryRefusedStream                      // the peer says that it did not begin
	RetryReset                              // the connection broke before an answer
	Retry5xx                                // any 5xx, and resets
	RetryGatewayError                       // 502, 503, 504
	RetryRetriable4xx                       // 409
	RetryUnavailable                        // gRPC UNAVAILABLE, or 503
)

// DefaultRetry is what a rule without retries gets: two more tries of what was
// never sent, and of idempotent requests whose connection broke.
var DefaultRetry = Retry{Attempts: 2, On: RetryConnectFailure | RetryRefusedStream | RetryReset}

// Rule is a compiled route rule: matches, and what to do with a request that
// fits one of them.
type Rule struct {
	Name         string // "http[0]", or the rule's own name
	Source       SourceRef
	Matches      []Match // any one must fit; none fits everything
	Redirect     *Redirect
	Direct       *DirectResponse
	Destinations []Destination
	Timeout      time.Duration // of all tries together; 0 is none
	Retry        Retry
	Rewrite      *Rewrite
	Request      HeaderOps
	Response     HeaderOps
	// Resilience is the ResiliencePolicy of this route, if it has one. It goes
	// before that of the service.
	Resilience *Resilience
	total      uint64 // sum of the destinations' weights
}

func (r *Rule) matches(req *Request) bool {
	if len(r.Matches) == 0 {
		return true
	}
	for i := range r.Matches {
		if r.Matches[i].Matches(req) {
			return true
		}
	}
	return false
}

// pick chooses a destination with probability weight/sum; random is uniform over
// all 64 bits.
func (r *Rule) pick(random uint64) *Destination {
	return pickDestination(r.Destinations, r.total, random)
}

func pickDestination(of []Destination, total, random uint64) *Destination {
	switch len(of) {
	case 0:
		return nil
	case 1:
		return &of[0]
	}
	at := random % total // the bias is below 2^-32: weights are 32 bits
	for i := range of {
		w := uint64(of[i].Weight)
		if at < w {
			return &of[i]
		}
		at -= w
	}
	return &of[len(of)-1]
}

// RouteTable is what one host leads to: requests by Rules, connections whose bytes
// are not looked at by TCP and TLS. In each the first rule that fits wins.
type RouteTable struct {
	Host  string // as asked for, lower case
	Rules []Rule
	TCP   []RawRule // in the mesh, a service's ends with the service itself
	TLS   []RawRule
	Paths PathMode // of the host's requests
	index *routeIndex
}

// NewRouteTable makes the table of a host that has rules for requests only.
func NewRouteTable(host string, rules []Rule) (*RouteTable, error) {
	t := &RouteTable{Host: host, Rules: rules}
	if err := t.Complete(); err != nil {
		return nil, err
	}
	return t, nil
}

// Complete checks, completes and indexes the rules of a table before it is used. Of
// several destinations, those of weight 0 get nothing; if all are 0 the table is
// refused.
func (t *RouteTable) Complete() error {
	for i := range t.Rules {
		r := &t.Rules[i]
		var err error
		if r.total, err = t.completeDestinations(r.Name, r.Destinations); err != nil {
			return err
		}
		if len(r.Destinations) == 0 && r.Redirect == nil && r.Direct == nil {
			return Errorf(Invalid, "compile route", t.Host, "%s: no destination, redirect or direct response", r.Name)
		}
	}
	for _, raw := range [...][]RawRule{t.TCP, t.TLS} {
		for i := range raw {
			var err error
			if raw[i].total, err = t.completeDestinations(raw[i].Name, raw[i].Destinations); err != nil {
				return err
			}
		}
	}
	t.index = newRouteIndex(t.Rules)
	return nil
}

func (t *RouteTable) completeDestinations(rule string, of []Destination) (total uint64, err error) {
	for i := range of {
		d := &of[i]
		total += uint64(d.Weight)
		// One that is complete may be shared with a table in use: it is not written to.
		if !d.Service.hasHost(d.host) {
			d.host = d.Service.Host()
		}
	}
	if len(of) > 1 && total == 0 {
		return 0, Errorf(Invalid, "compile route", t.Host, "%s: the weights of its %d destinations are all zero", rule, len(of))
	}
	return total, nil
}

// Match returns the first rule that fits, or nil.
func (t *RouteTable) Match(r *Request) *Rule {
	if t.index != nil {
		if i := t.index.match(t.Rules, r); i >= 0 {
			return &t.Rules[i]
		}
		return nil
	}
	return t.walk(r)
}

// walk is Match without the index.
func (t *RouteTable) walk(r *Request) *Rule {
	for i := range t.Rules {
		if t.Rules[i].matches(r) {
			return &t.Rules[i]
		}
	}
	return nil
}

// RewritePath is path as it goes on: the matched prefix replaced, or the whole.
func (r *Rule) RewritePath(path string) string {
	if r.Rewrite == nil || r.Rewrite.Path == "" {
		return path
	}
	to := r.Rewrite.Path
	if !r.Rewrite.Prefix {
		return to
	}
	for i := range r.Matches {
		m := r.Matches[i].Path
		if m == nil || m.Kind != MatchPrefix || !m.Match(path) {
			continue
		}
		rest := path[len(m.Value):]
		switch {
		case strings.HasSuffix(to, "/"):
			rest = strings.TrimPrefix(rest, "/")
		case rest != "" && rest[0] != '/' && strings.HasSuffix(m.Value, "/"):
			rest = "/" + rest
		}
		return to + rest
	}
	return path
}

// Apply returns the status and the Location of the redirect for a request that
// was sent to authority (host and port, as the client wrote it).
func (t *Redirect) Apply(r *Request, authority string) (code int, location string) {
	scheme, path := r.Scheme, r.Path
	if t.Scheme != "" {
		scheme = t.Scheme
	}
	if t.Authority != "" {
		authority = t.Authority
	}
	if t.Path != "" {
		path = t.Path
	}
	if r.Query != "" {
		path += "?" + r.Query
	}
	code = t.Code
	if code == 0 {
		code = 301
	}
	return code, scheme + "://" + authority + path
}

// Onward is the path and the authority ("" keeps the client's) with which the
// request goes on: as the deciding rule rewrites it, or else the edge's.
func (d *Decision) Onward(r *Request) (path, authority string) {
	path = r.Path
	for _, rule := range [...]*Rule{d.Rule, d.Edge} {
		if rule != nil && rule.Rewrite != nil {
			path = rule.RewritePath(path)
			break
		}
	}
	for _, rule := range [...]*Rule{d.Rule, d.Edge} {
		if rule != nil && rule.Rewrite != nil && rule.Rewrite.Authority != "" {
			return path, rule.Rewrite.Authority
		}
	}
	return path, ""
}

// Share is the destination's part of the rule's traffic, 0 to 1.
func (r *Rule) Share(d *Destination) float64 { return share(r.Destinations, r.total, d) }

func share(of []Destination, total uint64, d *Destination) float64 {
	if len(of) == 1 {
		return 1
	}
	if total == 0 {
		return 0
	}
	return float64(d.Weight) / float64(total)
}

func (r *Rule) String() string { return fmt.Sprintf("%s %s", r.Source, r.Name) }
