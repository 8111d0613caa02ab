package weftpb

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/weftmesh/weft"
)

func packed(t testing.TB, m proto.Message) *anypb.Any {
	t.Helper()
	body, err := Pack(m)
	if err != nil {
		t.Fatal(err)
	}
	return body
}

func prefixRule(t testing.TB, path string, weight uint32) weft.Rule {
	t.Helper()
	order := weft.NewServiceName("", "order")
	return weft.Rule{Name: path, Matches: []weft.Match{{Path: &weft.StringMatch{Kind: weft.MatchPrefix, Value: path}}},
		Destinations: []weft.Destination{{Service: order, Weight: weight}, {Service: order, Subset: "v2", Weight: 1}}}
}

// Whatever came before, a table is as if it were decoded alone.
func TestTableDecoderDecodesAsIfAlone(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 1))
	var d TableDecoder
	table := &weft.RouteTable{Host: "h"}
	for step := range 60 {
		switch n := len(table.Rules); random.IntN(4) {
		case 0:
			for range random.IntN(2 * keptRules) {
				table.Rules = append(table.Rules, prefixRule(t, fmt.Sprintf("/%d", random.IntN(200)), 1))
			}
		case 1:
			table.Rules = table.Rules[:n-n/3]
		case 2:
			random.Shuffle(n, func(i, j int) { table.Rules[i], table.Rules[j] = table.Rules[j], table.Rules[i] })
		default:
			if n > 0 {
				table.Rules[random.IntN(n)] = prefixRule(t, "/changed", uint32(step+1))
			}
		}
		table.Paths = weft.PathMode(random.IntN(4))
		var body *anypb.Any
		if step%2 == 0 {
			body = packed(t, EncodeGatewayTable(table))
		} else {
			body = packed(t, EncodeRouteTable(table))
		}
		got, err := d.Decode(body)
		if err != nil {
			t.Fatal(err)
		}
		want, err := DecodeRouteTable(EncodeRouteTable(table))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got, nouns); diff != "" {
			t.Fatalf("step %d (-alone +after others):\n%s", step, diff)
		}
		for range 20 {
			r := &weft.Request{Path: fmt.Sprintf("/%d", random.IntN(300))}
			if a, b := want.Match(r), got.Match(r); (a == nil) != (b == nil) || a != nil && a.Name != b.Name {
				t.Fatalf("step %d: %s goes to %v, want %v", step, r.Path, b, a)
			}
		}
	}
}

func TestTableDecoderKeepsWhatDidNotChange(t *testing.T) {
	table := &weft.RouteTable{Host: "h"}
	for i := range keptRules {
		table.Rules = append(table.Rules, prefixRule(t, fmt.Sprint("/", i), 1))
	}
	var d TableDecoder
	first, err := d.Decode(packed(t, EncodeRouteTable(table)))
	if err != nil {
		t.Fatal(err)
	}
	table.Rules = slices.Clone(table.Rules)
	table.Rules[7] = prefixRule(t, "/7", 2)
	second, err := d.Decode(packed(t, EncodeRouteTable(table)))
	if err != nil {
		t.Fatal(err)
	}
	for i := range first.Rules {
		if same := &first.Rules[i].Destinations[0] == &second.Rules[i].Destinations[0]; same != (i != 7) {
			t.Errorf("rule %d was decoded again: %v", i, !same)
		}
	}
	bad := packed(t, EncodeRouteTable(table))
	bad.Value = append(bad.Value, 0xff)
	if _, err := d.Decode(bad); err == nil {
		t.Error("a broken message is accepted")
	}
	if again, err := d.Decode(packed(t, EncodeRouteTable(table))); err != nil || &again.Rules[0].Destinations[0] != &first.Rules[0].Destinations[0] {
		t.Errorf("after a broken message everything is decoded again: %v", err)
	}
	if _, err := d.Decode(packed(t, &Trust{})); weft.KindOf(err) != weft.Invalid {
		t.Errorf("another type: %v", err)
	}
}

func TestFieldNumbers(t *testing.T) {
	rules := (&RouteTable{}).ProtoReflect().Descriptor().Fields().ByName("rules").Number()
	table := (&GatewayTable{}).ProtoReflect().Descriptor().Fields().ByName("table").Number()
	if rules != rulesField || table != tableField {
		t.Errorf("rules are field %d, the table field %d", rules, table)
	}
}
