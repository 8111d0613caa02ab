package subscribe_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/control/controltest"
	"github.com/weftmesh/weft/control/subscribe"
)

const edgeGateway = `
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: edge}
spec: {servers: [{port: {number: 80, protocol: HTTP}, hosts: ["*"]}]}
---
`

// hostRoutes is a VirtualService of a host of its own, with two rules.
func hostRoutes(i, weight int) string {
	return fmt.Sprintf(`
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: route-%d}
spec:
  hosts: [host-%[1]d.example.com]
  gateways: [edge]
  http:
    - match: [{uri: {prefix: /api/v%d/}}]
      route: [{destination: {host: service-%d}, weight: %d}, {destination: {host: service-%d}, weight: %d}]
      timeout: 3s
    - route: [{destination: {host: service-%[3]d}}]
---
`, i, i%7, i%50, weight, (i+1)%50, 100-weight)
}

// oneHost is a VirtualService of one host with n rules.
func oneHost(n, weight int) string {
	var b strings.Builder
	b.WriteString(`
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: all}
spec:
  hosts: [all.example.com]
  gateways: [edge]
  http:
`)
	for i := range n {
		fmt.Fprintf(&b, "    - {match: [{uri: {prefix: /tenant-%d/}}], route: [{destination: {host: service-%d}, weight: %d}, {destination: {host: service-%d}, weight: %d}]}\n",
			i, i%50, weight, (i+1)%50, 100-weight)
	}
	return b.String()
}

// scaled is a server with 50 services and a gateway that follows it.
func scaled(b *testing.B) (*controltest.Server, *subscribe.Client) {
	b.Helper()
	s := controltest.Start(b, controltest.Config{})
	for i := range 50 {
		s.Instance(fmt.Sprintf("service-%d", i), "v1", 8000+i)
	}
	s.Apply(edgeGateway)
	c, err := subscribe.Open(b.Context(), subscribe.Config{Server: s.Address, Token: s.Token, ServiceAccount: "gateway", Role: subscribe.Gateway, GatewayName: "edge"})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { c.Close() })
	return s, c
}

// weightOf asks the snapshot for the weight of the first destination.
func weightOf(s *weft.Snapshot, host, path string) int {
	d := s.Route(&weft.Request{Method: "GET", Host: host, Path: path}, 0)
	if d.Edge == nil || d.Problem != "" {
		return -1
	}
	return int(d.Edge.Destinations[0].Weight)
}

// changes measures from the call of Apply to the snapshot that has the change.
func changes(b *testing.B, s *controltest.Server, c *subscribe.Client, host, path string, change func(weight int) string) {
	b.Helper()
	seen := make(chan int, 1<<16)
	last := -1
	c.OnChange(func(next *weft.Snapshot) {
		if w := weightOf(next, host, path); w != last {
			last = w
			seen <- w
		}
	})
	var applied, visible time.Duration
	n := 0
	for b.Loop() {
		weight := 10 + n%80
		text := change(weight)
		start := time.Now()
		s.Apply(text)
		applied += time.Since(start)
		for w := range seen {
			if w == weight {
				break
			}
		}
		visible += time.Since(start)
		n++
	}
	b.ReportMetric(float64(applied.Microseconds())/float64(n)/1000, "ms/apply")
	b.ReportMetric(float64(visible.Microseconds())/float64(n)/1000, "ms/visible")
}

func BenchmarkChangeOfOneHostOf(b *testing.B) {
	for _, n := range []int{10, 5000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			s, c := scaled(b)
			for from := 0; from < n; from += 100 {
				var text strings.Builder
				for i := from; i < min(from+100, n); i++ {
					text.WriteString(hostRoutes(i, 90))
				}
				s.Apply(text.String())
			}
			changes(b, s, c, "host-7.example.com", "/api/v0/x", func(weight int) string { return hostRoutes(7, weight) })
		})
	}
}

// sharedHost is a VirtualService with ten rules of a host that it shares with others.
func sharedHost(i, weight int) string {
	var b strings.Builder
	fmt.Fprintf(&b, `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: part-%d}
spec:
  hosts: [all.example.com]
  gateways: [edge]
  http:
`, i)
	for k := range 10 {
		fmt.Fprintf(&b, "    - {match: [{uri: {prefix: /tenant-%d/%d/}}], route: [{destination: {host: service-%d}, weight: %d}, {destination: {host: service-%d}, weight: %d}]}\n",
			i, k, i%50, weight, (i+1)%50, 100-weight)
	}
	b.WriteString("---\n")
	return b.String()
}

func BenchmarkChangeOfTenRulesOfAHostOf(b *testing.B) {
	for _, n := range []int{10, 5000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			s, c := scaled(b)
			for from := 0; from < n/10; from += 50 {
				var text strings.Builder
				for i := from; i < min(from+50, n/10); i++ {
					text.WriteString(sharedHost(i, 90))
				}
				s.Apply(text.String())
			}
			changes(b, s, c, "all.example.com", "/tenant-0/7/x", func(weight int) string { return sharedHost(0, weight) })
		})
	}
}

func BenchmarkChangeOfOneRuleOf(b *testing.B) {
	for _, n := range []int{10, 5000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			s, c := scaled(b)
			s.Apply(oneHost(n, 90))
			changes(b, s, c, "all.example.com", "/tenant-7/x", func(weight int) string { return oneHost(n, weight) })
		})
	}
}
