package control

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	networking "istio.io/api/networking/v1alpha3"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/control/resource"
	"github.com/weftmesh/weft/store"
)

// Resources are kept under "resources/<kind>/<namespace>/<name>".
const resourcePrefix = "resources/"

func resourceKey(kind, namespace, name string) string {
	return resourcePrefix + kind + "/" + namespace + "/" + name
}

func keyOf(r *resource.Resource) string { return resourceKey(r.Kind, r.Namespace, r.Name) }

// ApplyOptions of Apply.
type ApplyOptions struct {
	Partial bool // apply the good documents though others are bad
	DryRun  bool // check and compare only
}

// ApplyAction is what became of one document.
type ApplyAction string

// What may become of a document.
const (
	Created   ApplyAction = "created"
	Updated   ApplyAction = "updated"
	Unchanged ApplyAction = "unchanged"
)

// ApplyChange is one document of an Apply.
type ApplyChange struct {
	Kind      string         `json:"kind"`
	Namespace string         `json:"namespace"`
	Name      string         `json:"name"`
	Action    ApplyAction    `json:"action"`
	Source    weft.SourceRef `json:"source"`
}

// ApplyResult is what an Apply did, or would do.
type ApplyResult struct {
	Index    uint64        `json:"index"` // at which the change is visible
	Changes  []ApplyChange `json:"changes"`
	Problems weft.Problems `json:"problems,omitempty"` // warnings; with Partial also the errors of what was left out
}

// Apply checks files and writes their resources in one transaction; it returns
// when they are compiled. Without Partial any error refuses all: the error is then
// weft.Invalid around weft.Problems. What is the same already is not changed, but
// where it was written is noted afresh.
func (c *Control) Apply(ctx context.Context, files []resource.File, o ApplyOptions) (ApplyResult, error) {
	parsed, problems := resource.Parse(files)
	if bad := problems.Errors(); len(bad) > 0 && !o.Partial {
		return ApplyResult{}, &weft.Error{Kind: weft.Invalid, Op: "apply", Thing: counted(len(bad), "problem"), Err: problems}
	}
	c.writing.Lock() // so that what is compared is what is replaced
	defer c.writing.Unlock()
	changes, txn, after := c.compare(parsed)
	if bad := after.Conflicts(refs(parsed)); len(bad) > 0 {
		problems = append(problems, bad...)
		if !o.Partial {
			return ApplyResult{}, &weft.Error{Kind: weft.Invalid, Op: "apply", Thing: counted(len(bad), "problem"), Err: problems}
		}
		parsed = slices.DeleteFunc(parsed, func(r *resource.Resource) bool {
			return slices.ContainsFunc(bad, func(p weft.Problem) bool { return sourceRef(p) == r.Ref() })
		})
		changes, txn, after = c.compare(parsed)
	}
	result := ApplyResult{Index: c.Index(), Changes: changes, Problems: append(problems, c.warningsOf(parsed, after)...)}
	if o.DryRun || len(txn.Put) == 0 {
		return result, nil
	}
	c.expect(parsed)
	defer c.expect(nil)
	rev, err := c.commit(ctx, "apply", counted(len(txn.Put), "resource"), txn)
	if err != nil {
		return ApplyResult{}, err
	}
	result.Index = uint64(rev)
	return result, nil
}

// expect keeps what is about to be written, so that it need not be read again when it
// comes back from the store.
func (c *Control) expect(written []*resource.Resource) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.written = make(map[string]*resource.Resource, len(written))
	for _, r := range written {
		c.written[keyOf(r)] = r
	}
}

func counted(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// compare finds what becomes of each parsed resource, what is to be written, and
// the set that there would be then.
func (c *Control) compare(parsed []*resource.Resource) (changes []ApplyChange, txn store.Txn, after *resource.Set) {
	c.mu.Lock()
	before := c.resources // replaced as a whole, never changed
	set := c.set.Load()
	c.mu.Unlock()
	var put []*resource.Resource
	for _, r := range parsed {
		key := keyOf(r)
		change := ApplyChange{Kind: r.Kind, Namespace: r.Namespace, Name: r.Name, Action: Updated, Source: r.Source}
		old := before[key]
		switch {
		case old == nil:
			change.Action = Created
		case sameManifest(old, r):
			change.Action = Unchanged
		}
		changes = append(changes, change)
		if old == nil || !bytes.Equal(old.JSON, r.JSON) {
			txn.Put = append(txn.Put, store.KV{Key: key, Value: r.JSON})
			next := *r
			if old != nil {
				next.Created = old.Created
			}
			put = append(put, &next)
		}
	}
	after, _ = set.With(put, nil)
	return changes, txn, after
}

// sameManifest reports whether two resources say the same, wherever they were
// written.
func sameManifest(a, b *resource.Resource) bool {
	return a.APIVersion == b.APIVersion && a.Ref() == b.Ref() && maps.Equal(a.Labels, b.Labels) &&
		maps.Equal(a.Annotations, b.Annotations) && a.SameSpec(b)
}

// warningsOf are the warnings of a set about the resources given.
func (c *Control) warningsOf(applied []*resource.Resource, set *resource.Set) weft.Problems {
	known := compiler{registry: c.registry}
	return set.WarningsAbout(refs(applied), known.exists)
}

func refs(applied []*resource.Resource) []resource.Ref {
	out := make([]resource.Ref, len(applied))
	for i, r := range applied {
		out[i] = r.Ref()
	}
	return out
}

func sourceRef(p weft.Problem) resource.Ref {
	return resource.Ref{Kind: p.Source.Kind, Namespace: p.Source.Namespace, Name: p.Source.Name}
}

// Delete removes one resource, and returns when nothing is compiled of it any
// more. The error is weft.NotFound when it is not there.
func (c *Control) Delete(ctx context.Context, kind, namespace, name string) (index uint64, err error) {
	c.writing.Lock()
	defer c.writing.Unlock()
	key := resourceKey(kind, namespace, name)
	thing := kind + " " + namespace + "/" + name
	c.mu.Lock()
	_, found := c.resources[key]
	c.mu.Unlock()
	if !found {
		return 0, weft.Errorf(weft.NotFound, "delete", thing, "there is no such resource")
	}
	rev, err := c.commit(ctx, "delete", thing, store.Txn{Delete: []string{key}})
	return uint64(rev), err
}

// commit writes, and waits until the change came back by the watch and is
// compiled: whoever reads after it sees it.
func (c *Control) commit(ctx context.Context, op, thing string, txn store.Txn) (rev int64, err error) {
	rev, err = c.store.Commit(ctx, txn)
	if err != nil {
		return 0, &weft.Error{Kind: weft.KindOf(err), Op: op, Thing: thing, Err: err}
	}
	for {
		c.mu.Lock()
		done, moved := c.compiled >= rev, c.moved
		c.mu.Unlock()
		if done {
			return rev, nil
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return 0, &weft.Error{Kind: weft.Unavailable, Op: op, Thing: thing, Err: fmt.Errorf("it is written, but not compiled yet: %w", ctx.Err())}
		case <-c.ctx.Done():
			return 0, &weft.Error{Kind: weft.Unavailable, Op: op, Thing: thing, Err: errClosed}
		}
	}
}

// Resources returns every resource, sorted by kind, namespace and name.
func (c *Control) Resources() []resource.Resource {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := make([]resource.Resource, 0, len(c.resources))
	for _, r := range c.resources {
		out = append(out, *r)
	}
	slices.SortFunc(out, func(a, b resource.Resource) int {
		return cmp.Or(strings.Compare(a.Kind, b.Kind), strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name))
	})
	return out
}

// load reads all resources. One that this weft cannot read is left out, and
// logged: the others go on.
func (c *Control) load(ctx context.Context) (rev int64, err error) {
	kvs, rev, err := c.store.List(ctx, resourcePrefix)
	if err != nil {
		return 0, fmt.Errorf("load the resources: %w", err)
	}
	next := make(map[string]*resource.Resource, len(kvs))
	var put []*resource.Resource
	for _, kv := range kvs {
		if r := c.decode(kv); r != nil {
			next[kv.Key] = r
			put = append(put, r)
		}
	}
	var gone []resource.Ref
	for key, r := range c.resources {
		if next[key] == nil {
			gone = append(gone, r.Ref())
		}
	}
	c.replace(next, put, gone, everything(), rev)
	return rev, nil
}

func (c *Control) decode(kv store.KV) *resource.Resource {
	c.mu.Lock()
	mine := c.written[kv.Key]
	c.mu.Unlock()
	if mine != nil && bytes.Equal(mine.JSON, kv.Value) {
		r := *mine
		r.Created = kv.CreateRev
		return &r
	}
	r, err := resource.Decode(kv.Value, weft.SourceRef{})
	if err == nil && keyOf(r) != kv.Key {
		err = weft.Errorf(weft.Internal, "decode", keyOf(r), "it is stored under %s", kv.Key)
	}
	if err != nil {
		c.log.Error("control: a stored resource is left out", "key", kv.Key, "error", err)
		return nil
	}
	r.Created = kv.CreateRev
	return r
}

// follow keeps the resources up to date until Close, or until the store closes.
func (c *Control) follow(rev int64) {
	batches := c.store.Watch(c.ctx, resourcePrefix, rev)
	for c.ctx.Err() == nil {
		b, ok := <-batches
		switch {
		case !ok:
			if c.ctx.Err() == nil {
				c.log.Error("control: the store is closed; resources do not change any more")
			}
			return
		case b.Err != nil:
			c.log.Warn("control: loading every resource again", "reason", b.Err)
			rev, err := c.load(c.ctx)
			if err != nil {
				c.log.Error("control: resources do not change any more", "error", err)
				return
			}
			batches = c.store.Watch(c.ctx, resourcePrefix, rev)
		default:
			c.take(b)
		}
	}
}

// take applies one batch of the watch. c.resources is written by this goroutine
// only, so that it may be read here without the lock.
func (c *Control) take(b store.Batch) {
	next := maps.Clone(c.resources)
	n := concern{kinds: make(map[string]bool), names: make(map[string]bool)}
	changed := make(map[string]bool)
	for _, ev := range b.Events {
		n.add(next[ev.Key])
		changed[ev.Key] = true
		delete(next, ev.Key)
		if ev.Deleted {
			continue
		}
		if r := c.decode(ev.KV); r != nil {
			next[ev.Key] = r
			n.add(r)
		}
	}
	var put []*resource.Resource
	var gone []resource.Ref
	for key := range changed {
		for _, attached := range append(attachedTo(c.resources[key]), attachedTo(next[key])...) {
			n.add(next[attached])
		}
		if next[key] != nil {
			put = append(put, next[key])
		} else if c.resources[key] != nil {
			gone = append(gone, c.resources[key].Ref())
		}
	}
	c.replace(next, put, gone, n, b.Rev)
}

// everything concerns all entries.
func everything() concern {
	return concern{kinds: map[string]bool{"VirtualService": true, "DestinationRule": true, "Gateway": true, "AuthorizationPolicy": true,
		"ResiliencePolicy": true, "BreakerOverride": true}}
}

// add notes a resource that came or went; nil is none. What a VirtualService is for
// gateways only, resource.Set tells.
func (n *concern) add(r *resource.Resource) {
	if r == nil {
		return
	}
	var hosts []string
	switch spec := r.Spec.(type) {
	case *networking.VirtualService:
		if !resource.InMesh(spec) {
			return
		}
		hosts = spec.GetHosts()
	case *networking.DestinationRule:
		hosts = []string{spec.GetHost()}
	case *resource.ResiliencePolicy:
		for _, t := range spec.Targets {
			hosts = append(hosts, t.Name) // of a VirtualService take says what it concerns
		}
	case *resource.BreakerOverride:
		hosts = []string{r.Name}
	}
	n.kinds[r.Kind] = true
	for _, host := range hosts {
		if strings.HasPrefix(host, "*") {
			n.names = nil
		}
		if n.names != nil {
			n.names[firstLabel(host)] = true
		}
	}
}

// attachedTo are the keys of the VirtualServices that a ResiliencePolicy is for; of
// any other resource, and of nil, none.
func attachedTo(r *resource.Resource) []string {
	if r == nil {
		return nil
	}
	var out []string
	if policy, ok := r.Spec.(*resource.ResiliencePolicy); ok {
		for _, t := range policy.Targets {
			if t.Kind != "Service" {
				out = append(out, resourceKey(t.Kind, r.Namespace, t.Name))
			}
		}
	}
	return out
}

// replace makes next the resources, put and gone being what is not as before, and
// compiles again what that concerns.
func (c *Control) replace(next map[string]*resource.Resource, put []*resource.Resource, gone []resource.Ref, n concern, rev int64) {
	before := c.set.Load()
	if before == nil {
		before = resource.NewSet(nil)
	}
	set, tables := before.With(put, gone)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.resources = next
	c.set.Store(set)
	affected := c.catalogue.affected(n)
	for _, t := range tables {
		c.gatewayChanged(t, affected)
	}
	c.advance(uint64(rev), time.Now(), slices.Collect(maps.Keys(affected)))
	c.compiled = rev
	close(c.moved)
	c.moved = make(chan struct{})
}
