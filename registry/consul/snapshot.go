package consul

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/registry"
)

// A snapshot is the catalogue, the keys and the documents of this dialect as JSON,
// one record a line, compressed by gzip:
//
//	{"Weft":"snapshot 1","Datacenter":"dc1","Index":42}
//	{"Node":{…}}                 before the instances on it
//	{"Instance":{…}}
//	{"Tree":"kv","Entry":{…}}
//	{"SHA256":"…"}               of all lines before
//
// Sessions, which live by being renewed, and the locks that they hold are not in
// it; nor are keys of other namespaces than the default one.

const (
	snapshotFormat = "snapshot 1"
	maxSnapshot    = 64 << 20  // bytes of the compressed form that are read
	maxSnapshotRaw = 512 << 20 // bytes when it is not compressed any more
	maxSnapshotRow = 2 << 20   // bytes of a line
)

// snapshotTrees are the trees that a snapshot has. A restore makes them equal.
var snapshotTrees = []string{
	registry.KV, eventTree, coordinateTree, queryTree, configTree,
	tokenTree, secretTree, policyTree, roleTree, methodTree, bindingTree, aclStateTree,
}

func (a *api) snapshotEndpoints() endpoints {
	return endpoints{"snapshot": {get: a.snapshotSave, put: a.snapshotRestore}}
}

type snapshotRow struct {
	Weft       string          `json:",omitempty"`
	Datacenter string          `json:",omitempty"`
	Index      uint64          `json:",omitempty"`
	Node       *weft.Node      `json:",omitempty"`
	Instance   *weft.Instance  `json:",omitempty"`
	Tree       string          `json:",omitempty"`
	Entry      *registry.Entry `json:",omitempty"`
	SHA256     string          `json:",omitempty"`
}

// GET /v1/snapshot
func (a *api) snapshotSave(w http.ResponseWriter, q *query) error {
	var out bytes.Buffer
	index, err := a.writeSnapshot(&out)
	if err != nil {
		return weft.Errorf(weft.Internal, "save snapshot", "", "%w", err)
	}
	q.setHeaders(w, index)
	w.Header().Set("Content-Type", "application/x-gzip")
	w.WriteHeader(http.StatusOK)
	w.Write(out.Bytes()) // an error here means that the client has gone
	return nil
}

func (a *api) writeSnapshot(out io.Writer) (index uint64, err error) {
	zip := gzip.NewWriter(out)
	sum := sha256.New()
	rows := json.NewEncoder(io.MultiWriter(zip, sum))
	instances, index := a.registry.AllInstances()
	nodes, _ := a.registry.Nodes()
	err = rows.Encode(snapshotRow{Weft: snapshotFormat, Datacenter: a.registry.Datacenter(), Index: index})
	for i := 0; err == nil && i < len(nodes); i++ {
		err = rows.Encode(snapshotRow{Node: nodes[i]})
	}
	for i := 0; err == nil && i < len(instances); i++ {
		err = rows.Encode(snapshotRow{Instance: instances[i]})
	}
	for _, tree := range snapshotTrees {
		entries, at := a.registry.Keys(tree, "")
		index = max(index, at)
		for i := 0; err == nil && i < len(entries); i++ {
			err = rows.Encode(snapshotRow{Tree: tree, Entry: entries[i]})
		}
	}
	if err == nil {
		err = json.NewEncoder(zip).Encode(snapshotRow{SHA256: hex.EncodeToString(sum.Sum(nil))})
	}
	return index, errors.Join(err, zip.Close())
}

// PUT /v1/snapshot
//
// The snapshot is read and verified whole before anything is changed. Then only
// what differs is written, in several transactions: a reader may see some of it.
func (a *api) snapshotRestore(w http.ResponseWriter, q *query) error {
	body, err := readBody(w, q, maxSnapshot)
	if err != nil {
		return err
	}
	s, err := readSnapshot(body)
	if err != nil {
		return weft.Errorf(weft.Invalid, "restore snapshot", "", "%w", err)
	}
	return a.restore(q.request.Context(), s)
}

// snapshot is one that was read.
type snapshot struct {
	nodes     map[string]*weft.Node
	instances map[weft.InstanceKey]*weft.Instance
	trees     map[string]map[string]*registry.Entry
}

func readSnapshot(body []byte) (*snapshot, error) {
	zip, err := gzip.NewReader(bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("it is not compressed by gzip: %w", err)
	}
	s := &snapshot{nodes: make(map[string]*weft.Node), instances: make(map[weft.InstanceKey]*weft.Instance), trees: make(map[string]map[string]*registry.Entry)}
	for _, tree := range snapshotTrees {
		s.trees[tree] = make(map[string]*registry.Entry)
	}
	sum := sha256.New()
	lines := bufio.NewScanner(io.LimitReader(zip, maxSnapshotRaw))
	lines.Buffer(nil, maxSnapshotRow)
	for n := 1; lines.Scan(); n++ {
		var row snapshotRow
		if err := json.Unmarshal(lines.Bytes(), &row); err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		switch {
		case n == 1 && row.Weft != snapshotFormat:
			return nil, fmt.Errorf("it does not begin with %q: it is none of weft's", snapshotFormat)
		case row.SHA256 == "":
			sum.Write(append(lines.Bytes(), '\n'))
		case row.SHA256 != hex.EncodeToString(sum.Sum(nil)):
			return nil, errors.New("its checksum is wrong: it is damaged")
		default:
			return s, nil
		}
		if err := s.add(&row); err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
	}
	return nil, errors.Join(errors.New("it has no end"), lines.Err())
}

func (s *snapshot) add(row *snapshotRow) error {
	switch {
	case row.Node != nil:
		s.nodes[row.Node.Name] = row.Node
	case row.Instance != nil:
		s.instances[row.Instance.Key()] = row.Instance
	case row.Entry != nil:
		tree, known := s.trees[row.Tree]
		if !known {
			return fmt.Errorf("a snapshot has no tree %q", row.Tree)
		}
		tree[row.Entry.Key] = row.Entry
	}
	return nil
}

// restore makes the state that of the snapshot. The own node stays, and the servers.
func (a *api) restore(ctx context.Context, s *snapshot) error {
	b := batch{api: a, ctx: ctx}
	nodes, _ := a.registry.Nodes()
	own := a.registry.LocalNode().Name
	for _, n := range nodes {
		if s.nodes[n.Name] == nil && n.Name != own && nodeExtraOf(n).Version == "" {
			b.add(registry.Op{Node: &registry.NodeOp{Verb: "delete", Node: weft.Node{Name: n.Name}}}, 0)
		}
	}
	for _, n := range s.nodes {
		if n.Name != own {
			b.add(registry.Op{Node: &registry.NodeOp{Verb: "set", Node: *n}}, 1<<10)
		}
	}
	instances, _ := a.registry.AllInstances()
	for _, in := range instances {
		if s.instances[in.Key()] == nil && s.nodes[in.Node] != nil && in.Dialect != serverDialect {
			b.add(registry.Op{Service: &registry.InstanceOp{Verb: "delete", Instance: weft.Instance{Node: in.Node, ID: in.ID, Service: in.Service}}}, 0)
		}
	}
	for _, in := range s.instances {
		if s.nodes[in.Node] != nil && in.Dialect != serverDialect {
			b.add(registry.Op{Service: &registry.InstanceOp{Verb: "set", Instance: *in}}, 1<<10)
		}
	}
	for tree, want := range s.trees {
		entries, _ := a.registry.Keys(tree, "")
		have := make(map[string]*registry.Entry, len(entries))
		for _, e := range entries {
			have[e.Key] = e
			if want[e.Key] == nil {
				b.add(registry.Op{Key: &registry.KeyOp{Tree: tree, Verb: "delete", Key: e.Key}}, len(e.Key))
			}
		}
		for key, e := range want {
			if old := have[key]; old == nil || old.Flags != e.Flags || !bytes.Equal(old.Value, e.Value) {
				b.add(registry.Op{Key: &registry.KeyOp{Tree: tree, Verb: "set", Key: key, Value: e.Value, Flags: e.Flags}}, len(key)+len(e.Value))
			}
		}
	}
	b.flush()
	return b.err
}

// batch collects operations to transactions of a bearable size.
type batch struct {
	api  *api
	ctx  context.Context
	ops  []registry.Op
	size int // bytes, about
	err  error
}

func (b *batch) add(op registry.Op, size int) {
	if len(b.ops) == maxTxnOps || b.size+size > 1<<20 {
		b.flush()
	}
	b.ops, b.size = append(b.ops, op), b.size+size
}

func (b *batch) flush() {
	if b.err == nil && len(b.ops) > 0 {
		_, b.err = b.api.transact(b.ctx, "restore", "snapshot", b.ops)
	}
	b.ops, b.size = b.ops[:0], 0
}
