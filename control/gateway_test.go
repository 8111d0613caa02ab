package control_test

import (
	"fmt"
	"strings"
	"testing"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/control"
	"github.com/weftmesh/weft/control/controltest"
	"github.com/weftmesh/weft/control/resource"
	"github.com/weftmesh/weft/control/weftpb"
)

const edge = `
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: edge}
spec:
  servers:
    - {port: {number: 80, protocol: HTTP}, hosts: ["*"]}
    - {port: {number: 5432, protocol: TCP}, hosts: ["*"]}
---
`

// atEdge routes <name>.example.com at the gateway to a service.
func atEdge(name, service string) string {
	return fmt.Sprintf(`
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: %s}
spec:
  hosts: [%s.example.com]
  gateways: [edge]
  http: [{route: [{destination: {host: %s}}]}]
---
`, name, name, service)
}

func TestAGatewaysTablesAreSentOneByOne(t *testing.T) {
	for _, gateway := range []string{"edge", "default/edge"} {
		t.Run(gateway, func(t *testing.T) {
			s := controltest.Start(t, controltest.Config{})
			s.Instance("order", "v1", 8001)
			w := openWire(t, s, "a")
			w.subscribe(weftpb.GatewayTableType, gateway+"/")
			w.subscribe(weftpb.GatewayType, gateway)
			wantBrief(t, w.take(), "Gateway -"+gateway)

			table := func(names ...string) string {
				for i, name := range names {
					names[i] = name[:1] + gateway + "/" + name[1:]
				}
				return "GatewayTable " + strings.Join(names, " ")
			}
			s.Apply(edge + atEdge("a", "order") + atEdge("b", "order"))
			wantBrief(t, w.take(), table("+a.example.com", "+b.example.com"))
			wantBrief(t, w.take(), "Gateway +"+gateway)
			s.Apply(atEdge("b", "user"))
			wantBrief(t, w.take(), table("+b.example.com"))
			s.Apply(atEdge("c", "order"))
			wantBrief(t, w.take(), table("+c.example.com"))
			s.Instance("user", "v1", 8002) // b leads somewhere now
			wantBrief(t, w.take(), table("+b.example.com"))
			s.Apply(virtualService("order", "order", "v1")) // for sidecars
			w.silence("a")
			if _, err := s.Control.Delete(t.Context(), "VirtualService", "default", "a"); err != nil {
				t.Fatal(err)
			}
			wantBrief(t, w.take(), table("-a.example.com"))
			s.Apply(atEdge("a", "order"))
			wantBrief(t, w.take(), table("+a.example.com"))
			if _, err := s.Control.Delete(t.Context(), "Gateway", "default", "edge"); err != nil {
				t.Fatal(err)
			}
			wantBrief(t, w.take(), table("-a.example.com", "-b.example.com", "-c.example.com"))
			wantBrief(t, w.take(), "Gateway -"+gateway)
			w.send(&discovery.DeltaDiscoveryRequest{TypeUrl: weftpb.GatewayTableType, ResourceNamesUnsubscribe: []string{gateway + "/"}})
			w.silence("c") // it has been read
			s.Apply(edge)
			wantBrief(t, w.take(), "Gateway +"+gateway)
			w.silence("b")
		})
	}
}

func TestAGatewayIsSentAfterItsTables(t *testing.T) {
	s := controltest.Start(t, controltest.Config{})
	s.Instance("order", "v1", 8001)
	s.Apply(edge + atEdge("a", "order"))
	w := openWire(t, s, "a")
	w.subscribe(weftpb.GatewayTableType, "edge/")
	first := w.recv() // not acknowledged: the next tables have to wait
	s.Apply(atEdge("b", "order"))
	w.subscribe(weftpb.GatewayType, "edge")
	w.silence("x")
	w.ack(first)
	wantBrief(t, w.take(), "GatewayTable +edge/b.example.com")
	wantBrief(t, w.take(), "Gateway +edge")
}

func TestAGatewayThatComesBackIsToldOfTablesThatWent(t *testing.T) {
	s := controltest.Start(t, controltest.Config{})
	s.Instance("order", "v1", 8001)
	s.Apply(edge + atEdge("a", "order") + atEdge("b", "order") + atEdge("c", "order"))
	w := openWire(t, s, "a")
	w.subscribe(weftpb.GatewayTableType, "edge/")
	have := map[string]string{}
	for _, r := range w.take().GetResources() {
		have[r.GetName()] = r.GetVersion()
	}
	w.end()
	if _, err := s.Control.Delete(t.Context(), "VirtualService", "default", "a"); err != nil {
		t.Fatal(err)
	}
	s.Apply(atEdge("b", "user") + atEdge("d", "order"))
	s.Restart()
	again := openWire(t, s, "a")
	again.send(&discovery.DeltaDiscoveryRequest{TypeUrl: weftpb.GatewayTableType, InitialResourceVersions: have, ResourceNamesSubscribe: []string{"edge/"}})
	wantBrief(t, again.take(), "GatewayTable +edge/b.example.com +edge/d.example.com -edge/a.example.com")
	again.silence("a")
	s.Apply(atEdge("a", "order"))
	wantBrief(t, again.take(), "GatewayTable +edge/a.example.com")
}

const tcpToDatabase = `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: database}
spec:
  hosts: [database]
  gateways: [edge, mesh]
  tcp:
    - match: [{port: 5433}]
      route: [{destination: {host: replica}}]
    - match: [{port: 5432}]
      route: [{destination: {host: database}}]
`

func TestConnectionsAreRouted(t *testing.T) {
	s := controltest.Start(t, controltest.Config{})
	s.Instance("database", "v1", 5432)
	s.Apply(edge + tcpToDatabase)
	mesh := s.Control.Mesh("default", "database")
	if d := mesh.RouteTCP("database", 5432, 0); d.Problem != "" || d.Raw.Name != "tcp[1]" || len(d.Service.Endpoints) != 1 {
		t.Errorf("by its rule: %+v", d)
	}
	if d := mesh.RouteTCP("database", 1, 0); d.Problem != "" || d.Raw.Name != "default" {
		t.Errorf("no rule is for the port: the service itself, not %+v", d)
	}
	if d := mesh.RouteTCP("database", 5433, 0); d.Problem != weft.NoService || d.Destination.Unresolved != "service replica.default does not exist" {
		t.Errorf("to a service that does not exist: %+v", d)
	}
	if d := mesh.Route(&weft.Request{Host: "database", Path: "/"}, 0); d.Problem != "" || d.Rule.Name != "default" {
		t.Errorf("a VirtualService without http rules says nothing of requests: %+v", d)
	}
	if d, ok := s.Control.GatewaySnapshot("edge").RouteGatewayTCP(5432, 0); !ok || d.Problem != "" || d.Destination.Service.Name != "database" {
		t.Errorf("through the gateway: %+v %v", d, ok)
	}
	s.Instance("replica", "v1", 5432)
	if d := s.Control.Mesh("default", "database").RouteTCP("database", 5433, 0); d.Problem != "" || d.Destination.Unresolved != "" {
		t.Errorf("after the service came: %+v", d)
	}
}

func withPaths(name, mode string) string {
	return strings.Replace(atEdge("one", "order"), "{name: one}", "{name: "+name+", annotations: {weft.dev/path-normalization: "+mode+"}}", 1)
}

func TestApplyRefusesTwoPathModesForOneHost(t *testing.T) {
	s := controltest.Start(t, controltest.Config{})
	s.Instance("order", "v1", 8001)
	s.Apply(edge + withPaths("first", "NONE"))
	files := []resource.File{{Name: "second.yaml", Data: []byte(withPaths("second", "BASE") + atEdge("two", "order"))}}
	_, err := s.Control.Apply(t.Context(), files, control.ApplyOptions{})
	if weft.KindOf(err) != weft.Invalid || !strings.Contains(err.Error(), "second.yaml:4") || !strings.Contains(err.Error(), "test.yaml:") ||
		!strings.Contains(err.Error(), "BASE for the host one.example.com") {
		t.Errorf("refused with %v", err)
	}
	if n := len(s.Control.Resources()); n != 2 {
		t.Errorf("%d resources after a refusal", n)
	}
	r, err := s.Control.Apply(t.Context(), files, control.ApplyOptions{Partial: true})
	if err != nil || len(r.Changes) != 1 || r.Changes[0].Name != "two" || len(r.Problems.Errors()) != 1 {
		t.Errorf("in part: %+v, %v", r, err)
	}
	s.Apply(withPaths("second", "NONE"))
	if got := s.Control.GatewaySnapshot("edge").PathMode("one.example.com"); got != weft.PathNone {
		t.Errorf("paths of one.example.com: %s", got)
	}
	// What contradicts is not only what is new.
	files[0].Data = []byte(withPaths("first", "MERGE_SLASHES"))
	if _, err := s.Control.Apply(t.Context(), files, control.ApplyOptions{DryRun: true}); weft.KindOf(err) != weft.Invalid {
		t.Errorf("the older of the two changes its mind: %v", err)
	}
}
