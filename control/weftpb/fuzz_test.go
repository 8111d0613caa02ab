package weftpb

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	"github.com/weftmesh/weft"
)

// FuzzRouteTable: whatever decodes comes back the same after another trip.
func FuzzRouteTable(f *testing.F) {
	for _, m := range []*RouteTable{
		{},
		{Host: "order", Rules: []*Rule{{Destinations: []*Destination{{Service: &ServiceName{Namespace: "default", Name: "order"}, Weight: 5}}}}},
		{Host: "order", Rules: []*Rule{{
			Matches:  []*Match{{Path: &StringMatch{Kind: StringMatch_REGEX, Value: "/a|b"}, Headers: []*NamedMatch{{Name: "x", Value: &StringMatch{}, Invert: true}}}},
			Redirect: &Redirect{Code: 302, Path: "/"},
		}}},
		{Host: "order", Rules: []*Rule{{
			Destinations: []*Destination{{Service: &ServiceName{Namespace: "default", Name: "order"}, Weight: 1}},
			Retry:        &Retry{Attempts: 1, Chosen: true},
			Resilience:   &Resilience{Source: &SourceRef{Name: "p"}, Spec: []byte(`{"fallback":{"service":"spare"}}`)},
		}}},
	} {
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var m RouteTable
		if proto.Unmarshal(b, &m) != nil {
			return
		}
		first, err := DecodeRouteTable(&m)
		if err != nil {
			return
		}
		first.Match(&weft.Request{Method: "GET", Host: "order", Path: "/a", Query: "x=1"}) // must not panic
		second, err := DecodeRouteTable(EncodeRouteTable(first))
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(first, second, nouns); d != "" {
			t.Fatal(d)
		}
	})
}
