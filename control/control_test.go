package control_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/control"
	"github.com/weftmesh/weft/control/controltest"
	"github.com/weftmesh/weft/control/resource"
	"github.com/weftmesh/weft/store"
)

func controlService(name string) weft.ServiceName { return weft.NewServiceName("", name) }

func apply(t *testing.T, s *controltest.Server, yaml string, o control.ApplyOptions) (control.ApplyResult, error) {
	t.Helper()
	return s.Control.Apply(t.Context(), []resource.File{{Name: "test.yaml", Data: []byte(yaml)}}, o)
}

// actions writes changes as "created VirtualService default/order, …".
func actions(r control.ApplyResult) string {
	var out []string
	for _, c := range r.Changes {
		out = append(out, string(c.Action)+" "+c.Kind+" "+c.Namespace+"/"+c.Name)
	}
	return strings.Join(out, ", ")
}

func TestApply(t *testing.T) {
	s := controltest.Start(t, controltest.Config{})
	both := destinationRule("order", "v1") + virtualService("order", "order", "v1")
	r, err := apply(t, s, both, control.ApplyOptions{DryRun: true})
	if err != nil || actions(r) != "created DestinationRule default/order, created VirtualService default/order" {
		t.Errorf("dry run: %s, %v", actions(r), err)
	}
	if len(s.Control.Resources()) > 0 {
		t.Error("a dry run writes")
	}
	first, err := apply(t, s, both, control.ApplyOptions{})
	if err != nil || actions(first) != actions(r) {
		t.Errorf("applied: %s, %v", actions(first), err)
	}
	if s.Control.Index() < first.Index {
		t.Errorf("applied at %d, compiled up to %d", first.Index, s.Control.Index())
	}
	again, err := apply(t, s, both, control.ApplyOptions{})
	if err != nil || again.Index != first.Index || strings.Count(actions(again), "unchanged") != 2 {
		t.Errorf("the same again: %s at %d, %v", actions(again), again.Index, err)
	}
	// Two revisions in one would show in the index: it is one transaction.
	second, err := apply(t, s, destinationRule("order", "v1", "v2")+virtualService("order", "order", "v2"), control.ApplyOptions{})
	if err != nil || strings.Count(actions(second), "updated") != 2 || second.Index != first.Index+1 {
		t.Errorf("changed: %s at %d after %d, %v", actions(second), second.Index, first.Index, err)
	}
}

func TestApplyIsAllOrNothing(t *testing.T) {
	s := controltest.Start(t, controltest.Config{})
	bad := virtualService("user", "user", "v1") + strings.Replace(virtualService("order", "order", "v1"), "subset:", "subzet:", 1) +
		strings.Replace(virtualService("cart", "cart", "v1"), "hosts:", "hostz:", 1)
	_, err := apply(t, s, bad, control.ApplyOptions{})
	var problems weft.Problems
	if !errors.As(err, &problems) || len(problems.Errors()) < 2 || weft.KindOf(err) != weft.Invalid {
		t.Errorf("got %v, want every problem of both documents", err)
	}
	if len(s.Control.Resources()) > 0 {
		t.Error("the good document was applied")
	}
	r, err := apply(t, s, bad, control.ApplyOptions{Partial: true})
	if err != nil || actions(r) != "created VirtualService default/user" || len(r.Problems.Errors()) < 2 {
		t.Errorf("partial: %s, %v, %v", actions(r), r.Problems, err)
	}
	if got := s.Control.Resources(); len(got) != 1 || got[0].Name != "user" {
		t.Errorf("kept: %v", got)
	}
}

func TestWarningsAreOfWhatIsApplied(t *testing.T) {
	s := controltest.Start(t, controltest.Config{})
	s.Instance("order", "v1", 8001)
	if r := s.Apply(virtualService("order", "order", "v1")); len(r.Problems) != 1 || !strings.Contains(r.Problems[0].String(), "subset v1") {
		t.Errorf("a subset that is not defined: %v", r.Problems)
	}
	if r := s.Apply(virtualService("user", "user", "v1")); len(r.Problems) != 1 || !strings.Contains(r.Problems[0].String(), "service user") {
		t.Errorf("a service that is not known: %v", r.Problems)
	}
	if r := s.Apply(destinationRule("order", "v1") + virtualService("order", "order", "v1")); len(r.Problems) != 0 {
		t.Errorf("with the subset: %v", r.Problems)
	}
}

func TestDelete(t *testing.T) {
	s := controltest.Start(t, controltest.Config{})
	s.Apply(virtualService("order", "order", "v1"))
	if _, err := s.Control.Delete(t.Context(), "VirtualService", "default", "nobody"); weft.KindOf(err) != weft.NotFound {
		t.Errorf("what is not there: %v", err)
	}
	if _, err := s.Control.Delete(t.Context(), "VirtualService", "default", "order"); err != nil {
		t.Error(err)
	}
	if len(s.Control.Resources()) > 0 {
		t.Error("it is still there")
	}
}

func TestResourcesSurviveRestart(t *testing.T) {
	s := controltest.Start(t, controltest.Config{})
	s.Instance("order", "v1", 8001)
	s.Apply(destinationRule("order", "v1") + virtualService("order", "order", "v1"))
	before := s.Control.Mesh("default", "order")
	roots := s.CA.Roots()[0]
	s.Restart()
	after := s.Control.Mesh("default", "order")
	if got, want := after.Hosts["order"].Rules[0].Source, before.Hosts["order"].Rules[0].Source; got != want || got.Line == 0 {
		t.Errorf("the rule comes from %v, it came from %v", got, want)
	}
	if !s.CA.Roots()[0].Equal(roots) {
		t.Error("the root is another")
	}
	if after.Version < before.Version {
		t.Errorf("the index went back from %d to %d", before.Version, after.Version)
	}
}

func TestAStoredResourceThatCannotBeReadIsLeftOut(t *testing.T) {
	s := controltest.Start(t, controltest.Config{})
	s.Apply(virtualService("order", "order", "v1"))
	kvs, _, err := s.Store.List(t.Context(), "resources/")
	if err != nil || len(kvs) != 1 {
		t.Fatal(kvs, err)
	}
	for key, value := range map[string]string{
		"resources/VirtualService/default/broken": "{",
		"resources/VirtualService/default/stray":  string(kvs[0].Value), // another's
		"resources/Future/default/x":              `{"apiVersion":"weft.dev/v9","kind":"Future","metadata":{"name":"x","namespace":"default"},"spec":{}}`,
	} {
		if _, err := s.Store.Commit(t.Context(), storeTxn(key, value)); err != nil {
			t.Fatal(err)
		}
	}
	s.Apply(virtualService("user", "user", "v1")) // the watch has passed the others
	for range 2 {
		if got := s.Control.Resources(); len(got) != 2 || got[0].Name != "order" || got[1].Name != "user" {
			t.Errorf("resources: %v", got)
		}
		s.Restart()
	}
}

const shop = `
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: edge}
spec:
  servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: ["*"]}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: edge}
spec:
  hosts: [shop.example.com]
  gateways: [edge]
  http: [{route: [{destination: {host: order}}]}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: v2-only-order}
spec:
  selector: {matchLabels: {version: v2}}
  action: ALLOW
  rules: [{from: [{source: {principals: ["cluster.local/ns/default/sa/user-service"]}}]}]
`

func TestExplainSeesWhatProxiesSee(t *testing.T) {
	s := controltest.Start(t, controltest.Config{})
	s.Instance("order", "v1", 8001)
	s.Instance("order", "v2", 8002)
	s.Apply(shop + "---\n" + destinationRule("order", "v1", "v2") + virtualService("order", "order", "v2"))

	ask := func(snap *weft.Snapshot, host string) weft.Decision {
		return snap.Route(&weft.Request{Method: "GET", Scheme: "http", Host: host, Path: "/"}, 0)
	}
	mesh := s.Control.Mesh("default", "order", "nobody")
	if d := ask(mesh, "order"); d.Problem != "" || d.Destination.Subset != "v2" || len(d.Service.Endpoints) != 2 {
		t.Errorf("order: %+v", d)
	}
	if d := ask(mesh, "nobody"); d.Problem != weft.NoHost {
		t.Errorf("nobody: %+v", d)
	}
	if d := ask(s.Control.Mesh("default"), "order.default.svc.cluster.local"); d.Problem != "" {
		t.Errorf("the whole mesh: %+v", d)
	}
	gateway := s.Control.GatewaySnapshot("edge")
	if d := ask(gateway, "shop.example.com"); d.Problem != "" || d.Edge == nil || d.Destination.Subset != "v2" {
		t.Errorf("through the gateway: %+v", d)
	}
	if d := ask(s.Control.GatewaySnapshot("nothing"), "shop.example.com"); d.Problem != weft.NoHost {
		t.Errorf("a gateway without resources: %+v", d)
	}

	var seen []string
	for _, w := range s.Control.AuthorizationFor(controlService("order")) {
		policies := 0
		if w.Authorization != nil {
			policies = len(w.Authorization.Policies)
		}
		seen = append(seen, w.Instances[0].ID, map[bool]string{true: "restricted", false: "open"}[policies > 0])
	}
	if got := strings.Join(seen, " "); got != "order-v1 open order-v2 restricted" {
		t.Errorf("authorization: %s", got)
	}
	if got := s.Control.AuthorizationFor(controlService("nobody")); len(got) != 1 || got[0].Authorization != nil {
		t.Errorf("authorization of nobody: %v", got)
	}
}

func TestCompilingLeavesTheSetAsItIs(t *testing.T) {
	s := controltest.Start(t, controltest.Config{})
	key := s.Instance("order", "v1", 8001)
	s.Apply(shop)
	if _, err := s.Registry.Deregister(context.Background(), key); err != nil {
		t.Fatal(err)
	}
	unresolved := func() string {
		return s.Control.GatewaySnapshot("edge").Gateway.Lookup("shop.example.com").Rules[0].Destinations[0].Unresolved
	}
	if got := unresolved(); got != "service order.default does not exist" {
		t.Errorf("without order: %q", got)
	}
	s.Instance("order", "v1", 8001)
	if got := unresolved(); got != "" {
		t.Errorf("with order again: %q", got)
	}
}

func storeTxn(key, value string) store.Txn {
	return store.Txn{Put: []store.KV{{Key: key, Value: []byte(value)}}}
}

func TestExplainMayBeAskedFromAnywhere(t *testing.T) {
	s := controltest.Start(t, controltest.Config{})
	s.Instance("order", "v1", 8001)
	s.Apply(shop + "---\n" + destinationRule("order", "v1") + virtualService("order", "order", "v1"))
	var asking sync.WaitGroup
	for range 4 {
		asking.Go(func() {
			for range 20 {
				if d := s.Control.Mesh("default", "order").Hosts["order"]; d == nil {
					t.Error("no rules")
				}
				s.Control.GatewaySnapshot("edge")
			}
		})
	}
	asking.Wait()
}
