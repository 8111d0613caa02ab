package consul

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/registry"
)

// maxValue is the limit of a key's value, as in Consul.
const maxValue = 512 << 10

func (a *api) kvEndpoints() endpoints {
	return endpoints{"kv/": {get: a.kvGet, put: a.kvPut, delete: a.kvDelete}}
}

// pairRecord is a key as the API shows it. Value is base64, and null when empty.
type pairRecord struct {
	LockIndex   uint64
	Key         string
	Flags       uint64
	Value       []byte
	Session     string `json:",omitempty"`
	Namespace   string `json:",omitempty"`
	CreateIndex uint64
	ModifyIndex uint64
}

func (q *query) pair(e *registry.Entry) pairRecord {
	p := pairRecord{
		LockIndex: e.LockIndex, Key: e.Key, Flags: e.Flags, Value: e.Value, Session: e.Session,
		CreateIndex: e.CreateIndex, ModifyIndex: e.ModifyIndex,
	}
	if q.namespace != weft.DefaultNamespace {
		p.Namespace = q.namespace
	}
	if len(p.Value) == 0 {
		p.Value = nil
	}
	return p
}

// tree is where the keys of the request's namespace are.
func (q *query) tree() string { return treeOf(q.namespace) }

func treeOf(namespace string) string {
	if namespace == "" || namespace == weft.DefaultNamespace {
		return registry.KV
	}
	return registry.KV + "@" + namespace
}

// GET /v1/kv/{key}?recurse&raw&keys&separator=
func (a *api) kvGet(w http.ResponseWriter, q *query) error {
	keys, err := q.flag("keys")
	if err != nil {
		return err
	}
	recurse, err := q.flag("recurse")
	if err != nil {
		return err
	}
	switch {
	case keys:
		return a.kvKeys(w, q)
	case recurse:
		return a.kvTree(w, q)
	case q.argument == "":
		return weft.Errorf(weft.Invalid, "read key", "", "Missing key name")
	}
	raw, err := q.flag("raw")
	if err != nil {
		return err
	}
	var e *registry.Entry
	body, index, err := a.settle(q, view{topic: registry.KeyTopic(q.tree(), q.argument), build: func() (any, uint64) {
		var index uint64
		if e, index = a.registry.Key(q.tree(), q.argument); e == nil || raw {
			return nil, index
		}
		return []pairRecord{q.pair(e)}, index
	}})
	if err != nil {
		return err
	}
	q.setHeaders(w, index)
	switch {
	case e == nil:
		w.WriteHeader(http.StatusNotFound)
	case raw:
		writeRaw(w, e.Value)
	default:
		writeJSON(w, http.StatusOK, body)
	}
	return nil
}

// writeRaw answers a value as it is. Nobody shall take it for a page of ours.
func writeRaw(w http.ResponseWriter, value []byte) {
	h := w.Header()
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Security-Policy", "sandbox")
	h.Set("Content-Length", strconv.Itoa(len(value)))
	w.WriteHeader(http.StatusOK)
	w.Write(value) // an error here means that the client has gone
}

func (a *api) kvTree(w http.ResponseWriter, q *query) error {
	return a.answerFound(w, q, view{topic: registry.KeysTopic(q.tree(), q.argument), build: func() (any, uint64) {
		entries, index := a.readableKeys(q, q.argument)
		out := make([]pairRecord, 0, len(entries))
		for _, e := range entries {
			out = append(out, q.pair(e))
		}
		return out, index
	}})
}

// kvKeys lists keys below a prefix, and with a separator only up to the first one
// behind it. Their values may change without the list.
func (a *api) kvKeys(w http.ResponseWriter, q *query) error {
	separator := q.params.Get("separator")
	return a.answerFound(w, q, view{topic: registry.KeysTopic(q.tree(), q.argument), part: true, build: func() (any, uint64) {
		entries, index := a.readableKeys(q, q.argument)
		out := make([]string, 0, len(entries))
		for _, e := range entries {
			key := e.Key
			if at := strings.Index(key[len(q.argument):], separator); separator != "" && at >= 0 {
				key = key[:len(q.argument)+at+len(separator)]
			}
			if len(out) == 0 || out[len(out)-1] != key {
				out = append(out, key)
			}
		}
		return out, index
	}})
}

// answerFound answers a list, and 404 without a body for an empty one.
func (a *api) answerFound(w http.ResponseWriter, q *query, v view) error {
	body, index, err := a.settle(q, v)
	if err != nil {
		return err
	}
	q.setHeaders(w, index)
	if string(body) == "[]\n" {
		w.WriteHeader(http.StatusNotFound)
		return nil
	}
	q.writeAnswer(w, http.StatusOK, body)
	return nil
}

// PUT /v1/kv/{key}?flags=&cas=&acquire=&release=
func (a *api) kvPut(w http.ResponseWriter, q *query) error {
	if q.argument == "" {
		return weft.Errorf(weft.Invalid, "put key", "", "Missing key name")
	}
	if err := q.onlyOne("cas", "acquire", "release"); err != nil {
		return err
	}
	op := registry.KeyOp{Tree: q.tree(), Verb: "set", Key: q.argument}
	var err error
	if op.Flags, err = q.number("flags"); err != nil {
		return err
	}
	switch {
	case q.params.Has("cas"):
		op.Verb = "cas"
		op.Index, err = q.number("cas")
	case q.params.Has("acquire"):
		op.Verb, op.Session = "lock", q.params.Get("acquire")
	case q.params.Has("release"):
		op.Verb, op.Session = "unlock", q.params.Get("release")
	}
	if err != nil {
		return err
	}
	if op.Value, err = readBody(w, q, maxValue); err != nil {
		return err
	}
	return a.changeKey(w, q, op)
}

// DELETE /v1/kv/{key}?recurse&cas=
func (a *api) kvDelete(w http.ResponseWriter, q *query) error {
	if err := q.onlyOne("recurse", "cas"); err != nil {
		return err
	}
	op := registry.KeyOp{Tree: q.tree(), Verb: "delete", Key: q.argument}
	recurse, err := q.flag("recurse")
	switch {
	case err != nil:
		return err
	case recurse:
		op.Verb = "delete-tree"
	case q.argument == "":
		return weft.Errorf(weft.Invalid, "delete key", "", "Missing key name")
	case q.params.Has("cas"):
		op.Verb = "delete-cas"
		if op.Index, err = q.number("cas"); err != nil {
			return err
		}
	}
	return a.changeKey(w, q, op)
}

// changeKey does one operation on a key, and answers whether it was done.
func (a *api) changeKey(w http.ResponseWriter, q *query, op registry.KeyOp) error {
	result, err := a.registry.Transact(q.request.Context(), registry.TxnRequest{Ops: []registry.Op{{Key: &op}}})
	if err != nil {
		return err
	}
	done := len(result.Errors) == 0
	if !done {
		switch e := result.Errors[0]; {
		case strings.HasPrefix(e.What, "invalid session"):
			return &plainError{http.StatusInternalServerError, e.What} // as clients know it: not their request is wrong, but its time
		case e.Kind != weft.Conflict && e.Kind != weft.NotFound:
			return weft.Errorf(e.Kind, op.Verb, "key "+op.Key, "%s", e.What)
		}
	}
	b, err := q.marshal(done)
	if err == nil {
		writeJSON(w, http.StatusOK, b)
	}
	return err
}

// plainError is answered as it is: a client looks at both.
type plainError struct {
	status int
	text   string
}

func (e *plainError) Error() string { return e.text }

// onlyOne refuses a request with more than one of these parameters.
func (q *query) onlyOne(names ...string) error {
	var given []string
	for _, name := range names {
		if q.params.Has(name) {
			given = append(given, name)
		}
	}
	if len(given) > 1 {
		return weft.Errorf(weft.Invalid, "read query", "", "Conflicting flags: %s", strings.Join(given, ", "))
	}
	return nil
}

// number reads a parameter, 0 when it is not there.
func (q *query) number(name string) (uint64, error) {
	if !q.params.Has(name) {
		return 0, nil
	}
	n, err := strconv.ParseUint(q.params.Get(name), 10, 64)
	if err != nil {
		return 0, weft.Errorf(weft.Invalid, "read "+name, q.params.Get(name), "want a number")
	}
	return n, nil
}

// readBody reads a body of at most limit bytes.
func readBody(w http.ResponseWriter, q *query, limit int64) ([]byte, error) {
	r := q.request
	if r.ContentLength > limit {
		return nil, tooLarge(r, limit)
	}
	b, err := io.ReadAll(http.MaxBytesReader(w, r.Body, limit))
	if tooBig := (*http.MaxBytesError)(nil); errors.As(err, &tooBig) {
		return nil, tooLarge(r, limit)
	}
	if err != nil {
		return nil, weft.Errorf(weft.Invalid, "read body", r.URL.Path, "%w", err)
	}
	return b, nil
}

// firstError is the error of a transaction that was refused, for those who asked
// for one thing and know nothing of transactions.
func firstError(op, thing string, result registry.TxnResult) error {
	if len(result.Errors) == 0 {
		return nil
	}
	e := result.Errors[0]
	return weft.Errorf(e.Kind, op, thing, "%s", e.What)
}

// transact does operations that must not fail by themselves.
func (a *api) transact(ctx context.Context, op, thing string, ops []registry.Op) (registry.TxnResult, error) {
	result, err := a.registry.Transact(ctx, registry.TxnRequest{Ops: ops})
	if err == nil {
		err = firstError(op, thing, result)
	}
	return result, err
}
