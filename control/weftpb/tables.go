package weftpb

import (
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/weftmesh/weft"
)

// TableDecoder decodes the successive versions of one route table. Of a table with
// many rules it decodes only those that the version before did not have: somebody
// changes one of 5,000. The zero value is ready; it is used by one goroutine at a
// time.
type TableDecoder struct {
	known map[string]int // the encoded rules of last, by position; nil: too few to keep
	last  *weft.RouteTable
}

// keptRules is from how many rules on a table's encoded rules are kept, at some
// hundred bytes each.
const keptRules = 64

// Decode checks and compiles a RouteTable or a GatewayTable. What it returns shares
// the rules that have not changed with what it returned before.
func (d *TableDecoder) Decode(body *anypb.Any) (*weft.RouteTable, error) {
	encoded, err := tableOf(body)
	if err != nil {
		return nil, err
	}
	rest, rules, err := split(string(encoded))
	if err != nil {
		return nil, err
	}
	var head RouteTable
	if err := proto.Unmarshal(rest, &head); err != nil {
		return nil, err
	}
	t, known, err := d.table(&head, rules)
	if err != nil {
		return nil, err
	}
	d.known, d.last = known, t
	if len(rules) < keptRules {
		d.known, d.last = nil, nil
	}
	return t, nil
}

// tableOf is the encoded RouteTable in a resource.
func tableOf(body *anypb.Any) ([]byte, error) {
	switch body.GetTypeUrl() {
	case RouteTableType:
		return body.GetValue(), nil
	case GatewayTableType:
		var out []byte
		err := eachField(body.GetValue(), func(number protowire.Number, field, value []byte) {
			if number == tableField {
				out = value
			}
		})
		return out, err
	}
	return nil, weft.Errorf(weft.Invalid, "decode", "route table", "it is a %s", body.GetTypeUrl())
}

func (d *TableDecoder) table(head *RouteTable, rules []string) (*weft.RouteTable, map[string]int, error) {
	var dec decoder
	t := dec.table(head, make([]weft.Rule, len(rules)))
	known := make(map[string]int, len(rules))
	for i, encoded := range rules {
		known[encoded] = i
		if before, ok := d.known[encoded]; ok {
			t.Rules[i] = d.last.Rules[before]
			continue
		}
		var m Rule
		if err := proto.Unmarshal([]byte(encoded), &m); err != nil {
			return nil, nil, err
		}
		t.Rules[i] = dec.rule(&m)
	}
	if dec.err != nil {
		return nil, nil, dec.err
	}
	return t, known, t.Complete()
}

// Field numbers of weft.proto.
const (
	rulesField = 2 // RouteTable.rules
	tableField = 1 // GatewayTable.table
)

// split takes the rules out of an encoded RouteTable, still encoded. They share its
// memory.
func split(encoded string) (rest []byte, rules []string, err error) {
	at := 0
	err = eachField([]byte(encoded), func(number protowire.Number, field, value []byte) {
		if at += len(field); number == rulesField && value != nil {
			rules = append(rules, encoded[at-len(value):at])
		} else {
			rest = append(rest, field...)
		}
	})
	return rest, rules, err
}

// eachField calls f with each field of an encoded message: all of it, and its value
// when that is of variable length.
func eachField(b []byte, f func(number protowire.Number, field, value []byte)) error {
	for len(b) > 0 {
		number, kind, tag := protowire.ConsumeTag(b)
		if tag < 0 {
			return protowire.ParseError(tag)
		}
		n := protowire.ConsumeFieldValue(number, kind, b[tag:])
		if n < 0 {
			return protowire.ParseError(n)
		}
		var value []byte
		if kind == protowire.BytesType {
			value, _ = protowire.ConsumeBytes(b[tag:])
		}
		f(number, b[:tag+n], value)
		b = b[tag+n:]
	}
	return nil
}
