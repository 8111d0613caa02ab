package consul

import (
	"net/url"
	"testing"
)

// fleet registers three instances of web on two nodes.
func fleet(t *testing.T) *world {
	w := newWorld(t)
	w.put("/v1/agent/service/register", `{"ID":"web-1","Name":"web","Port":1,"Tags":["v1","Blue"],"Meta":{"version":"1"},"Check":{"TTL":"1h","Status":"passing"}}`)
	w.put("/v1/agent/service/register", `{"ID":"web-2","Name":"web","Port":2,"Tags":["v2","blue"],"Meta":{"version":"2"},"Check":{"TTL":"1h","Status":"warning"}}`)
	w.put("/v1/catalog/register", `{"Node":"far","Address":"10.0.0.9","NodeMeta":{"os":"linux","rack":"r2"},
		"Service":{"ID":"web-3","Service":"web","Port":3,"Tags":["v2"],"Meta":{"version":"2"}},
		"Checks":[{"CheckID":"far:up","Status":"critical","ServiceID":"web-3"},{"Name":"node up","Status":"passing"}]}`)
	return w
}

func TestReadParameters(t *testing.T) {
	w := fleet(t)
	for _, c := range []struct{ path, want string }{
		{"/v1/health/service/web", "web-3 web-1 web-2"},
		{"/v1/health/service/web?passing", "web-1"},
		{"/v1/health/service/web?passing=", "web-1"},
		{"/v1/health/service/web?passing=1", "web-1"},
		{"/v1/health/service/web?passing=true", "web-1"},
		{"/v1/health/service/web?passing=false", "web-3 web-1 web-2"},
		{"/v1/health/service/web?tag=v2", "web-3 web-2"},
		{"/v1/health/service/web?tag=v2&tag=BLUE", "web-2"},
		{"/v1/health/service/web?tag=", "web-3 web-1 web-2"},
		{"/v1/health/service/web?tag=none", ""},
		{"/v1/health/service/web?node-meta=os:linux", "web-3"},
		{"/v1/health/service/web?node-meta=os:linux&node-meta=rack:r2", "web-3"},
		{"/v1/health/service/web?node-meta=os:linux&node-meta=rack:r1", ""},
		{"/v1/health/service/web?near=_agent&cached&stale&dc=dc1&merge-central-config&local-only", "web-1 web-2 web-3"},
		{"/v1/health/service/web?ns=other", ""},
		{"/v1/health/service/web?ns=default", "web-3 web-1 web-2"},
		{"/v1/health/service/web?filter=" + url.QueryEscape(`Service.Meta.version == 2`), "web-3 web-2"},
		{"/v1/health/service/web?filter=" + url.QueryEscape(`"v2" in Service.Tags and Node.Meta.os != linux`), "web-2"},
		{"/v1/health/service/web?filter=" + url.QueryEscape(`Checks.Status == critical`), "web-3"},
		{"/v1/catalog/service/web", "web-3 web-1 web-2"},
		{"/v1/catalog/service/web?tag=v2&node-meta=rack:r1", "web-2"},
		{"/v1/catalog/service/web?filter=" + url.QueryEscape(`ServiceMeta.version == 2 and NodeMeta.os is empty`), "web-2"},
		{"/v1/catalog/service/web?filter=" + url.QueryEscape(`v1 in ServiceTags`), "web-1"},
	} {
		if got := w.get(c.path).ids(); got != c.want {
			t.Errorf("%s: %q, want %q", c.path, got, c.want)
		}
	}
	for _, c := range []struct{ path, want string }{
		{"/v1/catalog/services", `{"web":["Blue","blue","v1","v2"]}`},
		{"/v1/catalog/services?node-meta=os:linux", `{"web":["v2"]}`},
		{"/v1/catalog/services?filter=" + url.QueryEscape(`ServicePort == 1`), `{"web":["Blue","v1"]}`},
		{"/v1/catalog/services?ns=other", `{}`},
		{"/v1/catalog/services?filter=" + url.QueryEscape(`ServiceName == none`), `{}`},
		{"/v1/catalog/nodes?filter=" + url.QueryEscape(`Meta.os == linux and Node == none`), `[]`},
		{"/v1/catalog/nodes?node-meta=rack:r1", `[` + ownNode + `]`},
		{"/v1/health/checks/web?filter=" + url.QueryEscape(`CheckID == none`), `[]`},
		{"/v1/health/state/warning?node-meta=os:linux", `[]`},
		{"/v1/agent/services?filter=" + url.QueryEscape(`Port == 7`), `{}`},
		{"/v1/agent/checks?filter=" + url.QueryEscape(`Status == critical`), `{}`},
		{"/v1/catalog/node/none", `null`},
	} {
		w.get(c.path).wantJSON(c.want)
	}
	if a := w.get("/v1/health/state/warning"); a.field("0.ServiceID") != "web-2" {
		t.Errorf("warning: %s", a.body)
	}
	for path, want := range map[string]string{
		"/v1/agent/services?filter=" + url.QueryEscape(`Meta.version == 2`):                                     "web-2.ID",
		"/v1/agent/checks?filter=" + url.QueryEscape(`ServiceID == web-1`):                                      "service:web-1.CheckID",
		"/v1/catalog/node/server-1?filter=" + url.QueryEscape(`ID == web-1`):                                    "Services.web-1.ID",
		"/v1/catalog/node-services/far?filter=" + url.QueryEscape(`Port == 3`):                                  "Services.0.ID",
		"/v1/health/node/far?filter=" + url.QueryEscape(`ServiceID is empty and CheckID == "node up"`):          "0.CheckID",
		"/v1/catalog/nodes?filter=" + url.QueryEscape(`Address matches "^10[.]" and TaggedAddresses.lan != ""`): "0.Node",
	} {
		if w.get(path).field(want) == nil {
			t.Errorf("%s: no %s", path, want)
		}
	}
}

// What a third party registers and takes away, node by node.
func TestCatalogRegistration(t *testing.T) {
	w := fleet(t)
	if a := w.get("/v1/catalog/node/far"); a.field("Node.Address") != "10.0.0.9" || a.field("Services.web-3.Port") != 3.0 {
		t.Errorf("node: %s", a.body)
	}
	a := w.get("/v1/health/node/far")
	if a.field("0.CheckID") != "node up" || a.field("1.CheckID") != "far:up" || a.field("1.ServiceID") != "web-3" {
		t.Errorf("checks: %s", a.body)
	}
	register := func(body string) {
		t.Helper()
		w.put("/v1/catalog/register", body).wantJSON(`true`)
	}
	// A check on its own, for an instance that is there already.
	register(`{"Node":"far","Address":"10.0.0.9","SkipNodeUpdate":true,"Check":{"CheckID":"far:up","Status":"passing","ServiceID":"web-3"}}`)
	if got := w.get("/v1/health/service/web?passing&node-meta=os:linux").ids(); got != "web-3" {
		t.Errorf("after its check passed: %q", got)
	}
	// The service again, without its checks: they stay.
	register(`{"Node":"far","Address":"10.0.0.1","SkipNodeUpdate":true,"Service":{"ID":"web-3","Service":"web","Port":33}}`)
	if a := w.get("/v1/health/checks/web?node-meta=os:linux"); a.field("0.CheckID") != "far:up" {
		t.Errorf("checks: %s", a.body)
	}
	if a := w.get("/v1/catalog/node/far"); a.field("Node.Address") != "10.0.0.9" || a.field("Services.web-3.Port") != 33.0 {
		t.Errorf("after SkipNodeUpdate: %s", a.body)
	}
	register(`{"Node":"far","Address":"10.0.0.1","NodeMeta":{"os":"plan9"}}`)
	if a := w.get("/v1/catalog/node/far"); a.field("Node.Address") != "10.0.0.1" || a.field("Node.Meta.os") != "plan9" {
		t.Errorf("after an update: %s", a.body)
	}

	deregister := func(body string) {
		t.Helper()
		w.put("/v1/catalog/deregister", body).wantJSON(`true`)
	}
	deregister(`{"Node":"far","CheckID":"node up"}`)
	if a := w.get("/v1/health/node/far"); a.field("0.CheckID") != "far:up" {
		t.Errorf("checks: %s", a.body)
	}
	deregister(`{"Node":"far","ServiceID":"web-3"}`)
	w.get("/v1/health/node/far").wantJSON(`[]`)
	deregister(`{"Node":"far"}`)
	w.get("/v1/catalog/node/far").wantJSON(`null`)
	for _, again := range []string{`{"Node":"far"}`, `{"Node":"far","ServiceID":"web-3"}`, `{"Node":"far","CheckID":"x"}`} {
		deregister(again)
	}
}

// A namespace of weft is Consul's: what is registered there is seen there only.
func TestNamespaces(t *testing.T) {
	w := newWorld(t)
	w.put("/v1/agent/service/register?ns=shop", `{"Name":"web","ID":"shop-web"}`)
	w.put("/v1/agent/service/register", `{"Name":"db","Namespace":"shop"}`)
	w.get("/v1/catalog/services?ns=shop").wantJSON(`{"db":[],"web":[]}`)
	w.get("/v1/catalog/services").wantJSON(`{}`)
	w.get("/v1/agent/services").wantJSON(`{}`)
	w.send("GET", "/v1/agent/service/shop-web", "").want(404)
	if a := w.get("/v1/health/service/web?ns=shop"); a.field("0.Service.Namespace") != "shop" {
		t.Errorf("got %s", a.body)
	}
}
