package subscribe

import (
	"crypto/x509"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/control/weftpb"
)

// told is a state with the server's side written by hand.
type told struct {
	*state
	t    testing.TB
	last *published
}

func newTold(t *testing.T, role Role) *told {
	return &told{state: newState(role, "default", "edge"), t: t}
}

func resourceOf(t testing.TB, name, version string, m proto.Message) *discovery.Resource {
	t.Helper()
	body, err := weftpb.Pack(m)
	if err != nil {
		t.Fatal(err)
	}
	return &discovery.Resource{Name: name, Version: version, Resource: body}
}

func (s *told) tell(typeURL string, removed []string, resources ...*discovery.Resource) refusals {
	s.t.Helper()
	return s.take(&discovery.DeltaDiscoveryResponse{TypeUrl: typeURL, Resources: resources, RemovedResources: removed},
		func(string, []*x509.Certificate) error { return nil })
}

// table tells of a host whose requests go to a service.
func (s *told) table(host, version, service string) refusals {
	return s.tell(weftpb.RouteTableType, nil, resourceOf(s.t, "default/"+host, version, tableTo(host, service, "")))
}

func tableTo(host, service, subset string) *weftpb.RouteTable {
	return &weftpb.RouteTable{Host: host, Rules: []*weftpb.Rule{{Name: "r", Destinations: []*weftpb.Destination{
		{Service: &weftpb.ServiceName{Namespace: "default", Name: service}, Subset: subset, Weight: 1}}}}}
}

// service tells of a service with one endpoint.
func (s *told) service(name string) {
	s.tell(weftpb.ServiceType, nil, resourceOf(s.t, "default/"+name, "s", weftpb.EncodeService(&weft.Service{Name: weft.NewServiceName("", name)})))
	s.endpoint(name, "10.0.0.1:80")
}

func (s *told) endpoint(name, address string) {
	s.tell(weftpb.EndpointsType, nil, resourceOf(s.t, "default/"+name, address,
		weftpb.EncodeEndpoints(weft.NewServiceName("", name), []weft.Endpoint{{ID: "n/" + name, Address: address, Weight: 1}})))
}

func (s *told) snapshot() *weft.Snapshot {
	if next := s.build(s.last); next != nil {
		s.last = next
	}
	return s.last.snapshot
}

func (s *told) route(host string) string {
	d := s.snapshot().Route(&weft.Request{Host: host}, 0)
	if d.Problem != "" {
		return string(d.Problem)
	}
	return d.Destination.Service.Name
}

// asks returns what the next requests would subscribe to and unsubscribe from.
func (s *told) asks() string {
	var out []string
	for _, typeURL := range []string{weftpb.RouteTableType, weftpb.GatewayTableType, weftpb.GatewayType, weftpb.ServiceType, weftpb.EndpointsType} {
		n := s.namesOf(typeURL)
		for _, name := range keys(n.subscribe) {
			out = append(out, "+"+name)
		}
		for _, name := range keys(n.unsubscribe) {
			out = append(out, "-"+name)
		}
		clear(n.subscribe)
		clear(n.unsubscribe)
	}
	return strings.Join(out, " ")
}

func TestATableWaitsForItsServices(t *testing.T) {
	s := newTold(t, Sidecar)
	s.want("order", time.Unix(1, 0))
	if got := s.asks(); got != "+default/order" {
		t.Errorf("asks %q", got)
	}
	s.table("order", "1", "order-v1")
	if got := s.asks(); got != "+default/order-v1 +default/order-v1" {
		t.Errorf("asks %q for the service and its endpoints", got)
	}
	if got := s.route("order"); got != string(weft.NotLoaded) {
		t.Errorf("without its service: %s", got)
	}
	s.service("order-v1")
	if got := s.route("order"); got != "order-v1" {
		t.Errorf("with its service: %s", got)
	}

	// The next table points elsewhere: the old one goes on until that is there.
	s.table("order", "2", "order-v2")
	if got := s.route("order"); got != "order-v1" {
		t.Errorf("while the new service is not there: %s", got)
	}
	if got := s.asks(); got != "+default/order-v2 +default/order-v2" {
		t.Errorf("asks %q", got)
	}
	s.service("order-v2")
	if got := s.route("order"); got != "order-v2" {
		t.Errorf("with the new service: %s", got)
	}
	if got := s.asks(); got != "-default/order-v1 -default/order-v1" {
		t.Errorf("asks %q: the old service is of no use any more", got)
	}
	if s.snapshot().Services[weft.NewServiceName("", "order-v1")] != nil {
		t.Error("the old service is still in the snapshot")
	}
}

func TestAServiceThatDoesNotExistIsAnAnswerToo(t *testing.T) {
	s := newTold(t, Sidecar)
	s.want("order", time.Unix(1, 0))
	s.table("order", "1", "order")
	s.tell(weftpb.ServiceType, []string{"default/order"})
	s.tell(weftpb.EndpointsType, []string{"default/order"})
	if got := s.route("order"); got != string(weft.NoService) {
		t.Errorf("got %s", got)
	}
	s.service("order")
	if got := s.route("order"); got != "order" {
		t.Errorf("after it came: %s", got)
	}
	s.tell(weftpb.RouteTableType, []string{"default/order"})
	if got := s.route("order"); got != string(weft.NoHost) {
		t.Errorf("after the host went: %s", got)
	}
}

// fallsBack tells of a service that falls back to another.
func (s *told) fallsBack(name, version, to string) {
	s.tell(weftpb.ServiceType, nil, resourceOf(s.t, "default/"+name, version, weftpb.EncodeService(&weft.Service{
		Name: weft.NewServiceName("", name), Resilience: fallbackTo(to)})))
}

func fallbackTo(service string) *weft.Resilience {
	return &weft.Resilience{Spec: fmt.Appendf(nil, `{"fallback":{"service":%q}}`, service)}
}

func TestAServiceComesWithItsFallback(t *testing.T) {
	s := newTold(t, Sidecar)
	s.want("order", time.Unix(1, 0))
	s.table("order", "1", "order")
	s.asks()
	s.fallsBack("order", "1", "spare")
	s.endpoint("order", "10.0.0.1:80")
	if got := s.asks(); got != "+default/spare +default/spare" {
		t.Errorf("asks %q for the fallback and its endpoints", got)
	}
	if got := s.route("order"); got != string(weft.NotLoaded) {
		t.Errorf("without its fallback: %s", got)
	}
	s.fallsBack("spare", "1", "cart") // that is for those who call spare
	s.endpoint("spare", "10.0.0.2:80")
	if got := s.route("order"); got != "order" || s.snapshot().Services[weft.NewServiceName("", "spare")] == nil {
		t.Errorf("with its fallback: %s", got)
	}
	if got := s.asks(); got != "" {
		t.Errorf("asks %q: a fallback has none", got)
	}
	s.fallsBack("order", "2", "other")
	if got := s.asks(); got != "+default/other -default/spare +default/other -default/spare" {
		t.Errorf("asks %q", got)
	}
	if got := s.route("order"); got != "order" {
		t.Errorf("while the new fallback is not there: %s", got)
	}
	s.tell(weftpb.RouteTableType, []string{"default/order"})
	if got := s.asks(); got != "-default/order -default/other -default/order -default/other" {
		t.Errorf("asks %q: what is not called needs no fallback", got)
	}
}

func TestServicesThatFallBackToEachOtherAreGivenUp(t *testing.T) {
	s := newTold(t, Sidecar)
	for _, pair := range [][2]string{{"a", "b"}, {"b", "a"}, {"c", "c"}} {
		s.want(pair[0], time.Unix(1, 0))
		s.table(pair[0], "1", pair[0])
		s.fallsBack(pair[0], "1", pair[1])
		s.endpoint(pair[0], "10.0.0.1:80")
	}
	for _, name := range []string{"a", "b", "c"} {
		if got := s.route(name); got != name {
			t.Errorf("%s goes to %s", name, got)
		}
	}
	s.tell(weftpb.RouteTableType, []string{"default/a"})
	if s.snapshot().Services[weft.NewServiceName("", "a")] == nil {
		t.Error("a is not called any more, but b falls back to it")
	}
	s.tell(weftpb.RouteTableType, []string{"default/b", "default/c"})
	if n := len(s.snapshot().Services); n != 0 {
		t.Errorf("%d services are kept", n)
	}
}

func TestARuleComesWithItsFallback(t *testing.T) {
	s := newTold(t, Sidecar)
	s.want("order", time.Unix(1, 0))
	table := tableTo("order", "order", "")
	table.Rules[0].Resilience = &weftpb.Resilience{Spec: fallbackTo("spare.shop").Spec}
	s.tell(weftpb.RouteTableType, nil, resourceOf(t, "default/order", "1", table))
	if got := s.asks(); got != "+default/order +default/order +shop/spare +default/order +shop/spare" {
		t.Errorf("asks %q", got)
	}
	s.service("order")
	if got := s.route("order"); got != string(weft.NotLoaded) {
		t.Errorf("without its fallback: %s", got)
	}
	s.tell(weftpb.ServiceType, []string{"shop/spare"})
	s.tell(weftpb.EndpointsType, []string{"shop/spare"})
	if got := s.route("order"); got != "order" {
		t.Errorf("with a fallback that does not exist: %s", got)
	}
	s.table("order", "2", "order")
	if got := s.asks(); got != "-shop/spare -shop/spare" {
		t.Errorf("asks %q", got)
	}
}

func TestWhatDidNotChangeIsShared(t *testing.T) {
	s := newTold(t, Sidecar)
	for _, name := range []string{"order", "user"} {
		s.want(name, time.Unix(1, 0))
		s.table(name, "1", name)
		s.service(name)
	}
	before := s.snapshot()
	s.endpoint("user", "10.0.0.2:80")
	after := s.snapshot()
	order, user := weft.NewServiceName("", "order"), weft.NewServiceName("", "user")
	if after.Version != before.Version+1 {
		t.Errorf("version %d after %d", after.Version, before.Version)
	}
	if after.Services[order] != before.Services[order] {
		t.Error("a service that did not change is another value")
	}
	if after.Services[user] == before.Services[user] || before.Services[user].Endpoints[0].Address != "10.0.0.1:80" {
		t.Error("a published service was changed in place")
	}
	s.tell(weftpb.EndpointsType, nil)
	if s.snapshot() != after {
		t.Error("a response that changes nothing makes a new snapshot")
	}
}

func TestUnreadableResourcesAreRefusedAlone(t *testing.T) {
	s := newTold(t, Sidecar)
	for _, name := range []string{"order", "user", "cart"} {
		s.want(name, time.Unix(1, 0))
	}
	s.table("order", "1", "order")
	s.service("order")
	bad := func(name string) *discovery.Resource {
		m := tableTo(name, name, "")
		m.Rules[0].Matches = []*weftpb.Match{{Path: &weftpb.StringMatch{Kind: weftpb.StringMatch_REGEX, Value: "("}}}
		return resourceOf(t, "default/"+name, "2", m)
	}
	refused := s.tell(weftpb.RouteTableType, nil, bad("order"), resourceOf(t, "default/user", "1", tableTo("user", "user", "")), bad("cart"))
	if len(refused) != 2 || !strings.Contains(refused.reason(), "default/order: ") || !strings.Contains(refused.reason(), "default/cart: ") {
		t.Errorf("refused %q", refused)
	}
	s.service("user")
	if got := s.route("order"); got != "order" {
		t.Errorf("the last good table is gone: %s", got)
	}
	if got := s.route("user"); got != "user" {
		t.Errorf("the good table of the same response is not used: %s", got)
	}
	if got := s.route("cart"); got != string(weft.NotLoaded) || !s.hopeless("cart") {
		t.Errorf("a host of which nothing readable came: %s, and whoever waits for it: %v", got, s.hopeless("cart"))
	}
	if v := s.versionOf(weftpb.RouteTableType, "default/order"); v != "1" {
		t.Errorf("the version that is told on reconnect is %q: the refused one would never be sent again", v)
	}
	s.table("cart", "3", "order")
	if got := s.route("cart"); got != "order" || s.hopeless("cart") {
		t.Errorf("after a readable one came: %s", got)
	}
	wrong := s.tell(weftpb.EndpointsType, nil, resourceOf(t, "default/order", "9", weftpb.EncodeEndpoints(weft.NewServiceName("", "user"), nil)))
	if len(wrong) != 1 {
		t.Error("endpoints of another service than their name says are accepted")
	}
}

func TestAuthorizationDeniesUntilItIsTold(t *testing.T) {
	s := newTold(t, Sidecar)
	ask := &weft.AuthorizationRequest{Request: &weft.Request{Method: "GET", Path: "/"}}
	if s.snapshot().Authorization.Decide(ask).Allowed {
		t.Error("allowed before anything is known")
	}
	s.tell(weftpb.AuthorizationType, []string{weftpb.Self})
	if s.snapshot().Authorization.Decide(ask).Allowed {
		t.Error("allowed because the server says that there is no authorization")
	}
	unknown := &weftpb.Authorization{Policies: []*weftpb.AuthorizationPolicy{{Action: 17}}}
	if len(s.tell(weftpb.AuthorizationType, nil, resourceOf(t, weftpb.Self, "1", unknown))) != 1 || s.snapshot().Authorization.Decide(ask).Allowed {
		t.Error("allowed by a policy that cannot be read")
	}
	s.tell(weftpb.AuthorizationType, nil, resourceOf(t, weftpb.Self, "2", &weftpb.Authorization{}))
	if !s.snapshot().Authorization.Decide(ask).Allowed {
		t.Error("denied though no policy applies")
	}
}

// edge tells of tables of the gateway: "order" leads order.example.com to the service
// order, "user/v1" to a subset; "-order" is that there is no table any more.
func (s *told) edge(destinations ...string) refusals {
	s.t.Helper()
	var resources []*discovery.Resource
	var removed []string
	for _, d := range destinations {
		name, subset, _ := strings.Cut(d, "/")
		if gone, ok := strings.CutPrefix(name, "-"); ok {
			removed = append(removed, "edge/"+gone+".example.com")
			continue
		}
		m := &weftpb.GatewayTable{Table: tableTo(name+".example.com", name, subset)}
		resources = append(resources, resourceOf(s.t, "edge/"+name+".example.com", d, m))
	}
	return s.tell(weftpb.GatewayTableType, removed, resources...)
}

func (s *told) gatewayExists() {
	s.tell(weftpb.GatewayType, nil, resourceOf(s.t, "edge", "1", &weftpb.Gateway{Name: "edge"}))
}

func TestGatewayAsksForEverythingItLeadsTo(t *testing.T) {
	s := newTold(t, Gateway)
	if got := s.asks(); got != "+edge/ +edge" {
		t.Errorf("asks %q", got)
	}
	s.edge("order", "user/v1")
	if got := s.asks(); got != "+default/order.default.svc.cluster.local +default/order +default/user +default/order +default/user" {
		t.Errorf("asks %q: a destination with a subset needs no rules of its own", got)
	}
	s.service("order")
	s.service("user")
	s.table("order.default.svc.cluster.local", "1", "order-canary")
	s.gatewayExists()
	if s.snapshot().Gateway != nil {
		t.Error("the gateway is taken up before the rules of order are there")
	}
	s.service("order-canary")
	if got := s.route("order.example.com"); got != "order-canary" {
		t.Errorf("order.example.com goes to %s", got)
	}
	s.asks()
	s.edge("-order")
	if got := s.route("order.example.com"); got != string(weft.NoHost) {
		t.Errorf("a table that went: %s", got)
	}
	if got := s.asks(); got != "-default/order.default.svc.cluster.local -default/order -default/order-canary -default/order -default/order-canary" {
		t.Errorf("asks %q", got)
	}
	s.edge("-user")
	s.tell(weftpb.GatewayType, []string{"edge"})
	if got := s.route("user.example.com"); got != string(weft.NoHost) {
		t.Errorf("without a Gateway resource: %s", got)
	}
}

func TestAGatewayIsAskedForAfterItsTables(t *testing.T) {
	types := newTold(t, Gateway).types()
	if tables, gateway := slices.Index(types, weftpb.GatewayTableType), slices.Index(types, weftpb.GatewayType); tables < 0 || gateway < tables {
		t.Errorf("it asks for %v", types)
	}
}

func TestGatewayTablesChangeOneByOne(t *testing.T) {
	s := newTold(t, Gateway)
	s.gatewayExists()
	if g := s.snapshot().Gateway; g == nil || s.route("order.example.com") != string(weft.NoHost) {
		t.Errorf("a gateway without tables: %+v", g)
	}
	s.edge("order/v1", "user/v1")
	s.service("user")
	if got := s.route("user.example.com"); got != string(weft.NoSubset) {
		t.Errorf("a table whose service is there waits for another's: %s", got)
	}
	if got := s.route("order.example.com"); got != string(weft.NoHost) {
		t.Errorf("a table without its service: %s", got)
	}
	s.service("order")
	if got := s.route("order.example.com"); got != string(weft.NoSubset) {
		t.Errorf("with its service: %s", got)
	}
	s.asks()
	// Two changes before the services of the first are there.
	moved := func(version, service string) {
		s.tell(weftpb.GatewayTableType, nil, resourceOf(t, "edge/user.example.com", version, &weftpb.GatewayTable{Table: tableTo("user.example.com", service, "")}))
	}
	before := s.snapshot()
	moved("2", "a")
	moved("3", "b")
	if got := s.asks(); got != "+default/b.default.svc.cluster.local -default/a.default.svc.cluster.local +default/b -default/a +default/b -default/a" {
		t.Errorf("asks %q", got)
	}
	if s.snapshot() != before {
		t.Error("what waits makes a new snapshot")
	}
	s.table("b.default.svc.cluster.local", "1", "b")
	s.service("b")
	if got := s.route("user.example.com"); got != "b" {
		t.Errorf("after the change: %s", got)
	}
	if got := s.asks(); got != "-default/user -default/user" {
		t.Errorf("asks %q: nothing leads to user any more", got)
	}
	if v := s.versionOf(weftpb.GatewayTableType, "edge/user.example.com"); v != "3" || len(s.held(weftpb.GatewayTableType, "edge/")) != 2 {
		t.Errorf("on reconnect it would tell of version %q", v)
	}
	if bad := s.tell(weftpb.GatewayTableType, nil, resourceOf(t, "edge/user.example.com", "4", &weftpb.GatewayTable{Table: tableTo("other", "b", "")})); len(bad) != 1 {
		t.Error("a table of another host than its name says is accepted")
	}
	s.tell(weftpb.GatewayTableType, nil, resourceOf(t, "other/x", "1", &weftpb.GatewayTable{Table: tableTo("x", "b", "")}))
	if got := s.route("x"); got != string(weft.NoHost) {
		t.Errorf("a table of another gateway is used: %s", got)
	}
}

func TestMadeUpHostsDoNotGrow(t *testing.T) {
	s := newTold(t, Sidecar)
	s.want("order", time.Unix(0, 0))
	s.table("order", "1", "order")
	s.service("order")
	for i := range 3 * maxUnknown {
		host := fmt.Sprintf("host-%d", i)
		s.want(host, time.Unix(int64(i), 0))
		switch i % 3 {
		case 0: // not answered
		case 1:
			s.tell(weftpb.RouteTableType, []string{"default/" + host})
		case 2:
			s.want("NOT A HOST "+host, time.Unix(int64(i), 0))
		}
	}
	if len(s.unknown) != maxUnknown || len(s.hosts) != maxUnknown+1 {
		t.Errorf("%d unknown hosts, %d in all", len(s.unknown), len(s.hosts))
	}
	if n := len(s.namesOf(weftpb.RouteTableType).all); n > maxUnknown+1 {
		t.Errorf("%d subscriptions", n)
	}
	if got := s.route("order"); got != "order" {
		t.Errorf("a host that exists had to make room: %s", got)
	}
	if got := s.route(fmt.Sprintf("host-%d", 3*maxUnknown-2)); got != string(weft.NoHost) {
		t.Errorf("the newest unknown host: %s", got)
	}
	if s.hosts["host-1"] != nil {
		t.Error("the oldest unknown host is still there")
	}
	if got := s.route("NOT A HOST " + fmt.Sprintf("host-%d", 3*maxUnknown-1)); got != string(weft.NoHost) {
		t.Errorf("what cannot be a host: %s", got)
	}
}

func TestHostsThatExistAreBounded(t *testing.T) {
	s := newTold(t, Sidecar)
	// One response of many tables to one service: quicker than one by one.
	const extra = 5
	var resources []*discovery.Resource
	for i := range maxHosts + extra {
		name := fmt.Sprintf("h%d", i)
		h := &host{name: name}
		h.asked.Store(int64(i))
		s.hosts[name] = h
		s.namesOf(weftpb.RouteTableType).all["default/"+name] = struct{}{}
		resources = append(resources, resourceOf(t, "default/"+name, "1", tableTo(name, "order", "")))
	}
	s.tell(weftpb.RouteTableType, nil, resources...)
	for range extra {
		s.table("h7777", "2", "order")
	}
	if len(s.hosts) != maxHosts {
		t.Errorf("%d hosts", len(s.hosts))
	}
	if s.hosts["h0"] != nil || s.hosts[fmt.Sprintf("h%d", maxHosts+extra-1)] == nil {
		t.Error("not the least recently asked for has gone")
	}
}

func TestForgetting(t *testing.T) {
	begin := time.Unix(1_000_000, 0)
	later := begin.Add(forgetAfter + time.Second)
	s := newTold(t, Sidecar)
	for i := range keepAlways + 2 {
		name := fmt.Sprintf("order-%d", i)
		s.want(name, begin)
		s.table(name, "1", name)
		s.service(name)
	}
	s.want("nobody", begin)
	s.tell(weftpb.RouteTableType, []string{"default/nobody"})
	s.hosts["order-0"].touch(later)
	s.snapshot()
	s.asks()
	if s.forget(begin.Add(forgetAfter)) {
		t.Error("something was forgotten too early")
	}
	if !s.forget(later) {
		t.Error("nothing was forgotten")
	}
	if len(s.hosts) != keepAlways || s.hosts["nobody"] != nil || s.hosts["order-0"] == nil {
		t.Errorf("%d hosts are left, with nobody: %v, with what was just asked for: %v", len(s.hosts), s.hosts["nobody"] != nil, s.hosts["order-0"] != nil)
	}
	if got := strings.Count(s.asks(), "-default/order-"); got != 3*2 {
		t.Errorf("%d names are given up; want a table, a service and its endpoints of two", got)
	}
	if s.forget(later) {
		t.Error("the last few are forgotten, too")
	}
}
