package weft

import (
	"encoding/json"
	"testing"
	"time"
)

func TestParseHost(t *testing.T) {
	for host, want := range map[string]string{
		"order-service":                            "order-service.shop",
		"order-service.default":                    "order-service.default",
		"order-service.default.svc":                "order-service.default",
		"order-service.default.svc.cluster.local":  "order-service.default",
		"order-service.default.svc.cluster.local.": "order-service.default",
		"order-service.service.consul":             "order-service.default",
		"example.com":                              "example.com", // the form fits; whether it exists is another question
		"api.example.com":                          "",
		"10.0.0.1":                                 "",
		"*.example.com":                            "",
		"":                                         "",
		"a.b.c.svc.cluster.local":                  "",
	} {
		n, ok := ParseHost(host, "shop")
		if got := n.String(); ok != (want != "") || ok && got != want {
			t.Errorf("%q: %q %v, want %q", host, got, ok, want)
		}
	}
}

func TestHasHost(t *testing.T) {
	n := NewServiceName("shop", "order")
	for host, want := range map[string]bool{
		n.Host(): true, "": false, "order": false, "order.shop": false, "order.shop.svc.cluster.local.": false,
		"order.shop2.svc.cluster.local": false, "orders.shop.svc.cluster.local": false, NewServiceName("shop.svc", "order").Host(): false,
	} {
		if got := n.hasHost(host); got != want {
			t.Errorf("%q: %v", host, got)
		}
	}
}

func TestIdentity(t *testing.T) {
	id := NewIdentity("cluster.local", "default", "order-service")
	if id.TrustDomain() != "cluster.local" || id.Namespace() != "default" || id.ServiceAccount() != "order-service" ||
		id.Principal() != "cluster.local/ns/default/sa/order-service" {
		t.Errorf("parts of %s", id)
	}
	for _, bad := range []string{"", "cluster.local/ns/a/sa/b", "spiffe://x", "spiffe://x/ns//sa/b", "spiffe://x/ns/a/sa/", "spiffe://x/ns/a/sa/b/c", "spiffe://x/y/ns/a/sa/b"} {
		if _, err := ParseIdentity(bad); KindOf(err) != Invalid {
			t.Errorf("%q should be refused, got %v", bad, err)
		}
	}
}

func TestWorstCheckDecides(t *testing.T) {
	in := Instance{Weights: Weights{Passing: 10, Warning: 1}}
	for _, tc := range []struct {
		checks []Health
		want   Health
		weight int
	}{
		{nil, Passing, 10}, {[]Health{Passing, Warning}, Warning, 1},
		{[]Health{Warning, Critical, Passing}, Critical, 0}, {[]Health{Maintenance, Critical}, Maintenance, 0},
	} {
		in.Checks = nil
		for _, h := range tc.checks {
			in.Checks = append(in.Checks, Check{Status: h})
		}
		if in.Health() != tc.want || in.Weight() != tc.weight {
			t.Errorf("%v: %v weight %d, want %v weight %d", tc.checks, in.Health(), in.Weight(), tc.want, tc.weight)
		}
	}
}

func TestDurationJSON(t *testing.T) {
	for text, want := range map[string]time.Duration{`"1m30s"`: 90 * time.Second, `5000000000`: 5 * time.Second} {
		var d Duration
		if err := json.Unmarshal([]byte(text), &d); err != nil || d.Std() != want {
			t.Errorf("%s: %v, %v", text, d, err)
		}
	}
	var d Duration
	for _, bad := range []string{`"soon"`, `true`, `{}`} {
		if json.Unmarshal([]byte(bad), &d) == nil {
			t.Errorf("%s should be refused", bad)
		}
	}
	if b, _ := json.Marshal(Duration(90 * time.Second)); string(b) != `"1m30s"` {
		t.Errorf("written as %s", b)
	}
}

// FuzzPlainText: what is taken as it stands is what JSON reads.
func FuzzPlainText(f *testing.F) {
	for _, s := range []string{`"10s"`, `""`, `"`, `"\u0031s"`, `"é"`, "\"a\nb\"", `"a"b"`, `10`, `null`, "\"\xff\""} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		got, plain := plainText(b)
		if !plain {
			return
		}
		var want string
		if err := json.Unmarshal(b, &want); err != nil || got != want {
			t.Errorf("%q is read as %q; JSON reads %q, %v", b, got, want, err)
		}
	})
}
