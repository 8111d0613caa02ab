package consul

import (
	"fmt"
	"math"
	"strings"
	"testing"
)

// at is a place on a line.
func at(x float64) string {
	return fmt.Sprintf(`{"Vec":[%g,0,0,0,0,0,0,0],"Error":1,"Height":0,"Adjustment":0}`, x)
}

func TestCoordinates(t *testing.T) {
	w := fleet(t)
	w.get("/v1/coordinate/nodes").wantJSON(`[]`)
	w.send("GET", "/v1/coordinate/node/far", "").want(404)
	w.put("/v1/coordinate/update", `{"Node":"far","Coord":`+at(0.5)+`}`)
	w.put("/v1/coordinate/update", `{"Node":"server-1","Segment":"s","Coord":`+at(0)+`}`)
	w.put("/v1/coordinate/update", `{"Node":"nobody","Coord":`+at(0)+`}`) // came too late: as good as forgotten
	far := `{"Node":"far","Segment":"","Coord":` + at(0.5) + `}`
	w.get("/v1/coordinate/node/far").wantJSON(`[` + far + `]`)
	w.get("/v1/coordinate/nodes?segment=").wantJSON(`[` + far + `]`)
	if got := w.get("/v1/coordinate/nodes").field("1.Segment"); got != "s" {
		t.Errorf("all: segment %v", got)
	}
	if a := w.get("/v1/coordinate/datacenters"); a.field("0.Datacenter") != "dc1" || a.field("0.Coordinates.0.Node") != "server-1.dc1" {
		t.Errorf("datacenters: %s", a.body)
	}
	w.put("/v1/catalog/deregister", `{"Node":"far"}`)
	w.send("GET", "/v1/coordinate/node/far", "").want(404)
}

func TestWrongCoordinates(t *testing.T) {
	w := newWorld(t)
	for body, says := range map[string]string{
		``:                        "empty",
		`{"Coord":` + at(0) + `}`: "Node and Coord",
		`{"Node":"server-1"}`:     "Node and Coord",
		`{"Node":"server-1","Coord":{"Vec":[0,0]}}`:                 "8 finite numbers",
		`{"Node":"server-1","Coord":{"Vec":[0,0,0,0,0,0,1e999,0]}}`: "1e999",
	} {
		if a := w.send("PUT", "/v1/coordinate/update", body).want(400); !strings.Contains(a.body, says) {
			t.Errorf("%s: %s", body, a.body)
		}
	}
}

// Distances are those of Vivaldi's paper, with heights and adjustments.
func TestDistance(t *testing.T) {
	place := func(x, height, adjustment float64) *coordinate {
		return &coordinate{Vec: []float64{x, 0, 0, 0, 0, 0, 0, 0}, Height: height, Adjustment: adjustment}
	}
	for _, c := range []struct {
		a, b *coordinate
		want float64
	}{
		{place(0, 0, 0), place(3, 0, 0), 3},
		{place(1, 0.5, 0), place(3, 0.25, 0), 2.75},
		{place(0, 0, -1), place(3, 0, 0.5), 2.5},
		{place(0, 0, -9), place(3, 0, 0), 3}, // corrected away: the raw one
	} {
		if got := c.a.distance(c.b); math.Abs(got-c.want) > 1e-12 || got != c.b.distance(c.a) {
			t.Errorf("%+v to %+v: %v, want %v", c.a, c.b, got, c.want)
		}
	}
}

// With near the own node comes first, then the nearer ones, then the unknown.
func TestNear(t *testing.T) {
	w := newWorld(t)
	for _, node := range []string{"a", "b", "c"} {
		w.put("/v1/catalog/register", `{"Node":"`+node+`","Address":"10.0.0.1","Service":{"ID":"on-`+node+`","Service":"web","Port":1}}`)
	}
	w.put("/v1/agent/service/register", `{"ID":"on-own","Name":"web","Port":1}`)
	w.put("/v1/coordinate/update", `{"Node":"server-1","Coord":`+at(0)+`}`)
	w.put("/v1/coordinate/update", `{"Node":"b","Coord":`+at(0.02)+`}`)
	w.put("/v1/coordinate/update", `{"Node":"c","Coord":`+at(0.01)+`}`)
	for path, want := range map[string]string{
		"/v1/health/service/web":                      "on-a on-b on-c on-own",
		"/v1/health/service/web?near=_agent":          "on-own on-c on-b on-a",
		"/v1/health/service/web?near=server-1":        "on-own on-c on-b on-a",
		"/v1/catalog/service/web?near=b":              "on-b on-c on-own on-a",
		"/v1/catalog/service/web?near=a":              "on-a on-b on-c on-own",
		"/v1/catalog/service/web?near=nobody":         "on-a on-b on-c on-own",
		"/v1/health/service/web?near=_agent&passing=": "on-own on-c on-b on-a",
	} {
		if got := w.get(path).ids(); got != want {
			t.Errorf("%s: %q, want %q", path, got, want)
		}
	}
}

// Without coordinates those in the own zone are near.
func TestNearByZone(t *testing.T) {
	w := newWorld(t)
	for node, zone := range map[string]string{"a": "z1", "b": "z2", "c": "z1"} {
		w.put("/v1/catalog/register", `{"Node":"`+node+`","Address":"10.0.0.1","Locality":{"Region":"r","Zone":"`+zone+`"},"Service":{"ID":"on-`+node+`","Service":"web","Port":1}}`)
	}
	if got := w.get("/v1/health/service/web?near=b").ids(); got != "on-b on-a on-c" {
		t.Errorf("near b: %q", got)
	}
	if got := w.get("/v1/health/service/web?near=c").ids(); got != "on-c on-a on-b" {
		t.Errorf("near c: %q", got)
	}
}
