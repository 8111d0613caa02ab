package consul

import (
	"bytes"
	"context"
	"encoding/json"
	"reflect"
	"strconv"
	"strings"
	"testing"

	"github.com/weftmesh/weft"
)

func TestConfigEntries(t *testing.T) {
	w := newWorld(t)
	splitter := `{"Kind":"service-splitter","Name":"web","Splits":[{"Weight":90,"Service":"old"},{"weight":10,"service":"new","request_headers":{"Set":{"X_a":"1"}}}],"Meta":{"a_b":"c"}}`
	w.send("PUT", "/v1/config", splitter).want(200).wantJSON("true")
	got := w.send("GET", "/v1/config/service-splitter/web", "").want(200)
	got.wantJSON(`{"Kind":"service-splitter","Name":"web","Meta":{"a_b":"c"},"Splits":[
		{"Weight":90,"Service":"old"},{"Weight":10,"Service":"new","RequestHeaders":{"Set":{"X_a":"1"}}}]}`)
	w.send("GET", "/v1/config/service-splitter", "").want(200).wantJSON("[" + got.body + "]")
	w.send("GET", "/v1/config/service-router", "").want(200).wantJSON("[]")
	w.send("GET", "/v1/config/service-router/web", "").want(404)

	var e struct{ ModifyIndex uint64 }
	if err := json.Unmarshal([]byte(got.body), &e); err != nil || e.ModifyIndex == 0 || got.index() != e.ModifyIndex {
		t.Errorf("index %d, header %d", e.ModifyIndex, got.index())
	}
	// what it says itself can be sent back
	w.send("PUT", "/v1/config", got.body).want(200)
	w.send("PUT", "/v1/config?cas="+itoa(e.ModifyIndex), splitter).want(200).wantJSON("true")
	changed := strings.Replace(splitter, "old", "older", 1)
	w.send("PUT", "/v1/config?cas="+itoa(e.ModifyIndex), changed).want(200).wantJSON("true")
	w.send("PUT", "/v1/config?cas="+itoa(e.ModifyIndex), got.body).want(200).wantJSON("false")
	w.send("PUT", "/v1/config?cas=0", got.body).want(200).wantJSON("false")
	w.send("DELETE", "/v1/config/service-splitter/web?cas=1", "").want(200).wantJSON("false")
	w.send("DELETE", "/v1/config/service-splitter/web", "").want(200).wantJSON("{}")
	w.send("DELETE", "/v1/config/service-splitter/web", "").want(200)
	w.send("GET", "/v1/config/service-splitter/web", "").want(404)
}

func TestConfigEntryBlocks(t *testing.T) {
	w := newWorld(t)
	put := func(protocol string) {
		w.send("PUT", "/v1/config", `{"Kind":"service-defaults","Name":"web","Protocol":"`+protocol+`"}`).want(200)
	}
	put("http")
	first := w.send("GET", "/v1/config/service-defaults/web", "").want(200)
	answers := make(chan answer, 1)
	go func() {
		a, _ := w.trySend("GET", "/v1/config/service-defaults/web?wait=10s&index="+itoa(first.index()), "")
		answers <- a
	}()
	w.send("PUT", "/v1/config", `{"Kind":"service-defaults","Name":"other"}`).want(200)
	put("grpc")
	a := <-answers
	if a.T = t; a.index() <= first.index() || !strings.Contains(a.body, "grpc") {
		t.Errorf("%d %s", a.index(), a.body)
	}
}

// Every wrong entry is refused with the name of the field that is wrong.
func TestWrongConfigEntries(t *testing.T) {
	w := newWorld(t)
	for _, c := range []struct {
		body   string
		status int
		says   string
	}{
		{``, 400, "JSON"},
		{`[]`, 400, "want an object"},
		{`{"Kind":"service-router"`, 400, "JSON"},
		{`{"Name":"web"}`, 400, "invalid config entry kind"},
		{`{"Kind":"nonsense","Name":"web"}`, 400, "invalid config entry kind: nonsense"},
		{`{"Kind":"ingress-gateway","Name":"web"}`, 501, "ingress-gateway"},
		{`{"Kind":"mesh"}`, 501, "mesh"},
		{`{"Kind":"service-router"}`, 400, "Name must not be empty"},
		{`{"Kind":"service-router","kind":"service-splitter","Name":"web"}`, 400, ""},
		{`{"Kind":"service-router","Name":"a/b"}`, 400, "Name"},
		{`{"Kind":"service-router","Name":"web","Partition":"p"}`, 400, "Partition"},
		{`{"Kind":"service-router","Name":"web","entryHead":{"Name":"x"}}`, 400, "entryHead"},
		{`{"Kind":"proxy-defaults","Name":"web"}`, 400, `only "global" is supported`},
		{`{"Kind":"proxy-defaults","Name":"global","Config":{"protocol":"smtp"}}`, 400, "Config.protocol"},
		{`{"Kind":"proxy-defaults","Name":"global","MeshGateway":{"Mode":"local"}}`, 400, "MeshGateway"},
		{`{"Kind":"service-defaults","Name":"web","Protocol":"smtp"}`, 400, "Protocol"},
		{`{"Kind":"service-defaults","Name":"web","MutualTLSMode":"permissive"}`, 400, "MutualTLSMode"},
		{`{"Kind":"service-defaults","Name":"web","MaxInboundConnections":5}`, 400, "MaxInboundConnections"},
		{`{"Kind":"service-defaults","Name":"web","UpstreamConfig":{"Defaults":{"ConnectTimeoutMs":1}}}`, 400, "UpstreamConfig"},
		{`{"Kind":"service-defaults","Name":7}`, 400, "Name: want a text"},
		{`{"Kind":"service-router","Name":"web","Routes":{}}`, 400, "Routes: want a list"},
		{`{"Kind":"service-router","Name":"web","Routes":[7]}`, 400, "Routes[0]: want an object"},
		{`{"Kind":"service-router","Name":"web","Routes":[{"Match":{"HTTP":{"PathPrefix":"a"}}}]}`, 400, "Routes[0].Match.HTTP.PathPrefix"},
		{`{"Kind":"service-router","Name":"web","Routes":[{"Match":{"HTTP":{"PathPrefix":"/a","PathExact":"/b"}}}]}`, 400, "only one of"},
		{`{"Kind":"service-router","Name":"web","Routes":[{"Match":{"HTTP":{"PathRegex":"("}}}]}`, 200, ""}, // no mesh here that knows regular expressions
		{`{"Kind":"service-router","Name":"web","Routes":[{"Match":{"HTTP":{"Header":[{"Name":"a"}]}}}]}`, 400, "Header[0]"},
		{`{"Kind":"service-router","Name":"web","Routes":[{"Match":{"HTTP":{"QueryParam":[{"Exact":"a"}]}}}]}`, 400, "QueryParam[0]"},
		{`{"Kind":"service-router","Name":"web","Routes":[{"Match":{"HTTP":{"Methods":["get it"]}}}]}`, 400, "Methods[0]"},
		{`{"Kind":"service-router","Name":"web","Routes":[{"Destination":{"PrefixRewrite":"/"}}]}`, 400, "PrefixRewrite"},
		{`{"Kind":"service-router","Name":"web","Routes":[{"Destination":{"RequestTimeout":"-1s"}}]}`, 400, "RequestTimeout"},
		{`{"Kind":"service-router","Name":"web","Routes":[{"Destination":{"RequestTimeout":"soon"}}]}`, 400, "RequestTimeout: want a duration"},
		{`{"Kind":"service-router","Name":"web","Routes":[{"Destination":{"NumRetries":-1}}]}`, 400, "NumRetries: want a whole number"},
		{`{"Kind":"service-router","Name":"web","Routes":[{"Destination":{"IdleTimeout":"3s"}}]}`, 400, "IdleTimeout: weft does not carry this out"},
		{`{"Kind":"service-router","Name":"web","Routes":[{"Destination":{"ServiceSubset":"v1"}}]}`, 400, "does not have a subset"},
		{`{"Kind":"service-splitter","Name":"web"}`, 400, "no splits"},
		{`{"Kind":"service-splitter","Name":"web","Splits":[{"Weight":99.99}]}`, 400, "must be 100, not 99.99"},
		{`{"Kind":"service-splitter","Name":"web","Splits":[{"Weight":-1},{"Weight":101}]}`, 400, "Splits[0].Weight"},
		{`{"Kind":"service-splitter","Name":"web","Splits":[{"Weight":1e300}]}`, 400, "Splits[0].Weight: the number is too large"},
		{`{"Kind":"service-splitter","Name":"web","Splits":[{"Weight":100,"ResponseHeaders":{"Set":{"a":"b"}}}]}`, 400, "ResponseHeaders"},
		{`{"Kind":"service-resolver","Name":"web","Failover":{"*":{"Datacenters":["dc2"]}}}`, 400, "Failover: weft does not carry this out: the fallback"},
		{`{"Kind":"service-resolver","Name":"web","Redirect":{"Service":"b","Datacenter":"dc2"}}`, 400, "Redirect.Datacenter"},
		{`{"Kind":"service-resolver","Name":"web","Redirect":{}}`, 400, "Redirect: is empty"},
		{`{"Kind":"service-resolver","Name":"web","Redirect":{"Service":"b"},"DefaultSubset":"a"}`, 400, "DefaultSubset"},
		{`{"Kind":"service-resolver","Name":"web","Redirect":{"Service":"web"}}`, 400, "in a circle"},
		{`{"Kind":"service-resolver","Name":"web","Subsets":{"v1":{"Filter":"Service.Port > 1"}}}`, 400, "Subsets[v1].Filter"},
		{`{"Kind":"service-resolver","Name":"web","Subsets":{"v1":{"OnlyPassing":true}}}`, 400, "OnlyPassing"},
		{`{"Kind":"service-resolver","Name":"web","LoadBalancer":{"Policy":"best"}}`, 400, "LoadBalancer.Policy"},
		{`{"Kind":"service-resolver","Name":"web","LoadBalancer":{"Policy":"ring_hash"}}`, 400, "HashPolicies"},
		{`{"Kind":"service-resolver","Name":"web","LoadBalancer":{"Policy":"least_request","LeastRequestConfig":{"ChoiceCount":10}}}`, 400, "ChoiceCount"},
		{`{"Kind":"service-resolver","Name":"web","LoadBalancer":{"Policy":"ring_hash","RingHashConfig":{"MaximumRingSize":9},"HashPolicies":[{"SourceIP":true}]}}`, 400, "MaximumRingSize"},
	} {
		w.send("DELETE", "/v1/config/service-router/web", "")
		a := w.send("PUT", "/v1/config", c.body)
		if a.status != c.status || !strings.Contains(a.body, c.says) {
			t.Errorf("%s:\n%d %swant %d %q", c.body, a.status, a.body, c.status, c.says)
		}
	}
	w.send("GET", "/v1/config/nonsense", "").want(400)
	w.send("DELETE", "/v1/config/service-router", "").want(400)
	w.send("PUT", "/v1/config?cas=soon", `{"Kind":"service-defaults","Name":"web"}`).want(400)
}

// meshLog notes what it is told to carry out.
type meshLog struct {
	refuses error
	last    []Document
}

func (m *meshLog) Check(context.Context, []Document) error { return m.refuses }

func (m *meshLog) Replace(_ context.Context, documents []Document) error {
	m.last = documents
	return nil
}

// What config entries become, in the mesh's own words.
func TestConfigEntriesInTheMesh(t *testing.T) {
	for _, c := range []struct {
		name    string
		entries []string
		want    string // spec of the last document
	}{
		{"a splitter that leads to another", []string{
			`{"Kind":"service-splitter","Name":"a","Splits":[{"Weight":50,"Service":"b"},{"Weight":50}]}`,
			`{"Kind":"service-splitter","Name":"b","Splits":[{"Weight":25,"Service":"c","RequestHeaders":{"Set":{"x":"1"}}},{"Weight":75,"Service":"d"}]}`,
			`{"Kind":"service-resolver","Name":"d","Redirect":{"Service":"e"}}`,
		}, `{"VirtualService default/consul-a":{"hosts":["a.default.svc.cluster.local"],"http":[{"route":[
			{"destination":{"host":"c.default.svc.cluster.local"},"headers":{"request":{"set":{"x":"1"}}},"weight":1250},
			{"destination":{"host":"e.default.svc.cluster.local"},"weight":3750},
			{"destination":{"host":"a.default.svc.cluster.local"},"weight":5000}]}]},
		"VirtualService default/consul-b":{"hosts":["b.default.svc.cluster.local"],"http":[{"route":[
			{"destination":{"host":"c.default.svc.cluster.local"},"headers":{"request":{"set":{"x":"1"}}},"weight":2500},
			{"destination":{"host":"e.default.svc.cluster.local"},"weight":7500}]}]},
		"VirtualService default/consul-d":{"hosts":["d.default.svc.cluster.local"],"http":[{"route":[{"destination":{"host":"e.default.svc.cluster.local"}}]}]}}`},
		{"a router", []string{
			`{"Kind":"service-router","Name":"a","Routes":[{"Match":{"HTTP":{"PathExact":"/x","CaseInsensitive":true,"QueryParam":[{"Name":"q","Present":true}],
				"Header":[{"Name":"h","Suffix":"a.b"},{"Name":"i","Present":true,"Invert":true}]}},
				"Destination":{"Service":"b","PrefixRewrite":"/y","RequestTimeout":"2s","NumRetries":3,"RetryOnConnectFailure":true,"RetryOn":["reset"],"RetryOnStatusCodes":[503],
				"ResponseHeaders":{"Remove":["z"]}}}]}`,
		}, `{"VirtualService default/consul-a":{"hosts":["a.default.svc.cluster.local"],"http":[
			{"match":[{"uri":{"exact":"/x"},"ignoreUriCase":true,"queryParams":{"q":{"regex":".*"}},"headers":{"h":{"regex":".*a\\.b"}},"withoutHeaders":{"i":{"regex":".*"}}}],
			 "route":[{"destination":{"host":"b.default.svc.cluster.local"}}],"rewrite":{"uri":"/y"},"timeout":"2s",
			 "retries":{"attempts":3,"retryOn":"connect-failure,reset,503"},"headers":{"response":{"remove":["z"]}}},
			{"route":[{"destination":{"host":"a.default.svc.cluster.local"}}]}]}}`},
		{"a resolver", []string{
			`{"Kind":"service-resolver","Name":"a","ConnectTimeout":"1s","RequestTimeout":3000000000,"DefaultSubset":"v1","Subsets":{"v1":{"Filter":"Service.Meta.version == v1 and Service.Meta[\"x y\"] == \"1 2\""},"all":{}},
			 "LoadBalancer":{"Policy":"maglev","HashPolicies":[{"Field":"cookie","FieldValue":"c","CookieConfig":{"TTL":"5s","Path":"/p"},"Terminal":true}]}}`,
		}, `{"DestinationRule default/consul-a":{"host":"a.default.svc.cluster.local","trafficPolicy":{"connectionPool":{"tcp":{"connectTimeout":"1s"}},
			"loadBalancer":{"consistentHash":{"maglev":{},"httpCookie":{"name":"c","ttl":"5s","path":"/p"}}}},
			"subsets":[{"name":"all"},{"name":"v1","labels":{"version":"v1","x y":"1 2"}}]},
		"VirtualService default/consul-a":{"hosts":["a.default.svc.cluster.local"],"http":[{"route":[{"destination":{"host":"a.default.svc.cluster.local","subset":"v1"}}],"timeout":"3s"}]}}`},
		{"what changes nothing", []string{`{"Kind":"service-defaults","Name":"a","Protocol":"http"}`, `{"Kind":"service-resolver","Name":"a"}`}, `{}`},
	} {
		t.Run(c.name, func(t *testing.T) {
			mesh := &meshLog{}
			api := worldWith(t, Config{Mesh: mesh})
			for _, e := range c.entries {
				api.send("PUT", "/v1/config", e).want(200)
			}
			got := specs(t, mesh.last)
			if want := canonical(t, c.want); got != want {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
		})
	}
}

// specs are the documents' specs by kind and name.
func specs(t *testing.T, documents []Document) string {
	t.Helper()
	out := make(map[string]json.RawMessage)
	for _, d := range documents {
		var r struct {
			Kind     string
			Metadata struct {
				Name, Namespace string
				Labels          map[string]string
			}
			Spec json.RawMessage
		}
		if err := json.Unmarshal(d.JSON, &r); err != nil || r.Metadata.Labels[WrittenBy] != "consul" {
			t.Fatal(err, string(d.JSON))
		}
		out[r.Kind+" "+r.Metadata.Namespace+"/"+r.Metadata.Name] = r.Spec
	}
	b, _ := json.Marshal(out)
	return canonical(t, string(b))
}

func TestMeshRefusesEntry(t *testing.T) {
	for _, c := range []struct {
		err    error
		status int
	}{
		{weft.Errorf(weft.Conflict, "write", "VirtualService a", "VirtualService b is there"), 409},
		{weft.Errorf(weft.Invalid, "apply", "x", "spec.http: no"), 400},
		{weft.Errorf(weft.Unavailable, "apply", "x", "no quorum"), 500},
	} {
		api := worldWith(t, Config{Mesh: &meshLog{refuses: c.err}})
		a := api.send("PUT", "/v1/config", `{"Kind":"service-splitter","Name":"web","Splits":[{"Weight":100,"Service":"b"}]}`).want(c.status)
		if !strings.Contains(a.body, c.err.Error()) {
			t.Errorf("%s does not say %v", a.body, c.err)
		}
		api.send("GET", "/v1/config/service-splitter/web", "").want(404)
	}
}

// An entry that is read is the same when it is written out and read again, and never
// makes the mesh's compiler fail in another way than by an error.
func FuzzConfigEntry(f *testing.F) {
	for _, seed := range []string{
		`{"Kind":"service-splitter","Name":"web","Splits":[{"Weight":33.33,"Service":"a"},{"Weight":66.67,"service_subset":"v1"}]}`,
		`{"Kind":"service-router","Name":"web","Namespace":"n","Routes":[{"Match":{"HTTP":{"PathRegex":"/a.*","Header":[{"Name":"x","Prefix":"a","Invert":true}]}},"Destination":{"RequestTimeout":"1s","RetryOn":["reset"]}}]}`,
		`{"Kind":"service-resolver","Name":"web","Subsets":{"v1":{"Filter":"Service.Meta.version == v1"}},"LoadBalancer":{"Policy":"ring_hash","HashPolicies":[{"SourceIP":true}]}}`,
		`{"Kind":"service-intentions","Name":"*","Sources":[{"Name":"a","Permissions":[{"Action":"deny","HTTP":{"PathPrefix":"/x","Methods":["GET"]}},{"Action":"allow","HTTP":{"Header":[{"Name":"h","Present":true}]}}],"LegacyCreateTime":"2026-01-31T00:00:00Z"},{"Name":"*","Action":"deny"}]}`,
		`{"Kind":"proxy-defaults","Name":"global","Config":{"protocol":"http","a_b":{"c":[1,2.5]}},"entryHead":{"Name":"x"}}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		e, err := readEntry(body, "dc1")
		if err != nil {
			if err.Error() == "" {
				t.Error("an error that says nothing")
			}
			return
		}
		set := (&entrySet{}).with(e.head().key(), e)
		for _, allow := range []bool{true, false} {
			if _, err := compileMesh(set, allow); err != nil && err.Error() == "" {
				t.Error("an error that says nothing")
			}
		}
		c := chainCompiler{entries: set, dc: "dc1", trustDomain: "t", overrides: &chainOverrides{}}
		if chain := c.compile(e.head().service()); chain.Nodes[chain.StartNode] == nil {
			t.Errorf("the chain begins nowhere: %+v", chain)
		}
		written, err := json.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		again, err := readEntry(written, "dc1")
		if err != nil || !reflect.DeepEqual(e, again) {
			b, _ := json.Marshal(again)
			if !bytes.Equal(b, written) {
				t.Errorf("%s\nis read as\n%s\nthen as\n%s (%v)", body, written, b, err)
			}
		}
	})
}

func itoa(n uint64) string { return strconv.FormatUint(n, 10) }
