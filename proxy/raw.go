package proxy

import (
	"context"
	"errors"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/balance"
	"github.com/weftmesh/weft/proxy/relay"
	"github.com/weftmesh/weft/telemetry/metric"
	"github.com/weftmesh/weft/wire/clienthello"
	"github.com/weftmesh/weft/wire/proxyproto"
)

// Raw connections: bytes that nobody looks at. They come to a port that is
// declared so or whose first bytes are not HTTP, by CONNECT, by a TLS name that is
// to be passed on, and from another sidecar. From where they were recognised on
// they are exchanges without a request: routed, balanced, limited and recorded as
// those, and then relayed until both sides have ended.

// serveRaw serves the connection as bytes. already was read from the client; early
// is the connection to the endpoint if there is one.
func (c *conn) serveRaw(d weft.Decision, already []byte, early *dialled) {
	x := c.p.takeExchange(c)
	defer c.p.putExchange(x)
	x.useHTTP1()
	x.head.Reset()
	x.begin()
	x.whole = true
	x.request = weft.Request{Host: c.l.Host, Scheme: "tcp", Source: c.peer}
	x.view, x.decision = c.p.view.Load(), d
	c.enter(phaseBusy, x.record.Start.UnixNano(), stallTimeout)
	c.setBusy(x)
	defer c.setBusy(nil)
	if a := x.filterRaw(); a != nil {
		early.close()
		x.refuseRaw(a)
		return
	}
	if d.Problem != "" {
		x.refuseRaw(problemAnswer(x, &d))
		return
	}
	if c.l.Direction == Inbound {
		x.plan = plan{cluster: c.l.local, group: c.l.local.set.Load().all, retry: &rawRetry}
	} else if a := x.planRaw(&d); a != nil {
		early.close()
		x.refuseRaw(a)
		return
	}
	if a := x.relayRaw(&x.plan, relay.Side{Conn: c.sock, Already: already}, early, ""); a != nil {
		x.refuseRaw(a)
		return
	}
	x.finishRaw()
}

// planRaw plans where a decision leads, which may be older than x.view.
func (x *Exchange) planRaw(d *weft.Decision) *Answer {
	x.record.Destination = d.Service.Name.Name
	cl := x.view.clusters[d.Service.Name]
	if cl == nil {
		return &Answer{Status: 503, Reason: string(weft.NoService), Text: "service " + d.Service.Name.String() + " is gone"}
	}
	x.plan = plan{cluster: cl, group: cl.set.Load().group(d.Destination.Subset), dest: d.Destination, retry: &rawRetry}
	if x.plan.group == nil {
		return &Answer{Status: 503, Reason: string(weft.NoSubset), Text: "subset " + d.Destination.Subset + " is not defined"}
	}
	return nil
}

// rawRetry: another endpoint may be tried for as long as none was connected to.
var rawRetry = weft.Retry{Attempts: 2, On: weft.RetryConnectFailure}

// filterRaw asks the listener's filters. They see an empty request of the peer.
func (x *Exchange) filterRaw() *Answer {
	x.auth = weft.AuthorizationRequest{Request: &x.request, PeerAddr: x.conn.peerAddr, Port: x.conn.l.port, Raw: true}
	x.request.Headers = x
	for _, f := range x.conn.l.Filters {
		if a := f.Request(x); a != nil {
			return a
		}
	}
	return nil
}

// refuseRaw ends a raw connection that goes nowhere. There is no way to say why
// but in the record; a reset is at least not taken for an answer.
func (x *Exchange) refuseRaw(a *Answer) {
	x.record.Status, x.record.Reason, x.record.Policy = a.Status, a.Reason, a.Policy
	x.finishRaw()
	relay.Abort(x.conn.sock)
}

// relayRaw connects to an endpoint, unless that was done early, tells the client,
// and relays. A connection that goes nowhere is nobody's but the caller's.
func (x *Exchange) relayRaw(pl *plan, client relay.Side, early *dialled, established string) *Answer {
	if reason := pl.cluster.limit.acquire(pl); reason != "" {
		early.close()
		return &Answer{Status: 503, Reason: reason, Text: "too many connections to " + pl.cluster.name}
	}
	defer pl.cluster.limit.release()
	if early == nil {
		sock, e, fault := x.connectRaw(pl)
		if fault != nil {
			return fault
		}
		early = &dialled{sock: sock, endpoint: e}
	}
	e := early.endpoint
	x.record.Endpoint, x.record.Version = e.id, e.version
	pl.cluster.open.Add(1)
	defer pl.cluster.open.Add(-1)
	e.target.Begin()
	defer e.target.End()
	pl.group.succeeded(e)
	if established != "" {
		x.record.Status = 200
		if _, err := io.WriteString(client.Conn, established); err != nil {
			early.close()
			x.record.Reason = "client_gone"
			return nil
		}
	}
	x.join(client, relay.Side{Conn: early.sock, Already: early.already}, rawIdle(pl.group.policy))
	return nil
}

// connectRaw opens a connection, to another endpoint when one cannot be reached.
func (x *Exchange) connectRaw(pl *plan) (net.Conn, *endpoint, *Answer) {
	var fault *Answer
	now := x.record.Start
	for n := 0; n <= pl.retry.Attempts; n++ {
		e := x.pick(pl, n, now)
		if e == nil {
			return nil, nil, noEndpoint(pl)
		}
		x.tried[n%maxTried] = e
		x.record.Attempts, x.record.Endpoint, x.record.Version = n+1, e.id, e.version
		sock, err := x.conn.dialRaw(e, pl.group.policy, pl.group.patience(now, pl.deadline))
		if err == nil {
			e.connected()
			return sock, e, nil
		}
		o := x.opening(pl, e, now)
		fault = o.failed(err)
		now = time.Now()
	}
	return nil, nil, fault
}

// dialRaw opens a connection for bytes, and says whose they are where the policy
// asks for it.
func (c *conn) dialRaw(e *endpoint, policy *weft.TrafficPolicy, timeout time.Duration) (net.Conn, error) {
	sock, _, err := c.p.dial(e, timeout, protocolRaw)
	if err != nil {
		return nil, err
	}
	if policy.ProxyProtocol > 0 && e.identity == "" {
		if err := c.announce(sock, policy.ProxyProtocol, timeout); err != nil {
			_ = sock.Close()
			return nil, err
		}
	}
	if protocol, secured := negotiated(sock); secured && protocol != protocolRaw {
		_ = sock.Close()
		return nil, errNotRaw
	}
	return sock, nil
}

// announce writes the PROXY header that names our client. It is no part of what
// the client says, and goes out at once: a server that wants it says nothing before.
func (c *conn) announce(sock net.Conn, version uint8, timeout time.Duration) error {
	var h proxyproto.Header
	h.Source, _ = netip.ParseAddrPort(c.sock.RemoteAddr().String())
	h.Destination, _ = netip.ParseAddrPort(c.sock.LocalAddr().String())
	var room [128]byte // either version fits
	b := room[:0]
	if version == 1 {
		b = proxyproto.AppendV1(b, h)
	} else {
		var err error
		if b, err = proxyproto.AppendV2(b, h); err != nil {
			return err
		}
	}
	_ = sock.SetWriteDeadline(time.Now().Add(timeout))
	_, err := sock.Write(b)
	_ = sock.SetWriteDeadline(time.Time{})
	return err
}

var errNotRaw = errors.New("the endpoint's sidecar does not take raw connections")

// rawIdle is how long a raw connection may be silent.
func rawIdle(p *weft.TrafficPolicy) time.Duration {
	if p.IdleTimeout > 0 {
		return p.IdleTimeout
	}
	return tunnelIdle
}

// join relays until both sides have ended, and notes what happened.
func (x *Exchange) join(client, server relay.Side, idle time.Duration) {
	x.conn.deadline.Store(math.MaxInt64) // from here on the relay looks after idleness
	r := relay.New(client, server, relay.Config{Idle: idle})
	x.mu.Lock()
	x.relay = r
	if x.expired {
		r.Interrupt()
	}
	x.mu.Unlock()
	result := r.Run()
	x.mu.Lock()
	x.relay = nil
	x.mu.Unlock()
	x.record.BytesIn, x.record.BytesOut = result.FromClient, result.FromServer
	if result.Reason != relay.ClientClosed && result.Reason != relay.ServerClosed {
		x.record.Reason = result.Reason
	}
}

// finishRaw records a raw connection. It has no status and is no request: metrics
// of its own count it.
func (x *Exchange) finishRaw() {
	r, p := &x.record, x.conn.p
	r.Duration = time.Since(r.Start)
	r.Raw = true
	if r.Destination == "" {
		r.Destination = "unknown"
	}
	if r.Direction == Inbound {
		r.Source, r.Destination = x.conn.source, p.self.Name
	} else {
		r.Source = p.self.Name
	}
	labels := []metric.Label{{Name: "direction", Value: r.Direction.String()}, {Name: "source", Value: r.Source},
		{Name: "destination", Value: r.Destination}}
	p.metrics.Counter("weft_raw_bytes_in_total", "Bytes of raw connections from clients.", labels...).Add(uint64(r.BytesIn))
	p.metrics.Counter("weft_raw_bytes_out_total", "Bytes of raw connections to clients.", labels...).Add(uint64(r.BytesOut))
	p.metrics.Counter("weft_raw_connections_total", "Raw connections that have ended.",
		append(labels, metric.Label{Name: "reason", Value: r.Reason})...).Add(1)
	if p.accessLog != nil {
		x.log()
	}
}

// routeRaw finds where a raw connection to a host goes, fetching what the snapshot
// lacks.
func (p *Proxy) routeRaw(host string, port uint16) weft.Decision {
	d := p.view.Load().snapshot.RouteTCP(host, port, rand.Uint64())
	if d.Problem == weft.NotLoaded && p.source != nil {
		ctx, cancel := context.WithTimeout(p.life, needPatience)
		p.source.Need(ctx, host)
		cancel()
		d = p.view.Load().snapshot.RouteTCP(host, port, rand.Uint64())
	}
	return d
}

// passThrough serves a TLS connection whose name is to be passed on as it is. done
// is false when TLS ends here; what was read is then in c.in.
func (c *conn) passThrough() (done bool) {
	c.in = takeBuffer()
	for {
		hello, err := clienthello.Parse(c.in[:c.w])
		if err == nil {
			d, ok := c.p.view.Load().snapshot.RouteTLS(string(hello.ServerName()), c.l.Port, rand.Uint64())
			if ok {
				c.serveRaw(d, c.in[:c.w], nil)
			}
			return ok
		}
		if !errors.Is(err, clienthello.ErrIncomplete) || c.w == len(c.in) {
			return false // the handshake will say what is wrong with it
		}
		n, err := c.sock.Read(c.in[c.w:])
		c.w += n
		if n == 0 {
			if err != io.EOF {
				c.p.refused.count("tls_handshake")
			}
			return true
		}
	}
}

// prefixed is a connection of which something was read already.
type prefixed struct {
	net.Conn
	rest []byte // copied: the buffer goes back
}

func (p *prefixed) Read(b []byte) (int, error) {
	if len(p.rest) > 0 {
		n := copy(b, p.rest)
		p.rest = p.rest[n:]
		return n, nil
	}
	return p.Conn.Read(b)
}

// NetConn is the connection that can be reset.
func (p *prefixed) NetConn() net.Conn { return p.Conn }

// unread puts what passThrough read before the connection's other bytes.
func (c *conn) unread() {
	c.sock = &prefixed{c.sock, append([]byte(nil), c.in[:c.w]...)}
	c.in.free()
	c.in, c.w = nil, 0
}

// detect serves the connection as bytes if its destination speaks no HTTP, by
// declaration or by what is heard first. It returns false when HTTP is to be
// served; what was read is then in c.in.
func (c *conn) detect() (done bool) {
	d := c.p.routeRaw(c.l.Host, 0)
	switch declared(&d) {
	case weft.TCP, weft.TLS:
		c.serveRaw(d, nil, nil)
		return true
	case weft.HTTP, weft.HTTP2, weft.GRPC:
		return false
	}
	if d.Problem == weft.NoRule {
		return false // only requests go there
	}
	// Where nobody is at the moment, bytes are still not to be answered by HTTP.
	kind, known := c.p.speaks.Recall(c.l.Host, time.Now())
	if kind == relay.ServerFirst {
		c.serveRaw(d, nil, nil)
		return true
	}
	var detector relay.Detector
	if known {
		detector.Quiet = longQuiet
	}
	return c.listen(d, detector, kind)
}

// longQuiet is how long a client may be silent where clients are known to speak
// first, before the server is asked whether it does: what was learnt from one
// client, who may have spoken out of turn, must not make the others wait for ever.
const longQuiet = time.Second

// dialled is a connection that was opened before anybody knew what it is for.
type dialled struct {
	sock     net.Conn
	endpoint *endpoint
	already  []byte // said by the server
}

func (d *dialled) close() {
	if d != nil {
		_ = d.sock.Close()
	}
}

// listen waits for both sides: the first speaker decides, and is remembered. kind is
// what others spoke to the same destination.
func (c *conn) listen(d weft.Decision, detector relay.Detector, kind relay.Kind) (done bool) {
	var early dialled
	dial := func(ctx context.Context) (sock net.Conn, err error) {
		early, err = c.dialEarly(ctx, &d)
		return early.sock, err
	}
	c.in = takeBuffer()
	v, err := detector.Detect(c.p.life, c.sock, c.in[:0], dial)
	c.w = len(v.FromClient)
	if err != nil {
		if kind == relay.HTTP1 || kind == relay.HTTP2 { // it can still be told of it
			return false
		}
		c.p.logger.Debug("nobody could say what is spoken", "host", c.l.Host, "peer", c.peerText, "error", err)
		relay.Abort(c.sock) // an end would be taken for the server's
		return true
	}
	if v.Sure {
		c.p.speaks.Learn(c.l.Host, v.Kind, time.Now())
	}
	switch v.Kind {
	case relay.HTTP1, relay.HTTP2, relay.Unknown:
		if v.Server != nil {
			_ = v.Server.Close()
		}
		return false
	}
	if v.Server == nil {
		c.serveRaw(d, v.FromClient, nil)
		return true
	}
	early.already = v.FromServer
	c.serveRaw(d, v.FromClient, &early)
	return true
}

// dialEarly opens a connection to one endpoint of the destination, without a
// second try: it is only to hear whether the server speaks.
func (conn *conn) dialEarly(ctx context.Context, d *weft.Decision) (dialled, error) {
	if d.Problem != "" { // a request is told of it; who waits for bytes has to be, too
		return dialled{}, errNowhere
	}
	cl := conn.p.view.Load().clusters[d.Service.Name]
	if cl == nil {
		return dialled{}, errNowhere
	}
	g := cl.set.Load().group(d.Destination.Subset)
	if g == nil {
		return dialled{}, errNowhere
	}
	now := time.Now()
	c := choice{random: rand.Uint64(), now: now}
	if h := g.policy.Hash; h != nil && h.SourceIP {
		c.hash, c.hashed = balance.HashString(conn.peerAddr.String()), true
	}
	e := g.pick(c)
	if e == nil {
		return dialled{}, errNowhere
	}
	patience := defaultConnectTimeout
	if end, ok := ctx.Deadline(); ok {
		patience = min(patience, end.Sub(now))
	}
	sock, err := conn.dialRaw(e, g.policy, patience)
	if err != nil {
		conn.p.unreached(e, time.Now())
		return dialled{}, err
	}
	return dialled{sock: sock, endpoint: e}, nil
}

var errNowhere = errors.New("no endpoint is in service")

// declared is what the port of a destination is said to speak.
func declared(d *weft.Decision) weft.Protocol {
	if d.Service == nil || len(d.Service.Endpoints) == 0 {
		return ""
	}
	return d.Service.Endpoints[0].Protocol
}

// serveConnect opens a tunnel for the application: CONNECT host:port. Services are
// called as raw traffic is, with mTLS between sidecars; other hosts as they would
// have been called without us.
func (x *Exchange) serveConnect() {
	host, portText, _ := net.SplitHostPort(string(x.head.Authority))
	port, _ := strconv.ParseUint(portText, 10, 16)
	x.request.Host = strings.ToLower(host)
	d := x.conn.p.routeRaw(x.request.Host, uint16(port))
	x.view, x.decision = x.conn.p.view.Load(), d
	switch {
	case d.Problem == weft.NoHost && x.leavesMesh():
		cl := x.externalCluster()
		if cl == nil {
			x.answer(&Answer{Status: 503, Reason: "too_many_hosts", Close: true, Text: "too many hosts outside the mesh are in use"})
			return
		}
		x.plan = plan{cluster: cl, group: cl.set.Load().all, retry: &rawRetry}
	case d.Problem != "":
		a := problemAnswer(x, &d)
		a.Close = true
		x.answer(a)
		return
	default:
		if a := x.planRaw(&d); a != nil {
			a.Close = true
			x.answer(a)
			return
		}
	}
	c := x.conn
	a := x.relayRaw(&x.plan, relay.Side{Conn: c.sock, Already: c.in[c.r:c.w]}, nil, "HTTP/1.1 200 Connection established\r\n\r\n")
	if a != nil {
		a.Close = true
		x.answer(a)
	}
}
