package subscribe

import (
	"fmt"
	"runtime"
	"testing"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/control/weftpb"
)

// edgeRoute is the table of a host with two rules, as the control plane compiles it.
func edgeRoute(i, services int) *weft.RouteTable {
	host := fmt.Sprintf("host-%d.example.com", i)
	to := func(k int) weft.ServiceName { return weft.NewServiceName("", fmt.Sprintf("service-%d", k%services)) }
	rule := func(k int, path string, weights ...uint32) weft.Rule {
		r := weft.Rule{Name: fmt.Sprintf("http[%d]", k), Retry: weft.DefaultRetry, Source: weft.SourceRef{Kind: "VirtualService",
			Namespace: "default", Name: fmt.Sprintf("route-%d", i), File: "routes.yaml", Line: 12 * i, Field: fmt.Sprintf("spec.http[%d]", k)}}
		if path != "" {
			r.Matches = []weft.Match{{Path: &weft.StringMatch{Kind: weft.MatchPrefix, Value: path}}}
		}
		for j, w := range weights {
			r.Destinations = append(r.Destinations, weft.Destination{Service: to(i + j), Weight: w})
		}
		return r
	}
	return &weft.RouteTable{Host: host, Rules: []weft.Rule{rule(0, fmt.Sprintf("/api/v%d/", i%7), 90, 10), rule(1, "", 1)}}
}

// fill tells a gateway of n hosts that lead to so many services, with two endpoints
// each.
func (s *told) fill(n, services int) {
	s.t.Helper()
	var tables, own, named, where []*discovery.Resource
	for i := range n {
		m := weftpb.EncodeGatewayTable(edgeRoute(i, services))
		tables = append(tables, resourceOf(s.t, weftpb.GatewayTableName("edge", m.Table.Host), "1", m))
	}
	for i := range services {
		n := weft.NewServiceName("", fmt.Sprintf("service-%d", i))
		itself := []weft.Destination{{Service: n, Weight: 1}}
		table := &weft.RouteTable{Host: n.Host(), Rules: []weft.Rule{{Name: "default", Retry: weft.DefaultRetry, Destinations: itself}},
			TCP: []weft.RawRule{{Name: "default", Destinations: itself}}}
		own = append(own, resourceOf(s.t, "default/"+n.Host(), "1", weftpb.EncodeRouteTable(table)))
		named = append(named, resourceOf(s.t, weftpb.ServiceResource(n), "1", weftpb.EncodeService(&weft.Service{Name: n})))
		var endpoints []weft.Endpoint
		for k := range 2 {
			endpoints = append(endpoints, weft.Endpoint{ID: fmt.Sprintf("node-1/%s-%d", n.Name, k), Address: fmt.Sprintf("10.0.%d.%d:15006", i%256, k), Weight: 1,
				Identity: weft.NewIdentity("cluster.local", "default", n.Name), Labels: map[string]string{"app": n.Name, "version": "v1"}})
		}
		where = append(where, resourceOf(s.t, weftpb.ServiceResource(n), "1", weftpb.EncodeEndpoints(n, endpoints)))
	}
	s.tell(weftpb.GatewayTableType, nil, tables...)
	s.tell(weftpb.RouteTableType, nil, own...)
	s.tell(weftpb.ServiceType, nil, named...)
	s.tell(weftpb.EndpointsType, nil, where...)
	s.gatewayExists()
	if s.route("host-7.example.com") == string(weft.NotLoaded) || s.snapshot().Gateway == nil {
		s.t.Fatal("the gateway is not complete")
	}
}

// heapOf is what a gateway with n hosts keeps, in bytes.
func heapOf(t testing.TB, n, services int) int64 {
	inUse := func() int64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.GC()
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	before := inUse()
	s := &told{state: newState(Gateway, "default", "edge"), t: t}
	s.fill(n, services)
	after := inUse()
	runtime.KeepAlive(s)
	return after - before
}

// A gateway's memory is bounded by what it routes: 10 KB for a host with rules of
// its own that leads to a service of its own.
func TestMemoryOfAGateway(t *testing.T) {
	const n = 2000
	for _, services := range []int{50, n} {
		if perHost := heapOf(t, n, services) / n; perHost > 10_000 {
			t.Errorf("%d bytes for each of %d hosts that lead to %d services", perHost, n, services)
		} else {
			t.Logf("%d bytes for each of %d hosts that lead to %d services", perHost, n, services)
		}
	}
}

func BenchmarkGatewayOf5000Hosts(b *testing.B) {
	for _, services := range []int{50, 5000} {
		b.Run(fmt.Sprintf("%d services", services), func(b *testing.B) {
			var total int64
			for b.Loop() {
				total += heapOf(b, 5000, services)
			}
			m := weftpb.EncodeGatewayTable(edgeRoute(4321, services))
			body, err := weftpb.Pack(m)
			if err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(float64(total)/float64(b.N)/5000, "heap-bytes/host")
			b.ReportMetric(float64(len(body.Value)), "wire-bytes/host")
		})
	}
}

// What the proxy does for one changed table among 5,000, from the response to the
// snapshot.
func BenchmarkTakeOneTableOf5000(b *testing.B) {
	s := &told{state: newState(Gateway, "default", "edge"), t: b}
	s.fill(5000, 50)
	table := edgeRoute(7, 50)
	var versions [2]*discovery.Resource
	for i := range versions {
		table.Rules[0].Destinations[0].Weight = uint32(90 + i)
		versions[i] = resourceOf(b, weftpb.GatewayTableName("edge", table.Host), fmt.Sprint(i), weftpb.EncodeGatewayTable(table))
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		s.tell(weftpb.GatewayTableType, nil, versions[i%2])
		s.snapshot()
	}
}
