package weftpb

import (
	"fmt"
	"math"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/weftmesh/weft"
)

// fill gives every field of v a value that is not zero and not its neighbour's,
// so that a noun which gets a field that is not carried fails the round trip.
func fill(t *testing.T, v reflect.Value, n *int) {
	t.Helper()
	*n++
	switch v.Interface().(type) {
	case weft.StringMatch:
		m, err := weft.NewStringMatch(weft.MatchKind(*n%5), string(rune('a'+*n%26)))
		if err != nil {
			t.Fatal(err)
		}
		m.IgnoreCase = *n%2 == 0
		v.Set(reflect.ValueOf(m))
		return
	case netip.Prefix:
		v.Set(reflect.ValueOf(netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(*n), 0, 0}), 16)))
		return
	case uint8: // versions of the PROXY protocol
		v.SetUint(uint64(*n % 3))
		return
	case weft.Action:
		v.SetUint(uint64(*n % 3))
		return
	case weft.Protocol:
		v.SetString(string([]weft.Protocol{weft.GRPC, weft.HTTP2, weft.TCP}[*n%3]))
		return
	case []byte: // the JSON of a resilience policy
		v.SetBytes(fmt.Appendf(nil, `{"bulkhead":{"maxConcurrentCalls":%d}}`, *n))
		return
	case weft.Identity:
		v.SetString("spiffe://cluster.local/ns/default/sa/x" + string(rune('a'+*n%26)))
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Type().Field(i).IsExported() {
				fill(t, v.Field(i), n)
			}
		}
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(t, v.Elem(), n)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		fill(t, v.Index(0), n)
		fill(t, v.Index(1), n)
	case reflect.Map:
		key, value := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
		fill(t, key, n)
		fill(t, value, n)
		v.Set(reflect.MakeMap(v.Type()))
		v.SetMapIndex(key, value)
	case reflect.String:
		v.SetString("s" + string(rune('a'+*n%26)) + string(rune('a'+*n/26%26)))
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Float64:
		v.SetFloat(float64(*n) + 0.5)
	case reflect.Int, reflect.Int64:
		v.SetInt(int64(*n))
	case reflect.Uint8: // an enumeration
		v.SetUint(uint64(*n % 3))
	case reflect.Uint16, reflect.Uint32, reflect.Uint64:
		v.SetUint(uint64(*n))
	default:
		t.Fatalf("fill does not know %s", v.Type())
	}
}

func filled[T any](t *testing.T) T {
	t.Helper()
	var v T
	n := 0
	fill(t, reflect.ValueOf(&v).Elem(), &n)
	return v
}

// overTheWire marshals and parses m.
func overTheWire[M proto.Message](t *testing.T, m M) M {
	t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	out := m.ProtoReflect().New().Interface().(M)
	if err := proto.Unmarshal(b, out); err != nil {
		t.Fatal(err)
	}
	return out
}

var nouns = cmp.Options{
	cmpopts.IgnoreUnexported(weft.StringMatch{}, weft.RouteTable{}, weft.Rule{}, weft.RawRule{}, weft.Destination{}),
	cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
}

func TestEveryFieldIsCarried(t *testing.T) {
	t.Run("RouteTable", func(t *testing.T) {
		want := filled[*weft.RouteTable](t)
		got, err := DecodeRouteTable(overTheWire(t, EncodeRouteTable(want)))
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(want, got, nouns); d != "" {
			t.Error(d)
		}
	})
	t.Run("GatewayTable", func(t *testing.T) {
		want := filled[*weft.RouteTable](t)
		got, err := new(TableDecoder).Decode(packed(t, EncodeGatewayTable(want)))
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(want, got, nouns); d != "" {
			t.Error(d)
		}
	})
	t.Run("Service with Endpoints", func(t *testing.T) {
		want := filled[*weft.Service](t)
		want.Breaker = "forced-open"
		got, err := DecodeService(overTheWire(t, EncodeService(want)))
		if err != nil {
			t.Fatal(err)
		}
		m := EncodeEndpoints(want.Name, want.Endpoints)
		m.Index = want.Index
		var n weft.ServiceName
		n, got.Endpoints, got.Index, err = DecodeEndpoints(overTheWire(t, m))
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(want, got, nouns); d != "" || n != want.Name {
			t.Error(n, d)
		}
	})
	t.Run("Authorization", func(t *testing.T) {
		want := filled[*weft.Authorization](t)
		got, paths, err := DecodeAuthorization(overTheWire(t, EncodeAuthorization(want, weft.PathMergeSlashes)))
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(want, got, nouns); d != "" || paths != weft.PathMergeSlashes {
			t.Error(paths, d)
		}
	})
	t.Run("Instance", func(t *testing.T) {
		want := filled[weft.Instance](t)
		// These are the server's, or another dialect's.
		want.Checks, want.Identity, want.Dialect, want.TaggedAddresses, want.EnableTagOverride, want.Extra = nil, "", "", nil, false, nil
		want.CreateIndex, want.ModifyIndex = 0, 0
		got, err := DecodeInstance(overTheWire(t, EncodeInstance(&want)))
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(want, got, nouns); d != "" {
			t.Error(d)
		}
	})
}

func TestWordsAgreeWithTheNouns(t *testing.T) {
	for h, name := range Health_name {
		if want := weft.Health(h).String(); !strings.EqualFold(name, want) {
			t.Errorf("health %d is %s here and %s there", h, name, want)
		}
	}
	for a, name := range AuthorizationPolicy_Action_name {
		if want := weft.Action(a).String(); name != want {
			t.Errorf("action %d is %s here and %s there", a, name, want)
		}
	}
	for m, name := range PathMode_name {
		if want := "PATH_" + weft.PathMode(m).String(); name != want {
			t.Errorf("path mode %d is %s here and %s there", m, name, want)
		}
	}
	kinds := map[StringMatch_Kind]weft.MatchKind{
		StringMatch_PRESENT: weft.MatchPresent, StringMatch_EXACT: weft.MatchExact, StringMatch_PREFIX: weft.MatchPrefix,
		StringMatch_SUFFIX: weft.MatchSuffix, StringMatch_REGEX: weft.MatchRegex,
	}
	for k, want := range kinds {
		if weft.MatchKind(k) != want {
			t.Errorf("%v is %d here and %d there", k, k, want)
		}
	}
	if DecodeHealth(17) != weft.Critical {
		t.Error("a health that is not known must count as critical")
	}
}

func TestGatewayTableNames(t *testing.T) {
	for _, want := range [][2]string{{"edge", "api.example.com"}, {"shop/edge", "*"}, {"edge", ""}, {"edge", ":5432"}} {
		gateway, host, ok := ParseGatewayTableName(GatewayTableName(want[0], want[1]))
		if !ok || gateway != want[0] || host != want[1] {
			t.Errorf("%q reads back as %q %q %v", want, gateway, host, ok)
		}
	}
	if _, _, ok := ParseGatewayTableName("edge"); ok {
		t.Error("a gateway's name is no table's")
	}
}

func TestEncodingIsDeterministic(t *testing.T) {
	labels := make(map[string]string)
	for c := 'a'; c <= 'z'; c++ {
		labels[string(c)] = "x"
	}
	m := EncodeEndpoints(weft.NewServiceName("", "order"), []weft.Endpoint{{ID: "n/a", Address: "10.0.0.1:80", Weight: 1, Labels: labels}})
	first, err := Pack(m)
	if err != nil {
		t.Fatal(err)
	}
	for range 20 {
		again, err := Pack(m)
		if err != nil {
			t.Fatal(err)
		}
		if string(first.Value) != string(again.Value) {
			t.Fatal("the same message gives different bytes")
		}
	}
	if first.TypeUrl != EndpointsType {
		t.Errorf("its type is %s", first.TypeUrl)
	}
}

func TestDecodeRefuses(t *testing.T) {
	rule := func(change func(*Rule)) *RouteTable {
		r := &Rule{Destinations: []*Destination{{Service: &ServiceName{Namespace: "default", Name: "order"}, Weight: 1}}}
		change(r)
		return &RouteTable{Host: "order", Rules: []*Rule{r}}
	}
	routes := map[string]*RouteTable{
		"a regex that does not compile": rule(func(r *Rule) {
			r.Matches = []*Match{{Path: &StringMatch{Kind: StringMatch_REGEX, Value: "("}}}
		}),
		"a kind of match from the future": rule(func(r *Rule) { r.Matches = []*Match{{Path: &StringMatch{Kind: 17}}} }),
		"weights that are all zero": rule(func(r *Rule) {
			r.Destinations[0].Weight = 0
			r.Destinations = append(r.Destinations, r.Destinations[0])
		}),
		"a rule that leads nowhere":          rule(func(r *Rule) { r.Destinations = nil }),
		"a destination without a name":       rule(func(r *Rule) { r.Destinations[0].Service = nil }),
		"a negative timeout":                 rule(func(r *Rule) { r.Timeout = durationpb.New(-time.Second) }),
		"a duration beyond what can be held": rule(func(r *Rule) { r.Timeout = &durationpb.Duration{Seconds: 1 << 60} }),
		"retries below zero":                 rule(func(r *Rule) { r.Retry = &Retry{Attempts: -1} }),
		"retry conditions from the future":   rule(func(r *Rule) { r.Retry = &Retry{On: 1 << 16} }),
	}
	database := []*Destination{{Service: &ServiceName{Namespace: "default", Name: "database"}, Weight: 1}}
	routes["a route's policy that is no JSON"] = rule(func(r *Rule) { r.Resilience = &Resilience{} })
	routes["a port beyond 65535"] = &RouteTable{Host: "database", Tcp: []*RawRule{{Ports: []uint32{1 << 16}, Destinations: database}}}
	routes["a raw destination without a name"] = &RouteTable{Host: "database", Tls: []*RawRule{{Destinations: []*Destination{{}}}}}
	routes["a path mode from the future"] = &RouteTable{Host: "database", Paths: 17}
	for name, m := range routes {
		if _, err := DecodeRouteTable(m); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	order := &ServiceName{Namespace: "default", Name: "order"}
	if _, err := DecodeService(&Service{Name: order, Policy: &TrafficPolicy{ProxyProtocol: 3}}); err == nil {
		t.Error("a version of the PROXY protocol from the future: accepted")
	}
	for name, m := range map[string]*Service{
		"a state of a breaker from the future": {Breaker: "ajar"},
		"a policy that is no JSON":             {Resilience: &Resilience{Spec: []byte("timeout: 1s")}},
		"a slow start of no aggression":        {Policy: &TrafficPolicy{SlowStart: &SlowStart{Aggression: math.NaN()}}},
		"a cookie of negative life":            {Policy: &TrafficPolicy{Hash: &Hash{CookieTtl: durationpb.New(-time.Second)}}},
	} {
		m.Name = order
		if _, err := DecodeService(m); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	endpoints := map[string]*Endpoints{
		"no service":           {},
		"no address":           {Service: order, Endpoints: []*Endpoint{{Id: "a", Weight: 1}}},
		"no weight":            {Service: order, Endpoints: []*Endpoint{{Id: "a", Address: "10.0.0.1:80"}}},
		"a malformed identity": {Service: order, Endpoints: []*Endpoint{{Id: "a", Address: "10.0.0.1:80", Weight: 1, Identity: "order"}}},
	}
	for name, m := range endpoints {
		if _, _, _, err := DecodeEndpoints(m); err == nil {
			t.Errorf("endpoints with %s: accepted", name)
		}
	}
	policies := map[string]*AuthorizationPolicy{
		"an action from the future": {Action: 17},
		"a bad IP block": {Rules: []*AuthorizationRule{{From: []*SourceMatch{{
			Addresses: &Prefixes{Not: []string{"10.0.0.0/33"}}}}}}},
		"a bad regex": {Rules: []*AuthorizationRule{{To: []*OperationMatch{{
			Paths: &Values{Not: []*StringMatch{{Kind: StringMatch_REGEX, Value: "("}}}}}}}},
	}
	for name, p := range policies {
		if a, _, err := DecodeAuthorization(&Authorization{Policies: []*AuthorizationPolicy{p}}); err == nil || a != nil {
			t.Errorf("a policy with %s: accepted", name)
		}
	}
	if _, _, err := DecodeAuthorization(&Authorization{Paths: 17}); err == nil {
		t.Error("a path mode from the future: accepted")
	}
	if _, _, err := DecodeTrust(&Trust{TrustDomain: "cluster.local"}); err == nil {
		t.Error("trust without roots: accepted")
	}
	if _, _, err := DecodeTrust(&Trust{Roots: [][]byte{{1}}}); err == nil {
		t.Error("a root that is no certificate: accepted")
	}
	for name, m := range map[string]*Instance{
		"no id": {Service: order}, "no service": {Id: "a"}, "a port of 70000": {Id: "a", Service: order, Port: 70000},
		"a protocol from the future": {Id: "a", Service: order, Protocol: "smoke"},
	} {
		if _, err := DecodeInstance(m); err == nil {
			t.Errorf("an instance with %s: accepted", name)
		}
	}
}

func TestFallback(t *testing.T) {
	for spec, want := range map[string]string{
		`{"fallback":{"service":"backup"}}`:                    "backup.shop",
		`{"fallback":{"service":"Backup.spare","status":200}}`: "backup.spare",
		`{"retry":{},"fallback":{"status":503}}`:               "",
		`{"retry":{}}`:                                         "",
		`{"fallback":{"service":17}}`:                          "",
		`{"fallback":{"service":"a.b.c"}}`:                     "",
	} {
		n, ok := Fallback(&weft.Resilience{Source: weft.SourceRef{Namespace: "shop"}, Spec: []byte(spec)})
		if got := n.String(); ok != (want != "") || ok && got != want {
			t.Errorf("%s: %q, %v, want %q", spec, got, ok, want)
		}
	}
	if n, ok := Fallback(nil); ok {
		t.Errorf("of no policy: %v", n)
	}
	if n, ok := Fallback(&weft.Resilience{Spec: []byte(`{"fallback":{"service":"backup"}}`)}); !ok || n != weft.NewServiceName("", "backup") {
		t.Errorf("of a policy from nowhere: %v, %v", n, ok)
	}
}
