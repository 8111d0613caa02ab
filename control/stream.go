package control

import (
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/weftmesh/weft/control/resource"
	"github.com/weftmesh/weft/control/weftpb"
)

// typeOrder is the order in which pending types are sent: what is pointed to goes
// before what points to it.
var typeOrder = [...]string{
	weftpb.TrustType, weftpb.ServiceType, weftpb.EndpointsType,
	weftpb.RouteTableType, weftpb.GatewayTableType, weftpb.GatewayType, weftpb.AuthorizationType,
}

const (
	maxNames         = 50_000  // subscriptions of one type on one stream
	maxNameLength    = 512     // bytes
	maxResponseNames = 1000    // of one response; the rest follows after its ACK
	maxResponseBytes = 1 << 20 // about, well below gRPC's 4 MiB
	maxNackLength    = 1024    // of a reason that is kept
)

// stream is one proxy's delta ADS stream: the protocol's state, without its I/O.
// A name is pending when its entry may have to be sent; whether it really has, is
// decided when the response is made. So changes merge by themselves while a
// response of the same type is under way.
type stream struct {
	// constant
	proxy     *proxy
	namespace string // of the proxy's identity
	log       *slog.Logger
	kick      chan struct{} // holds one: there may be something to send

	// guarded by Control.mu
	types    map[string]*subscription
	nonce    uint64
	clean    bool   // nothing is pending or under way
	behind   uint64 // index that the proxy had when it was last clean
	lastNack string
}

// subscription is one type on one stream.
type subscription struct {
	names   map[string]*interest
	pending map[string]struct{}
	flight  *flight // nil: everything sent is acknowledged
}

// interest is one name that a stream is subscribed to.
type interest struct {
	entry    *entry
	member   bool   // by a subscription to all tables of a gateway: it ends with the table
	answered bool   // the proxy was told something of this name
	sent     string // version that it was told last; "" is that there is none
	force    bool   // send even when it is the same: it was asked for again
	acked    uint64 // entry.seq that the proxy has applied (or refused)

	// for receipts
	index   uint64    // entry.index of what it has applied; see has
	at      time.Time // when it applied that
	changed time.Time // of the oldest change that was not sent; zero: there is none
	refused string    // why it goes on with what it had before; "": it does not
}

// flight is a response that is not acknowledged yet.
type flight struct {
	nonce string
	since time.Time
	sent  map[string]shipment // by name
}

// shipment is one name in a response.
type shipment struct {
	seq, index uint64    // of the entry
	changed    time.Time // of the oldest change in it; zero: it was asked for
}

func newStream(p *proxy, namespace string, log *slog.Logger) *stream {
	return &stream{
		proxy: p, namespace: namespace, log: log,
		kick: make(chan struct{}, 1), types: make(map[string]*subscription),
	}
}

func (s *stream) wake() {
	select {
	case s.kick <- struct{}{}:
	default:
	}
}

// mark makes a name pending. before is the index that a clean proxy has applied.
func (s *stream) mark(typeURL, name string, before uint64) {
	if s.clean {
		s.clean, s.behind = false, before
	}
	s.types[typeURL].pending[name] = struct{}{}
}

// request takes one request of the proxy in. It returns an error for what no
// proxy of ours sends; the stream ends with it then.
func (c *Control) request(s *stream, r *discovery.DeltaDiscoveryRequest) error {
	if !slices.Contains(typeOrder[:], r.GetTypeUrl()) {
		return status.Errorf(codes.InvalidArgument, "this server has no resources of type %q", r.GetTypeUrl())
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	sub := s.types[r.GetTypeUrl()]
	if sub == nil {
		sub = &subscription{names: make(map[string]*interest), pending: make(map[string]struct{})}
		s.types[r.GetTypeUrl()] = sub
	}
	c.acknowledge(s, sub, r)
	for _, name := range r.GetResourceNamesUnsubscribe() {
		c.unsubscribeName(s, sub, name)
	}
	// What the proxy has from a stream that went before. xDS has it in the first
	// request of a type only; ours may need several for many names.
	have := r.GetInitialResourceVersions()
	for _, name := range r.GetResourceNamesSubscribe() {
		if len(name) > maxNameLength || len(sub.names) >= maxNames {
			return status.Errorf(codes.ResourceExhausted, "a name of %d bytes, or more than %d names of one type", len(name), maxNames)
		}
		if gateway, all := allTablesOf(r.GetTypeUrl(), name); all {
			c.subscribeAll(s, sub, gateway, have)
			continue
		}
		c.subscribe(s, sub, r.GetTypeUrl(), name, have[name])
	}
	c.settle()
	s.wake()
	return nil
}

// acknowledge settles the response under way, if it is that one which r answers. A
// stale nonce says nothing; the subscription changes in its request still count.
func (c *Control) acknowledge(s *stream, sub *subscription, r *discovery.DeltaDiscoveryRequest) {
	if sub.flight == nil || r.GetResponseNonce() != sub.flight.nonce {
		return
	}
	if detail := r.GetErrorDetail(); detail != nil {
		reason := clippedNack(detail.GetMessage())
		s.lastNack = kindOf(r.GetTypeUrl()) + ": " + reason
		s.log.Warn("control: a proxy refuses configuration; it goes on with the last good one", "type", kindOf(r.GetTypeUrl()), "reason", reason)
	}
	refused := refusals(sub.flight, r.GetErrorDetail())
	now := time.Now()
	for name, sent := range sub.flight.sent {
		in := sub.names[name]
		if in == nil {
			continue
		}
		in.acked = max(in.acked, sent.seq)
		if in.refused = refused[name]; in.refused == "" {
			in.index, in.at = max(in.index, sent.index), now
			c.propagated(r.GetTypeUrl(), sent.changed, now)
		}
		c.ackMoved(in.entry)
		if in.member && in.entry.resource == nil && in.sent == "" {
			c.unsubscribeName(s, sub, name)
		}
	}
	sub.flight = nil
}

// kindOf is the last part of a type URL.
func kindOf(typeURL string) string { return typeURL[strings.LastIndexByte(typeURL, '.')+1:] }

func (c *Control) subscribe(s *stream, sub *subscription, typeURL, name, have string) {
	in := sub.names[name]
	if in != nil {
		if in.entry != nil {
			in.force = true // the proxy may have dropped it: always answer
			s.mark(typeURL, name, c.index)
		}
		return
	}
	in = &interest{answered: have != "", sent: have, at: time.Now()}
	sub.names[name] = in
	key, ready := s.key(typeURL, name)
	if !ready {
		return
	}
	c.attach(s, in, key)
	if have != "" && have == in.entry.version {
		in.acked = in.entry.seq
		return
	}
	s.mark(typeURL, name, c.index)
}

// allTablesOf reports whether a name stands for all tables of a gateway.
func allTablesOf(typeURL, name string) (gateway string, all bool) {
	if typeURL != weftpb.GatewayTableType {
		return "", false
	}
	gateway, host, ok := weftpb.ParseGatewayTableName(name)
	return gateway, ok && host == ""
}

// subscribeAll subscribes a stream to the tables that a gateway has and will have.
// have are those that the proxy has: of the ones that are no more it is told.
func (c *Control) subscribeAll(s *stream, sub *subscription, gateway string, have map[string]string) {
	insert(c.catalogue.followers, gateway, s)
	hosts, _ := c.set.Load().GatewayHosts(gateway)
	for _, host := range hosts {
		name := weftpb.GatewayTableName(gateway, host)
		c.subscribeMember(s, sub, name, have[name])
	}
	for name, version := range have {
		if of, _, ok := weftpb.ParseGatewayTableName(name); ok && of == gateway && sub.names[name] == nil {
			c.subscribeMember(s, sub, name, version)
		}
	}
}

func (c *Control) subscribeMember(s *stream, sub *subscription, name, have string) {
	c.subscribe(s, sub, weftpb.GatewayTableType, name, have)
	sub.names[name].member = true
}

// gatewayChanged lets the streams that follow a gateway know of tables that came,
// and adds to affected the entries of those that are others.
func (c *Control) gatewayChanged(t resource.HostOfGateway, affected map[*entry]struct{}) {
	for gateway, streams := range c.catalogue.followers {
		if !resource.SameGateway(gateway, t.Gateway) {
			continue
		}
		name := weftpb.GatewayTableName(gateway, t.Host)
		exists := c.set.Load().HasGatewayTable(gateway, t.Host)
		for s := range streams {
			sub := s.types[weftpb.GatewayTableType]
			switch in := sub.names[name]; {
			case in != nil:
				affected[in.entry] = struct{}{}
			case exists:
				c.subscribeMember(s, sub, name, "")
				s.wake()
			}
		}
	}
}

// key is what a name means for this proxy. It is not ready when the answer is not
// known yet: which policies a sidecar has to enforce depends on its instance.
func (s *stream) key(typeURL, name string) (key entryKey, ready bool) {
	key = entryKey{typeURL: typeURL, name: name}
	switch typeURL {
	case weftpb.ServiceType, weftpb.GatewayTableType:
		key.scope = s.namespace
	case weftpb.AuthorizationType:
		if s.proxy.workload == nil {
			return key, false
		}
		key.scope = workloadScope(s.proxy.workload.service, s.proxy.workload.labels)
	}
	return key, true
}

// attach connects an interest with its entry, which is compiled if nobody had it.
func (c *Control) attach(s *stream, in *interest, key entryKey) {
	e := c.catalogue.entries[key]
	if e == nil {
		e = &entry{key: key, seq: 1, index: c.indexOf(key), streams: make(map[*stream]struct{})}
		c.catalogue.add(e)
		c.refresh(e)
	}
	e.streams[s] = struct{}{}
	in.entry = e
	in.acked = 0
}

// detach ends a stream's part in an entry (nil: it had none). What nobody wants
// is dropped.
func (c *Control) detach(s *stream, e *entry) {
	if e == nil {
		return
	}
	delete(e.streams, s)
	c.ackMoved(e)
	if len(e.streams) == 0 {
		c.catalogue.drop(e)
	}
}

func (c *Control) unsubscribeName(s *stream, sub *subscription, name string) {
	if gateway, all := allTablesOf(weftpb.GatewayTableType, name); all && sub == s.types[weftpb.GatewayTableType] {
		remove(c.catalogue.followers, gateway, s)
		for member, in := range sub.names {
			if in.member {
				c.unsubscribeName(s, sub, member)
			}
		}
		return
	}
	if in := sub.names[name]; in != nil {
		c.detach(s, in.entry)
		delete(sub.names, name)
		delete(sub.pending, name)
	}
}

// leave takes a stream that has ended out of everything.
func (c *Control) leave(s *stream) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.depart(s)
	for _, sub := range s.types {
		for _, in := range sub.names {
			c.detach(s, in.entry)
		}
	}
	for gateway := range c.catalogue.followers {
		remove(c.catalogue.followers, gateway, s)
	}
	delete(s.proxy.streams, s)
	c.forgetProxy(s.proxy)
	c.settle()
}

// settle tells those who wait for proxies to look again.
func (c *Control) settle() {
	if c.settled != nil {
		close(c.settled)
		c.settled = nil
	}
}

// next makes the next response, or returns nil when there is nothing to send now.
func (c *Control) next(s *stream) *discovery.DeltaDiscoveryResponse {
	c.mu.Lock()
	defer c.mu.Unlock()
	clean, held, tables := true, false, false
	for _, typeURL := range typeOrder {
		sub := s.types[typeURL]
		if sub == nil {
			continue
		}
		pointing := typeURL == weftpb.RouteTableType || typeURL == weftpb.GatewayTableType
		if sub.flight == nil && !(pointing && held) && !(typeURL == weftpb.GatewayType && tables) {
			if r := c.respond(s, typeURL, sub); r != nil {
				r.SystemVersionInfo = strconv.FormatUint(c.index, 10)
				return r
			}
		}
		if len(sub.pending) > 0 || sub.flight != nil {
			clean = false
		}
		// A route table must not overtake the services that it has come to point to.
		if len(sub.pending) > 0 && (typeURL == weftpb.ServiceType || typeURL == weftpb.EndpointsType) {
			held = true
		}
		// A Gateway says that its tables have come.
		if len(sub.pending) > 0 && typeURL == weftpb.GatewayTableType {
			tables = true
		}
	}
	s.clean = clean
	c.settle() // what was changed back counts as applied
	return nil
}

// respond makes a response of one type of what is pending, or returns nil when
// nothing of it has to be sent.
func (c *Control) respond(s *stream, typeURL string, sub *subscription) *discovery.DeltaDiscoveryResponse {
	r := &discovery.DeltaDiscoveryResponse{TypeUrl: typeURL}
	sent := make(map[string]shipment)
	size := 0
	for name := range sub.pending {
		in := sub.names[name]
		if len(sent) >= maxResponseNames || size >= maxResponseBytes {
			break
		}
		delete(sub.pending, name)
		if in.answered && !in.force && in.sent == in.entry.version {
			in.acked, in.changed = max(in.acked, in.entry.seq), time.Time{} // changed, and changed back
			c.ackMoved(in.entry)
			continue
		}
		if in.entry.resource != nil {
			r.Resources = append(r.Resources, in.entry.resource)
			size += len(in.entry.resource.GetResource().GetValue())
		} else {
			r.RemovedResources = append(r.RemovedResources, name)
		}
		in.answered, in.force, in.sent = true, false, in.entry.version
		sent[name] = shipment{in.entry.seq, in.entry.index, in.changed}
		in.changed = time.Time{}
	}
	if len(sent) == 0 {
		return nil
	}
	s.nonce++
	r.Nonce = strconv.FormatUint(s.nonce, 10)
	sub.flight = &flight{nonce: r.Nonce, since: time.Now(), sent: sent}
	return r
}

// stalled says why the stream must end: a response was not acknowledged in time.
func (c *Control) stalled(s *stream) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for typeURL, sub := range s.types {
		if sub.flight == nil || time.Since(sub.flight.since) < c.patience.ack {
			continue
		}
		return status.Errorf(codes.DeadlineExceeded, "%s response %s was not acknowledged within %v, with %d changes waiting behind it",
			kindOf(typeURL), sub.flight.nonce, c.patience.ack, len(sub.pending))
	}
	return nil
}

// applied is the index up to which the proxy has everything that it is subscribed to.
func (s *stream) applied(current uint64) uint64 {
	if s.clean {
		return current
	}
	return s.behind
}

// has is the index of the newest change that a proxy has of an entry.
func (in *interest) has() uint64 {
	if in.entry != nil && in.refused == "" && in.acked >= in.entry.seq {
		return in.entry.index // nothing came since that changes anything for it
	}
	return in.index
}

// refusals says of the names of a response that were refused why. A reason that names
// none of them is about all.
func refusals(f *flight, detail *rpcstatus.Status) map[string]string {
	if detail == nil {
		return nil
	}
	reason := detail.GetMessage()
	all, some := make(map[string]string, len(f.sent)), make(map[string]string)
	for name := range f.sent {
		all[name] = clippedNack(reason)
		if strings.Contains(reason, name+": ") {
			some[name] = all[name]
		}
	}
	if len(some) > 0 {
		return some
	}
	return all
}

func clippedNack(reason string) string {
	if reason == "" {
		return "it did not say why"
	}
	if len(reason) > maxNackLength {
		return strings.ToValidUTF8(reason[:maxNackLength], "") + "…"
	}
	return reason
}

// rescope moves the Authorization of a proxy's streams to the workload that it
// has now.
func (c *Control) rescope(p *proxy) {
	for s := range p.streams {
		sub := s.types[weftpb.AuthorizationType]
		if sub == nil {
			continue
		}
		for name, in := range sub.names {
			key, ready := s.key(weftpb.AuthorizationType, name)
			if !ready || in.entry != nil && in.entry.key == key {
				continue
			}
			old := in.entry
			c.attach(s, in, key)
			c.detach(s, old)
			s.mark(weftpb.AuthorizationType, name, c.index)
		}
		s.wake()
	}
}
