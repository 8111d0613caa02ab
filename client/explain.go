package client

import (
	"encoding/json"

	"github.com/weftmesh/weft"
)

// ExplainRequest describes a request that somebody might send.
type ExplainRequest struct {
	Method string `json:"method"` // "GET" when empty
	// URL is "http://order-service/api/orders/1"; or that of a whole connection,
	// "tcp://database:5432", or "tls://vault.example.com:443" when the application
	// itself speaks TLS. Those have no method.
	URL     string   `json:"url"`
	Headers []string `json:"headers,omitempty"` // "name: value"
	// From is who asks: a service ("user-service", or "user-service.shop" in
	// another namespace), or a connected gateway by its name or its service.
	// Empty is the client of the connected gateway to which the URL leads: one
	// that is registered at that address, or, when the host is no service's, one
	// that has rules for it. Else it is a caller of the default namespace whom
	// nobody knows.
	From string `json:"from,omitempty"`
}

// Explanation says where a request would go and why. It comes from the evaluator
// that the proxies run, on the configuration that they are sent.
type Explanation struct {
	Method string `json:"method"`
	Scheme string `json:"scheme"`
	Host   string `json:"host"` // lower case, without port
	Path   string `json:"path"` // as rules see it: normalised, without query
	Query  string `json:"query,omitempty"`
	// From is the identity that the destination sees; empty is plain text.
	From      weft.Identity `json:"from,omitempty"`
	Namespace string        `json:"namespace,omitempty"` // whose names the caller uses; empty at a gateway
	Gateway   string        `json:"gateway,omitempty"`   // the gateway that takes the request
	// Edge is the gateway's rule when it hands over to services. Its
	// destinations are Routes.
	Edge *Rule `json:"edge,omitempty"`
	// Routes is where the request may go on: one, or one for each destination of
	// the edge's rule.
	Routes []Route `json:"routes"`
}

// Route is one way that the request can take.
type Route struct {
	Share float64 `json:"share"` // of the traffic, 0 to 1
	Table string  `json:"table"` // host whose rules were looked at
	// Rule is the first that fits; nil when none does.
	Rule   *Rule        `json:"rule,omitempty"`
	Passed []PassedRule `json:"passed,omitempty"` // rules before it, which do not fit
	// Problem is why there is nowhere to go: "no such host", "no rule fits", …
	Problem      string        `json:"problem,omitempty"`
	Destinations []Destination `json:"destinations,omitempty"`
}

// Rule is a route rule that decides.
type Rule struct {
	Name     string         `json:"name"`   // "http[0]", or its own name
	Source   weft.SourceRef `json:"source"` // empty: built in
	Match    string         `json:"match"`  // the condition that fits; "every request"
	Timeout  weft.Duration  `json:"timeout"`
	Retry    Retry          `json:"retry"`
	Rewrite  *Rewrite       `json:"rewrite,omitempty"`
	Redirect *Redirect      `json:"redirect,omitempty"` // answered by the rule itself
	Direct   *Direct        `json:"direct,omitempty"`   // answered by the rule itself
}

// Retry of a rule. What was never sent is always retried within Attempts.
type Retry struct {
	Attempts      int           `json:"attempts"`                // after the first try
	PerTryTimeout weft.Duration `json:"perTryTimeout,omitempty"` // "0s" is none
	On            []string      `json:"on,omitempty"`            // "connect-failure", "reset", …
	Statuses      []int         `json:"statuses,omitempty"`
}

// Rewrite is how the request is changed before it goes on.
type Rewrite struct {
	Path      string `json:"path,omitempty"` // the whole new path of this request
	Authority string `json:"authority,omitempty"`
}

// Redirect is the answer of a redirecting rule.
type Redirect struct {
	Code     int    `json:"code"`
	Location string `json:"location"`
}

// Direct is the answer of a rule that answers itself.
type Direct struct {
	Status int    `json:"status"`
	Body   string `json:"body,omitempty"`
}

// PassedRule is a rule that came earlier and does not fit.
type PassedRule struct {
	Name   string         `json:"name"`
	Source weft.SourceRef `json:"source"`
	Why    string         `json:"why"` // "path /x is not /api/*"
}

// Destination is one of the places between which a rule divides its traffic.
type Destination struct {
	Namespace string `json:"namespace"`
	Service   string `json:"service"`
	Subset    string `json:"subset,omitempty"`
	Weight    uint32 `json:"weight"`
	// Share of the route's traffic, 0 to 1.
	Share float64 `json:"share"`
	// Problem is why its traffic gets 503: "subset v2 is not defined".
	Problem string  `json:"problem,omitempty"`
	Policy  *Policy `json:"policy,omitempty"`
	// Resilience is what guards the request; nil: nothing does.
	Resilience *Resilience `json:"resilience,omitempty"`
	Endpoints  []Endpoint  `json:"endpoints"` // the healthy ones
	// Guard is why failed instances are among them.
	Guard string `json:"guard,omitempty"`
	// Authorization at the endpoints: one verdict, or several when the
	// endpoints' labels differ so that other policies select them.
	Authorization []Verdict `json:"authorization,omitempty"`
}

// Endpoint is a healthy instance that may get the request.
type Endpoint struct {
	ID       string            `json:"id"`      // "<node>/<instance id>"
	Address  string            `json:"address"` // that the caller dials; in a State that of the process itself, in an Explanation what a proxy dials
	Version  string            `json:"version,omitempty"`
	Zone     string            `json:"zone,omitempty"`
	Labels   map[string]string `json:"labels,omitempty"`   // in a State
	Protocol weft.Protocol     `json:"protocol,omitempty"` // declared; empty: found out by the first bytes
	Weight   uint32            `json:"weight"`
	Identity weft.Identity     `json:"identity,omitempty"` // of the sidecar before it; empty: it has none and takes plain text
	// Plain, in a State: who has no sidecar can dial Address. Otherwise only
	// sidecars reach the instance, over mTLS.
	Plain bool `json:"plain,omitempty"`
}

// Policy is how the caller's proxy treats the destination. 0 is no limit.
type Policy struct {
	Source             weft.SourceRef `json:"source"` // empty: defaults
	LoadBalancer       string         `json:"loadBalancer"`
	ConnectTimeout     weft.Duration  `json:"connectTimeout,omitempty"`
	MaxConnections     uint32         `json:"maxConnections,omitempty"`
	MaxPendingRequests uint32         `json:"maxPendingRequests,omitempty"`
	MaxRequests        uint32         `json:"maxRequests,omitempty"`
	MaxRequestsPerConn uint32         `json:"maxRequestsPerConnection,omitempty"`
	HTTP2              bool           `json:"http2,omitempty"` // HTTP/2 to endpoints that declare nothing or plain http
	MaxStreams         uint32         `json:"maxStreams,omitempty"`
	ProxyProtocol      uint8          `json:"proxyProtocol,omitempty"` // version of the header before raw connections
	Outlier            *Outlier       `json:"outlier,omitempty"`       // nil: nothing is ejected
}

// Resilience is the ResiliencePolicy that applies, and the state that a person holds
// its circuit in.
type Resilience struct {
	Source weft.SourceRef  `json:"source"`         // empty: there is only a held circuit
	Of     string          `json:"of"`             // "service", or "route"
	Held   string          `json:"held,omitempty"` // "forced-open", "disabled", "metrics-only"
	Spec   json.RawMessage `json:"spec,omitempty"` // a resilience.Spec
}

// Outlier is when a failing endpoint is left out for a while.
type Outlier struct {
	Consecutive5xx     uint32        `json:"consecutive5xx"`
	ConsecutiveGateway uint32        `json:"consecutiveGateway,omitempty"`
	Interval           weft.Duration `json:"interval"`
	BaseEjection       weft.Duration `json:"baseEjection"`
	MaxEjection        weft.Duration `json:"maxEjection,omitempty"`
	MaxEjectionPercent uint32        `json:"maxEjectionPercent"`
	MinHealthPercent   uint32        `json:"minHealthPercent,omitempty"`
}

// Verdict of the authorization policies that stand before some endpoints.
type Verdict struct {
	Allowed   bool           `json:"allowed"`
	Policy    weft.SourceRef `json:"policy"`    // that decided; empty: no policy applies
	Reason    string         `json:"reason"`    // for people
	Endpoints []string       `json:"endpoints"` // ids
}
