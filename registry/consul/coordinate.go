package consul

import (
	"cmp"
	"encoding/json"
	"math"
	"net/http"
	"slices"
	"strings"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/registry"
)

// coordinateTree holds what agents say of their place in the network: node/segment
// -> coordinateRecord.
const coordinateTree = "coordinate"

func (a *api) coordinateEndpoints() endpoints {
	return endpoints{
		"coordinate/datacenters": {get: a.coordinateDatacenters},
		"coordinate/nodes":       {get: a.coordinateNodes},
		"coordinate/node/":       {get: a.coordinateNode},
		"coordinate/update":      {put: a.coordinateUpdate},
	}
}

type coordinateRecord struct {
	Node      string
	Segment   string
	Partition string `json:",omitempty"`
	Coord     *coordinate
}

// coordinate is a place in Vivaldi's space. Its unit is the second.
type coordinate struct {
	Vec        []float64
	Error      float64
	Adjustment float64
	Height     float64
}

// dimensions of Vec, as in every agent.
const dimensions = 8

func (c *coordinate) valid() bool {
	for _, x := range append([]float64{c.Error, c.Adjustment, c.Height}, c.Vec...) {
		if math.IsNaN(x) || math.IsInf(x, 0) {
			return false
		}
	}
	return len(c.Vec) == dimensions
}

// distance is the round trip between two places, in seconds. The adjustments
// correct it unless they correct it away.
func (c *coordinate) distance(to *coordinate) float64 {
	sum := 0.0
	for i := range c.Vec {
		d := c.Vec[i] - to.Vec[i]
		sum += d * d
	}
	raw := math.Sqrt(sum) + c.Height + to.Height
	if adjusted := raw + c.Adjustment + to.Adjustment; adjusted > 0 {
		return adjusted
	}
	return raw
}

// PUT /v1/coordinate/update
func (a *api) coordinateUpdate(w http.ResponseWriter, q *query) error {
	var body coordinateRecord
	if err := decode(w, q, &body); err != nil {
		return err
	}
	invalid := func(format string, args ...any) error {
		return weft.Errorf(weft.Invalid, "update coordinate", body.Node, format, args...)
	}
	if body.Node == "" || body.Coord == nil {
		return invalid("Node and Coord must be given")
	}
	if !body.Coord.valid() {
		return invalid("invalid coordinate: want %d finite numbers in Vec", dimensions)
	}
	if n := a.registry.NodeNamed(body.Node); n == nil {
		return nil // as in Consul: it came too late, or too early
	}
	if body.Partition == "default" {
		body.Partition = ""
	}
	value, err := json.Marshal(body)
	if err != nil {
		return invalid("%w", err)
	}
	op := registry.KeyOp{Tree: coordinateTree, Verb: "set", Key: body.Node + "/" + body.Segment, Value: value}
	_, err = a.transact(q.request.Context(), "update coordinate", body.Node, []registry.Op{{Key: &op}})
	return err
}

// GET /v1/coordinate/datacenters: this one, seen from itself.
func (a *api) coordinateDatacenters(w http.ResponseWriter, q *query) error {
	type datacenter struct {
		Datacenter  string
		AreaID      string
		Coordinates []coordinateRecord
	}
	server := coordinateRecord{Node: a.registry.LocalNode().Name + "." + a.registry.Datacenter(), Coord: &coordinate{Vec: make([]float64, dimensions)}}
	return a.fixed(w, q, []datacenter{{Datacenter: a.registry.Datacenter(), AreaID: "wan", Coordinates: []coordinateRecord{server}}})
}

// GET /v1/coordinate/nodes?segment=
func (a *api) coordinateNodes(w http.ResponseWriter, q *query) error {
	return a.answer(w, q, view{topic: registry.KeysTopic(coordinateTree, ""), part: true, build: func() (any, uint64) {
		list, index := a.coordinates(q, "")
		return list, index
	}})
}

// GET /v1/coordinate/node/{name}
func (a *api) coordinateNode(w http.ResponseWriter, q *query) error {
	node, err := q.need("node name")
	if err != nil {
		return err
	}
	return a.answerFound(w, q, view{topic: registry.KeysTopic(coordinateTree, node+"/"), part: true, build: func() (any, uint64) {
		list, index := a.coordinates(q, node+"/")
		return list, index
	}})
}

// coordinates of nodes that are there, in the segment that was asked for if any.
func (a *api) coordinates(q *query, prefix string) ([]coordinateRecord, uint64) {
	entries, index := a.registry.Keys(coordinateTree, prefix)
	out := make([]coordinateRecord, 0, len(entries))
	for _, e := range entries {
		var c coordinateRecord
		if json.Unmarshal(e.Value, &c) != nil || c.Coord == nil {
			continue
		}
		if n := a.registry.NodeNamed(c.Node); n == nil || q.params.Has("segment") && c.Segment != q.params.Get("segment") {
			continue
		}
		out = append(out, c)
	}
	return out, index
}

// near orders a list as the request's parameter "near" asks for.
func near[T any](a *api, q *query, list []T, node func(*T) string) {
	nearTo(a, q.params.Get("near"), list, node)
}

// nearTo orders a list by how far the nodes of its elements are from a node,
// "_agent" being the own one: by coordinates where both have them, else those in its
// zone first. Equals keep their order.
func nearTo[T any](a *api, from string, list []T, node func(*T) string) {
	if from == "_agent" {
		from = a.registry.LocalNode().Name
	}
	if from == "" || len(list) < 2 {
		return
	}
	places := make(map[string]float64, len(list))
	here, zone := a.coordinateOf(from), a.zoneOf(from)
	far := func(name string) float64 {
		if d, known := places[name]; known {
			return d
		}
		d := math.Inf(1)
		there := a.coordinateOf(name)
		switch {
		case name == from:
			d = -1
		case here != nil && there != nil:
			d = here.distance(there)
		case here == nil && zone != "" && a.zoneOf(name) == zone:
			d = 0
		}
		places[name] = d
		return d
	}
	slices.SortStableFunc(list, func(x, y T) int { return cmp.Compare(far(node(&x)), far(node(&y))) })
}

func (a *api) coordinateOf(node string) *coordinate {
	entries, _ := a.registry.Keys(coordinateTree, node+"/")
	for _, e := range entries {
		var c coordinateRecord
		if strings.HasPrefix(e.Key, node+"/") && json.Unmarshal(e.Value, &c) == nil && c.Coord != nil && c.Coord.valid() {
			return c.Coord
		}
	}
	return nil
}

func (a *api) zoneOf(node string) string {
	n := a.registry.NodeNamed(node)
	if n == nil {
		return ""
	}
	return n.Zone
}
