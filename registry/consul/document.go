package consul

import (
	"context"
	"encoding/json"
	"net/http"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/registry"
)

// What this dialect has to keep lies in trees of the registry's own store of keys,
// each document as JSON. A document's indexes are those of its entry.
const (
	tokenTree    = "acl/token"   // by accessor
	secretTree   = "acl/secret"  // SHA-256 of a token's secret -> its accessor
	policyTree   = "acl/policy"  // by id
	roleTree     = "acl/role"    // by id
	methodTree   = "acl/method"  // by name
	bindingTree  = "acl/binding" // by id
	aclStateTree = "acl/state"   // the one key bootstrapKey
	queryTree    = "query"       // by id
	configTree   = "config"      // by kind/namespace/name
)

// document is one of them, decoded.
type document[T any] struct {
	Value       T
	Key         string
	Session     string
	CreateIndex uint64
	ModifyIndex uint64
}

// find returns a document, nil when it is not there, with the index of its topic.
func find[T any](a *api, tree, key string) (*document[T], uint64) {
	e, index := a.registry.Key(tree, key)
	if e == nil {
		return nil, index
	}
	return decodeEntry[T](a, tree, e), index
}

// findAll returns the documents whose keys begin with prefix, sorted by key.
func findAll[T any](a *api, tree, prefix string) ([]*document[T], uint64) {
	entries, index := a.registry.Keys(tree, prefix)
	out := make([]*document[T], 0, len(entries))
	for _, e := range entries {
		if d := decodeEntry[T](a, tree, e); d != nil {
			out = append(out, d)
		}
	}
	return out, index
}

// decodeEntry returns nil for what cannot be read, which is then as if it were not
// there: a token that cannot be read allows nothing.
func decodeEntry[T any](a *api, tree string, e *registry.Entry) *document[T] {
	d := &document[T]{Key: e.Key, Session: e.Session, CreateIndex: e.CreateIndex, ModifyIndex: e.ModifyIndex}
	if err := json.Unmarshal(e.Value, &d.Value); err != nil {
		a.logger.Error("consul: a document that is kept cannot be read", "tree", tree, "key", e.Key, "error", err)
		return nil
	}
	return d
}

// index returns the index that a tree has below a prefix.
func (a *api) index(ctx context.Context, tree, prefix string) uint64 {
	return a.registry.Wait(ctx, registry.KeysTopic(tree, prefix), 0)
}

// change is a set of writes that happen together, or not at all.
type change struct {
	ops []registry.Op
	err error // the first that could not be encoded
}

// put writes a document. Unless anyway it must still be as it was: modified at
// index, or absent when that is 0.
func (c *change) put(tree, key string, index uint64, value any) {
	c.write("cas", tree, key, index, value)
}

// putAnyway writes a document whatever was there.
func (c *change) putAnyway(tree, key string, value any) { c.write("set", tree, key, 0, value) }

func (c *change) write(verb, tree, key string, index uint64, value any) {
	b, err := json.Marshal(value)
	if err != nil && c.err == nil {
		c.err = weft.Errorf(weft.Internal, "write document", tree+"/"+key, "%w", err)
	}
	c.ops = append(c.ops, registry.Op{Key: &registry.KeyOp{Tree: tree, Verb: verb, Key: key, Value: b, Index: index}})
}

// bind locks a document by a session, with which it then goes, or unlocks it.
func (c *change) bind(verb, tree, key, session string, value any) {
	c.write(verb, tree, key, 0, value)
	c.ops[len(c.ops)-1].Key.Session = session
}

// remove deletes a document that is still as it was.
func (c *change) remove(tree, key string, index uint64) {
	c.ops = append(c.ops, registry.Op{Key: &registry.KeyOp{Tree: tree, Verb: "delete-cas", Key: key, Index: index}})
}

// removeAnyway deletes a document, if it is there.
func (c *change) removeAnyway(tree, key string) {
	c.ops = append(c.ops, registry.Op{Key: &registry.KeyOp{Tree: tree, Verb: "delete", Key: key}})
}

// commit does the writes. done is false when something was not as it was: then
// nothing was done.
func (a *api) commit(ctx context.Context, c *change) (done bool, index uint64, err error) {
	if c.err != nil {
		return false, 0, c.err
	}
	result, err := a.registry.Transact(ctx, registry.TxnRequest{Ops: c.ops})
	if err != nil {
		return false, 0, err
	}
	return len(result.Errors) == 0, result.Index, nil
}

// maxTries bounds how often a write is planned again because somebody else was
// faster.
const maxTries = 16

// update plans a write on what is there, and does it. When somebody else changed it
// meanwhile, it plans again, on what they wrote: this server may not have it yet.
func (a *api) update(ctx context.Context, op, thing string, plan func(c *change) error) (index uint64, err error) {
	for try := range maxTries {
		if try > 0 {
			if err := a.catchUp(ctx); err != nil {
				return 0, err
			}
		}
		var c change
		if err := plan(&c); err != nil {
			return 0, err
		}
		done, index, err := a.commit(ctx, &c)
		if err != nil || done {
			return index, err
		}
	}
	return 0, weft.Errorf(weft.Conflict, op, thing, "others write it all the time")
}

// decodeOptional is decode for a body that may be missing.
func decodeOptional(w http.ResponseWriter, q *query, v any) error {
	if q.request.ContentLength == 0 {
		return nil
	}
	return decode(w, q, v)
}
