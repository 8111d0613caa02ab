package consul

import (
	"encoding/json"
	"strings"
	"testing"
)

const resolverOfWeb = `{"Type":"resolver","Name":"web.default.default.dc1","Resolver":{"Default":true,"ConnectTimeout":"5s","Target":"web.default.default.dc1"}}`

const targetOfWeb = `{"ID":"web.default.default.dc1","Service":"web","Namespace":"default","Partition":"default","Datacenter":"dc1","Subset":{},
	"ConnectTimeout":"5s","SNI":"web.default.dc1.internal.cluster.local","Name":"web.default.dc1.internal.cluster.local"}`

func TestDefaultChain(t *testing.T) {
	w := newWorld(t)
	w.get("/v1/discovery-chain/web").wantJSON(`{"Chain":{"ServiceName":"web","Namespace":"default","Partition":"default","Datacenter":"dc1","Default":true,"Protocol":"tcp",
		"StartNode":"resolver:web.default.default.dc1","Nodes":{"resolver:web.default.default.dc1":` + resolverOfWeb + `},"Targets":{"web.default.default.dc1":` + targetOfWeb + `}}}`)
	w.put("/v1/config", `{"Kind":"service-resolver","Name":"web","ConnectTimeout":"33s"}`)
	a := w.get("/v1/discovery-chain/web")
	if strings.Contains(a.body, "Default") || strings.Count(a.body, `"ConnectTimeout":"33s"`) != 2 {
		t.Error(a.body)
	}
	a = w.send("POST", "/v1/discovery-chain/web", `{"OverrideProtocol":"grpc","OverrideConnectTimeout":22000000000}`).want(200)
	if !strings.Contains(a.body, `"Protocol":"grpc"`) || strings.Count(a.body, `"ConnectTimeout":"22s"`) != 2 || !strings.Contains(a.body, "CustomizationHash") {
		t.Error(a.body)
	}
}

func TestChainOfEntries(t *testing.T) {
	w := newWorld(t)
	for _, e := range []string{
		`{"Kind":"proxy-defaults","Name":"global","Config":{"protocol":"http"}}`,
		`{"Kind":"service-resolver","Name":"web","DefaultSubset":"v1","Subsets":{"v1":{"Filter":"Service.Meta.version == v1"},"v2":{"Filter":"Service.Meta.version == v2"}}}`,
		`{"Kind":"service-resolver","Name":"old","Redirect":{"Service":"web","ServiceSubset":"v2"}}`,
		`{"Kind":"service-splitter","Name":"web","Splits":[{"Weight":90},{"Weight":10,"Service":"old"}]}`,
		`{"Kind":"service-router","Name":"web","Routes":[{"Match":{"HTTP":{"PathPrefix":"/admin"}},"Destination":{"Service":"admin"}}]}`,
	} {
		w.put("/v1/config", e)
	}
	var got struct{ Chain compiledChain }
	a := w.get("/v1/discovery-chain/web")
	if err := json.Unmarshal([]byte(a.body), &got); err != nil {
		t.Fatal(err)
	}
	c := got.Chain
	router := c.Nodes["router:web.default.default"]
	if c.StartNode != "router:web.default.default" || c.Default || c.Protocol != "http" || router == nil || len(router.Routes) != 2 {
		t.Fatal(a.body)
	}
	splitter := c.Nodes[router.Routes[1].NextNode]
	if router.Routes[0].NextNode != "resolver:admin.default.default.dc1" || splitter == nil || splitter.Type != "splitter" ||
		splitter.Splits[0].NextNode != "resolver:v1.web.default.default.dc1" || splitter.Splits[1].NextNode != "resolver:v2.web.default.default.dc1" {
		t.Fatal(a.body)
	}
	if v2 := c.Targets["v2.web.default.default.dc1"]; v2 == nil || v2.Subset.Filter == "" || v2.SNI != "v2.web.default.dc1.internal.cluster.local" {
		t.Error(a.body)
	}
	// without requests there is nothing to route or to split
	if a := w.send("POST", "/v1/discovery-chain/web", `{"OverrideProtocol":"tcp"}`).want(200); strings.Contains(a.body, "router") || strings.Contains(a.body, "splitter") {
		t.Error(a.body)
	}
}

func TestChainBlocksAndRefuses(t *testing.T) {
	w := newWorld(t)
	w.put("/v1/config", `{"Kind":"service-resolver","Name":"web"}`)
	first := w.get("/v1/discovery-chain/web")
	w.put("/v1/config", `{"Kind":"service-resolver","Name":"other"}`)
	if again := w.get("/v1/discovery-chain/web"); again.index() != first.index() {
		t.Error("an entry of another service moves the index")
	}
	for _, c := range []struct {
		method, path, body string
		status             int
		says               string
	}{
		{"GET", "/v1/discovery-chain/", ``, 400, "service name"},
		{"GET", "/v1/discovery-chain/web?compile-dc=dc2", ``, 500, "No path to datacenter"},
		{"POST", "/v1/discovery-chain/web", `{"OverrideProtocol":"smtp"}`, 400, "OverrideProtocol"},
		{"POST", "/v1/discovery-chain/web", `{"OverrideMeshGateway":{"Mode":"local"}}`, 400, "OverrideMeshGateway.Mode"},
		{"POST", "/v1/discovery-chain/web", `{"OverrideConnectTimeout":"soon"}`, 400, "OverrideConnectTimeout"},
		{"POST", "/v1/discovery-chain/web", `{"OverrideConnectTimeout":-5}`, 400, "OverrideConnectTimeout"},
		{"POST", "/v1/discovery-chain/web", `{`, 400, "JSON"},
	} {
		if a := w.send(c.method, c.path, c.body); a.status != c.status || !strings.Contains(a.body, c.says) {
			t.Errorf("%s %s: %d %swant %d %q", c.path, c.body, a.status, a.body, c.status, c.says)
		}
	}
}
