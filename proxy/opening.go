package proxy

import (
	"time"

	"github.com/weftmesh/weft/resilience"
)

// opening is what it takes to get a connection or a stream to an endpoint. It knows
// nothing of the exchange that wants it: a hedge that comes too late outlives that.
type opening struct {
	p        *Proxy
	cluster  *cluster
	group    *group
	endpoint *endpoint
	http2    bool
	grpc     bool
	careful  bool      // the request must not be lost to a connection that was closed meanwhile
	began    time.Time // the attempt; zero where nobody wants to know
	until    time.Time // the attempt's deadline; zero: there is none
}

func (x *Exchange) opening(pl *plan, e *endpoint, began time.Time) opening {
	return opening{p: x.conn.p, cluster: pl.cluster, group: pl.group, endpoint: e, http2: pl.http2, grpc: x.grpc,
		careful: !x.idempotent(), began: began, until: pl.attemptDeadline(began)}
}

// open takes a connection or a stream of the endpoint, or makes one. stream is what
// becomes of a stream.
func (o *opening) open(stream *http2Upstream) (upstream, *Answer) {
	if o.http2 {
		if err := stream.open(o); err != nil {
			return nil, o.failed(err)
		}
		return stream, nil
	}
	if u := o.endpoint.pool.get(o.began.UnixNano(), o.careful); u != nil {
		u.setDeadline(o.until)
		return u, nil
	}
	if most := o.group.policy.MaxConnections; most > 0 && o.cluster.open.Load() >= int64(most) {
		o.group.dropIdle()
	}
	u, err := o.p.dialLink(o.cluster, o.endpoint, o.group.patience(time.Now(), o.until))
	if err != nil {
		return nil, o.failed(err)
	}
	o.endpoint.connected()
	u.setDeadline(o.until)
	return u, nil
}

// keep gives back what was opened and is not wanted any more.
func (o *opening) keep(up upstream) {
	u, one := up.(*link)
	if !one {
		up.release(nil, nil, false)
		return
	}
	patience := idleUpstream
	if t := o.group.policy.IdleTimeout; t > 0 {
		patience = min(patience, t)
	}
	u.setDeadline(time.Time{})
	o.endpoint.pool.put(u, time.Now().UnixNano(), patience)
}

// failed notes that the endpoint cannot be connected to, or not until the attempt's
// deadline.
func (o *opening) failed(err error) *Answer {
	now := time.Now()
	a := &Answer{Status: 503, Reason: "connect_failed", Unsent: true,
		Text: "cannot connect to " + o.cluster.name + " (" + o.endpoint.id + "): " + plainCause(err)}
	if !o.until.IsZero() && !now.Before(o.until) {
		a.Status, a.Reason = 504, "timeout"
		if !o.began.Before(o.until) {
			return a // it was too late before anybody asked the endpoint
		}
	}
	o.p.unreached(o.endpoint, now)
	o.group.failed(o.endpoint, resilience.FaultLocal, now)
	return a
}

// defaultConnectTimeout is Istio's (facts/mesh.md §2.2 item 7).
const defaultConnectTimeout = 10 * time.Second

// patience is how long an exchange waits for a connection, or a slot for one. until
// bounds it; zero: nothing else does.
func (g *group) patience(now, until time.Time) time.Duration {
	patience := g.policy.ConnectTimeout
	if patience == 0 {
		patience = defaultConnectTimeout
	}
	if !until.IsZero() {
		patience = min(patience, until.Sub(now))
	}
	return patience
}
