package proxy

import (
	"errors"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"time"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/wire/http1"
)

// plan is how an exchange is forwarded; it is made of compiled parts only.
type plan struct {
	cluster  *cluster
	group    *group
	rule     *weft.Rule        // nil: none applies
	dest     *weft.Destination // nil: none applies
	retry    *weft.Retry
	timeout  time.Duration // of all tries together; 0 is none
	deadline time.Time     // of all tries together, the client's own, too; zero is none
	hurried  bool          // deadline is the client's own
	wait     time.Duration // before the next try
	http2    bool          // to the endpoint

	guard   *guard        // nil: no ResiliencePolicy applies
	perTry  time.Duration // of one attempt; 0 is no bound of its own
	retries bool          // guard's policy decides on retries, and not retry
	instead *guard        // whose fallback leads here; nil: none does
}

// inboundRetry covers one thing: the application closed a kept connection at the
// moment when a request was put on it.
var inboundRetry = weft.Retry{Attempts: 1, On: weft.RetryReset}

func (x *Exchange) forwardLocal() (keep bool) {
	local := x.conn.l.local
	for i := range x.head.Fields { // what proxies say to each other is not the application's
		if x.head.Fields[i].ID == http1.FieldXWeft {
			x.head.Fields[i].Drop = true
		}
	}
	x.plan = plan{cluster: local, group: local.set.Load().all, retry: &inboundRetry}
	return x.forward(&x.plan)
}

// forwardRouted sends the request where x.decision says.
func (x *Exchange) forwardRouted() (keep bool) {
	d := &x.decision
	if d.Problem == weft.NoHost {
		return x.forwardExternal()
	}
	cl := x.view.clusters[d.Service.Name]
	pl := &x.plan
	*pl = plan{cluster: cl, group: cl.set.Load().group(d.Destination.Subset), rule: d.Rule, dest: d.Destination, retry: &d.Rule.Retry}
	x.record.Destination = d.Service.Name.Name
	if pl.group == nil { // the subset went while we looked
		return x.answer(problemAnswer(x, &weft.Decision{Problem: weft.NoSubset, Rule: d.Rule, Destination: d.Destination}))
	}
	pl.perTry = d.Rule.Retry.PerTryTimeout
	timeout := d.Rule.Timeout
	if d.Edge != nil && d.Edge.Timeout > 0 && (timeout == 0 || d.Edge.Timeout < timeout) {
		timeout = d.Edge.Timeout
	}
	if pl.timeout = x.guard(pl, timeout); pl.timeout > 0 {
		pl.deadline = x.record.Start.Add(pl.timeout)
	}
	return x.forward(pl)
}

// guard finds the policy that applies: the route's before the service's. What a
// route says by itself goes before what its service's policy says.
func (x *Exchange) guard(pl *plan, timeout time.Duration) time.Duration {
	d := &x.decision
	rule := d.OwnPolicy()
	own := rule != nil
	if own {
		pl.guard = x.view.rules[rule]
	} else {
		pl.guard = pl.cluster.guard.Load()
	}
	if pl.guard == nil {
		return timeout
	}
	s := pl.guard.settings.Load()
	if s.timeout > 0 && (own || timeout == 0) {
		timeout = s.timeout
	}
	if s.attempt > 0 && (own || pl.perTry == 0) {
		pl.perTry = s.attempt
	}
	pl.retries = s.retries && (own || !d.Rule.Retry.Chosen)
	return timeout
}

// maxExternal bounds how many hosts outside the mesh are remembered.
const maxExternal = 1000

// forwardExternal sends a forward-proxy request to a host outside the mesh, as it
// would have gone without us.
func (x *Exchange) forwardExternal() (keep bool) {
	cl := x.externalCluster()
	if cl == nil {
		return x.answer(&Answer{Status: 503, Reason: "too_many_hosts", Text: "too many hosts outside the mesh are in use"})
	}
	x.plan = plan{cluster: cl, group: cl.set.Load().all, retry: &weft.DefaultRetry}
	return x.forward(&x.plan)
}

// externalCluster is the host outside the mesh that the request is for; nil when
// there are too many.
func (x *Exchange) externalCluster() *cluster {
	p := x.conn.p
	address := strings.ToLower(string(x.head.Authority))
	if _, _, err := net.SplitHostPort(address); err != nil {
		address = net.JoinHostPort(strings.Trim(address, "[]"), "80")
	}
	p.mu.Lock()
	cl := p.external[address]
	full := cl == nil && len(p.external) >= maxExternal
	if cl == nil && !full {
		cl = newCluster("external", "")
		cl.update(&weft.Service{Endpoints: []weft.Endpoint{{ID: address, Address: address, Weight: 1}}})
		p.external[address] = cl
	}
	if cl != nil {
		cl.asked.Store(p.clock.Load()) // who came may not have begun yet
	}
	p.mu.Unlock()
	x.record.Destination = "external"
	return cl
}

// outcome of one attempt.
type outcome struct {
	done   bool // the client has its response, or as much of it as there is
	keep   bool // with done: the client's connection may carry another request
	unsent bool // the request did not reach an application
	again  bool // with !done: worth another try if the request may be repeated
	stale  bool // with !done: a kept connection was dead already
	paid   bool // with again: another try was granted
	whole  bool // the upstream's connection is at the end of this exchange
	// excused, with !done: time was up while the client still had to send
	excused bool
	cut     int // with done: the response is not whole, and what status says so
	fault   Answer
}

// maxStale bounds how many dead kept connections an exchange may meet. They do
// not count as attempts: that a server closed an idle connection is nobody's
// failure.
const maxStale = 3

// forward has the request answered: by an endpoint, or by saying why not.
func (x *Exchange) forward(pl *plan) (keep bool) {
	if x.upgrade {
		x.whole = true
	} else if err := x.client.load(); err != nil { // first: a slow client must not hold a slot
		x.record.Reason = "client_body"
		return false
	}
	x.limitByClient(pl)
	var fault *Answer
	if pl.guard == nil {
		keep, fault = x.try(pl)
	} else {
		keep, fault = x.once(pl)
	}
	if fault != nil {
		return x.giveUp(pl, fault)
	}
	return keep
}

// try makes attempts until one is answered or no more are allowed. Without a fault
// the client has its answer.
func (x *Exchange) try(pl *plan) (keep bool, fault *Answer) {
	if pl.guard != nil {
		if fault := x.beginCall(pl); fault != nil {
			return false, fault
		}
		defer x.endCall(pl)
	}
	policy := pl.group.policy
	pl.http2 = x.goesByHTTP2(pl)
	if reason := pl.cluster.limit.acquire(pl); reason != "" {
		return false, &Answer{Status: 503, Reason: reason, Unsent: true,
			Text: "too many requests to " + pl.cluster.name + " are in flight (" + policy.Source.String() + ")"}
	}
	defer pl.cluster.limit.release()
	pl.cluster.budget.Call(x.record.Start)
	now, stale := x.record.Start, 0
	for n := 0; ; {
		if pl.guard != nil {
			if fault := x.beginAttempt(pl); fault != nil {
				return false, fault
			}
		}
		e := x.pick(pl, n, now)
		if e == nil {
			return false, noEndpoint(pl)
		}
		x.tried[n%maxTried] = e
		x.record.Attempts = n + 1
		x.chose(e)
		o := x.attempt(pl, e, n)
		if pl.guard != nil {
			x.endAttempt(pl, &o)
		}
		if o.done {
			return o.keep, nil
		}
		now = time.Now()
		if o.stale && stale < maxStale && !x.streamed && !x.wasExpired() && (o.unsent || x.idempotent()) {
			x.tried[n%maxTried] = nil // it is not the endpoint's failure
			stale++
			continue
		}
		if !x.mayRepeat(pl, &o, n) || !o.paid && !x.grant(pl, n, now) {
			fault := o.fault // only what failed is worth an allocation
			return false, &fault
		}
		if !x.rest(pl.wait) {
			return false, clientGone()
		}
		n++
	}
}

// clientGone is for the record: nobody will see it.
func clientGone() *Answer { return &Answer{Status: 499, Reason: "client_gone", Close: true} }

// chose notes which endpoint an attempt goes to.
func (x *Exchange) chose(e *endpoint) {
	x.record.Endpoint, x.record.Version = e.id, e.version
	if x.conn.l.Direction == Inbound {
		return
	}
	x.record.series = e.requests(x.conn.p, x.conn.l.Direction, x.record.Destination)
	if x.grpc {
		x.record.calls = e.grpcCalls(x.conn.p, x.conn.l.Direction, x.record.Destination)
	}
}

// goesByHTTP2 decides the protocol to the endpoint: what its port declares; else
// what the policy says; else HTTP/2 for gRPC, which knows nothing else, and
// between sidecars for what came by it; else HTTP/1, which everybody speaks.
func (x *Exchange) goesByHTTP2(pl *plan) bool {
	if len(pl.group.endpoints) == 0 {
		return false
	}
	e := pl.group.endpoints[0] // the instances of a service speak alike
	switch {
	case x.upgrade:
		return false
	case e.identity != "":
		return x.client.http2() || x.grpc
	case e.protocol == weft.HTTP2 || e.protocol == weft.GRPC:
		return true
	}
	return x.grpc || pl.group.policy.HTTP2
}

// pick chooses the endpoint of attempt n. When the destination has none left that
// was not tried and is not known to be down, another weighted destination of the
// rule that is a subset of the same service stands in: the only instance of a
// canary dies, and nobody notices. (Envoy would answer 503 to the canary's share.)
// Last comes what was tried or is down.
func (x *Exchange) pick(pl *plan, n int, now time.Time) *endpoint {
	tried := x.tried[:min(n, maxTried)]
	c := x.choice(pl, rand.Uint64(), now, tried)
	if e := pl.group.pick(c); e != nil {
		return e
	}
	if pl.rule != nil && len(pl.rule.Destinations) > 1 && pl.instead == nil {
		set := pl.cluster.set.Load()
		for i := range pl.rule.Destinations {
			d := &pl.rule.Destinations[i]
			g := set.group(d.Subset)
			if d.Weight == 0 || d.Service != pl.dest.Service || g == nil || g == pl.group {
				continue
			}
			if e := g.pick(c); e != nil {
				pl.group, pl.dest = g, d
				return e
			}
		}
	}
	return pl.group.pickAny(c)
}

func noEndpoint(pl *plan) *Answer {
	a := &Answer{Status: 503, Reason: "no_endpoint", Unsent: true, Text: "no healthy endpoint of " + pl.cluster.name}
	if pl.dest != nil && pl.dest.Subset != "" {
		a.Text += " in subset " + pl.dest.Subset
	}
	if len(pl.group.endpoints) > 0 {
		a.Reason, a.Text = "all_ejected", a.Text+": all are ejected for failing ("+pl.group.policy.Source.String()+")"
	}
	return a
}

// mayRepeat reports whether a failed attempt may be followed by another: what no
// application has seen always, the rest only when repeating does no harm.
func (x *Exchange) mayRepeat(pl *plan, o *outcome, n int) bool {
	if !pl.retries && n >= pl.retry.Attempts || !o.again || x.streamed || x.wasExpired() {
		return false
	}
	if pl.retries {
		return o.unsent || x.idempotent() || pl.guard.policy.RetriesMethod(x.request.Method) ||
			x.grpc && x.hint > 0 // the server asks for it
	}
	if o.unsent {
		return pl.retry.On&(weft.RetryConnectFailure|weft.RetryRefusedStream|weft.Retry5xx|weft.RetryGatewayError) != 0
	}
	return x.idempotent()
}

// idempotent reports whether the request may be sent twice (RFC 9110 §9.2.2, and
// QUERY of RFC 10008), by its method or by its client's promise.
func (x *Exchange) idempotent() bool {
	switch string(x.head.Method) {
	case "GET", "HEAD", "OPTIONS", "PUT", "DELETE", "TRACE", "QUERY":
		return true
	}
	return x.head.Find(http1.FieldIdempotencyKey) >= 0
}

// Backoff between attempts: full jitter over 25 ms, doubling, at most 250 ms
// (Envoy's defaults). The first retry goes to another endpoint when there is one,
// and at once.
const backoffBase = 25 * time.Millisecond

// grant decides whether attempt n+1 is made, and after which wait: there must be
// time for it, and the budget pays.
func (x *Exchange) grant(pl *plan, n int, now time.Time) bool {
	if pl.retries {
		var ok bool
		pl.wait, ok = x.call.Retry(now, x.hint)
		return ok
	}
	pl.wait = 0
	if n > 0 || len(pl.group.endpoints) == 1 {
		base := pl.retry.Backoff
		if base == 0 {
			base = backoffBase
		}
		pl.wait = time.Duration(rand.Int64N(int64(min(base<<min(n, 10), 10*base))))
	}
	if !pl.deadline.IsZero() && now.Add(pl.wait).After(pl.deadline) {
		return false
	}
	return pl.cluster.budget.Retry(now)
}

// attempt sends the request to one endpoint and, when that goes well, streams the
// answer to the client.
func (x *Exchange) attempt(pl *plan, e *endpoint, n int) outcome {
	e.target.Begin()
	defer e.target.End()
	switch {
	case pl.guard != nil: // beginAttempt has looked at the clock
	case pl.http2 && pl.perTry == 0 && pl.deadline.IsZero() && !pl.group.observes:
		x.sentAt = time.Time{}
	default:
		x.sentAt = time.Now()
	}
	delay, most := x.hedges(pl)
	x.hedged = delay > 0
	up, fault := x.connect(pl, e)
	if fault != nil {
		return outcome{unsent: true, again: true, fault: *fault}
	}
	x.hold(up)
	unsent, err := up.send(x, pl)
	if err != nil && unsent {
		x.unhold()
		stale := up.reused()
		up.release(x, pl, false)
		return outcome{unsent: true, again: true, stale: stale, fault: *x.broken(e, "while sending", err)}
	}
	if x.hedged && err == nil {
		var other *endpoint
		if up, other = x.race(pl, up, e, delay, most); other != e {
			defer other.target.End()
		}
	}
	sending := !x.whole && err == nil
	x.sender.lost.Store(false)
	if sending {
		x.sender.start(x, up)
	}
	o := x.receive(pl, up, n)
	if sending {
		x.sender.join(x, up, &o)
	}
	if x.unhold() || err != nil {
		o.whole = false
	}
	up.release(x, pl, o.whole)
	return o
}

// attemptDeadline is when an attempt that began at start has to end: the earlier of
// the plan's deadline and the per-try timeout.
func (pl *plan) attemptDeadline(start time.Time) time.Time {
	if pl.perTry == 0 {
		return pl.deadline
	}
	t := start.Add(pl.perTry)
	if !pl.deadline.IsZero() && pl.deadline.Before(t) {
		return pl.deadline
	}
	return t
}

// connect takes a connection or a stream of the endpoint, or opens one.
func (x *Exchange) connect(pl *plan, e *endpoint) (upstream, *Answer) {
	o := x.opening(pl, e, x.sentAt)
	x.stream.x = x
	return o.open(&x.stream)
}

// plainCause is a network error's own words, without the addresses that the
// outside should not learn.
func plainCause(err error) string {
	var op *net.OpError
	if errors.As(err, &op) {
		err = op.Err
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return "timeout"
	}
	return err.Error()
}

// broken describes a connection that failed before an answer.
func (x *Exchange) broken(e *endpoint, when string, err error) *Answer {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return &Answer{Status: 504, Reason: "timeout", Text: x.record.Destination + " did not answer in time"}
	}
	return &Answer{Status: 502, Reason: "upstream_reset", Text: "the connection to " + e.id + " broke " + when + ": " + plainCause(err)}
}

// appendRequest appends the header lines that go upstream, but for Host and
// framing. What rules remove or replace is marked in the head, which makes a second
// attempt write the same.
func (x *Exchange) appendRequest(dst []byte, pl *plan) []byte {
	h := &x.head
	if pl.rule != nil {
		dst = applyOps(dst, &h.Head, &pl.rule.Request)
		dst = applyOps(dst, &h.Head, &pl.dest.Request)
	}
	if e := x.decision.Edge; e != nil {
		dst = applyOps(dst, &h.Head, &e.Request)
	}
	if i := h.Find(http1.FieldTrailer); i >= 0 && h.Framing == http1.Chunked {
		h.Fields[i].Drop = false // the trailers go on too
	}
	dst = h.AppendFields(dst)
	dst = append(dst, x.added...)
	if x.traced {
		dst = append(x.trace.Append(append(dst, "traceparent: "...)), "\r\n"...)
	}
	return dst
}

// appendHost writes a Host line when the client's own cannot be used.
func (x *Exchange) appendHost(dst []byte, authority string) []byte {
	i := x.head.Find(http1.FieldHost)
	if authority == "" && i >= 0 && !x.head.Fields[i].Drop {
		return dst
	}
	if i >= 0 {
		x.head.Fields[i].Drop = true
	}
	if authority == "" {
		authority = str(x.head.Authority)
	}
	return appendField(dst, "Host", authority)
}

// applyOps marks removed and replaced headers in h and appends the new ones.
func applyOps(dst []byte, h *http1.Head, o *weft.HeaderOps) []byte {
	for _, name := range o.Remove {
		dropFields(h, name)
	}
	for _, f := range o.Set {
		dropFields(h, f.Name)
		dst = appendField(dst, f.Name, f.Value)
	}
	for _, f := range o.Add {
		dst = appendField(dst, f.Name, f.Value)
	}
	return dst
}
