package registry

import (
	"context"
	"net/url"
	"slices"
	"time"

	"github.com/weftmesh/weft"
)

// Session is a promise to be there, which locks on keys are bound to. It ends when
// its TTL passes without a renewal, when one of its checks is critical or goes,
// when its node goes, or when it is destroyed. What a check or a node does to it
// happens at the same index.
//
// A session lives for twice its TTL after it was made or renewed, as Consul's
// clients count on: they renew in half of it and want to miss one. When another
// server becomes the writer, it counts from the beginning; a pause of the writer is
// not counted.
type Session struct {
	ID            string         `json:"id"` // UUID; made when empty
	Name          string         `json:"name,omitempty"`
	Node          string         `json:"node"`                    // the own node when empty
	NodeChecks    []string       `json:"nodeChecks"`              // ids of checks on the node; nil is serfHealth, empty is none
	ServiceChecks []ServiceCheck `json:"serviceChecks,omitempty"` // checks of its instances
	TTL           weft.Duration  `json:"ttl,omitempty"`           // 0 never lapses
	LockDelay     weft.Duration  `json:"lockDelay,omitempty"`     // how long a key cannot be locked after the session lost it
	DeleteKeys    bool           `json:"deleteKeys,omitempty"`    // at its end: its keys go; else they are released
	CreateIndex   uint64         `json:"createIndex,omitempty"`
	ModifyIndex   uint64         `json:"modifyIndex,omitempty"`
}

// ServiceCheck names a check of an instance that a session is bound to.
type ServiceCheck struct {
	ID        string `json:"id"`
	Namespace string `json:"namespace,omitempty"`
}

// Sessions are kept as keys in trees of their own, which Transact does not touch.
const (
	sessionTree = "session"     // id -> Session as JSON
	bySession   = "sessionnode" // <node, escaped>/<id> -> nothing
)

func nodeSessions(node string) string { return url.PathEscape(node) + "/" }

// Session returns a session, nil when it is not there, with the index of SessionTopic.
func (r *Registry) Session(id string) (*Session, uint64) {
	r.view.mu.RLock()
	defer r.view.mu.RUnlock()
	return r.view.keys.session(id), r.view.indexLocked(SessionTopic(id))
}

func (k *keyspace) session(id string) *Session {
	if l := k.leaf(treeRef{sessionTree, id}); l != nil {
		return l.session
	}
	return nil
}

// Sessions returns the sessions of a node, or all of them when node is "", sorted
// by id, with the index of SessionsTopic.
func (r *Registry) Sessions(node string) ([]*Session, uint64) {
	r.view.mu.RLock()
	defer r.view.mu.RUnlock()
	return r.view.keys.sessionsOn(node), r.view.indexLocked(SessionsTopic(node))
}

// sessionsOn returns the sessions of a node, or all of them when node is "".
func (k *keyspace) sessionsOn(node string) (list []*Session) {
	if node == "" {
		if top := k.trees[sessionTree].top; top != nil {
			top.each(func(l *leaf) { list = append(list, l.session) })
		}
		return list
	}
	prefix := nodeSessions(node)
	if b, _ := k.trees[bySession].under(prefix); b != nil {
		b.each(func(l *leaf) { list = append(list, k.session(l.key[len(prefix):])) })
	}
	return list
}

// SessionTopic changes when the session comes or goes. Renewals are not changes.
func SessionTopic(id string) Topic { return KeyTopic(sessionTree, id) }

// SessionsTopic changes when a session of the node comes or goes; of any node, when
// node is "".
func SessionsTopic(node string) Topic {
	if node == "" {
		return KeysTopic(sessionTree, "")
	}
	return KeysTopic(bySession, nodeSessions(node))
}

// CreateSession makes a session, and returns it as it is kept. The error is of Kind
// Invalid when its node or one of its checks is not there, or the check is critical.
func (r *Registry) CreateSession(ctx context.Context, s Session) (Session, error) {
	s.Node = orElse(s.Node, r.node)
	s.ID = orElse(s.ID, newUUID())
	if s.NodeChecks == nil {
		s.NodeChecks = []string{"serfHealth"}
	}
	s.CreateIndex, s.ModifyIndex = 0, 0
	var f faults
	f.name("id", s.ID, maxID)
	f.name("node", s.Node, maxName)
	if len(s.Name) > maxID {
		f.add("name", "is %d bytes long; use at most %d", len(s.Name), maxID)
	}
	if s.TTL < 0 || s.LockDelay < 0 {
		f.add("ttl, lockDelay", "are negative; use times such as \"15s\", or 0 for none")
	}
	if n := len(s.NodeChecks) + len(s.ServiceChecks); n > maxSessionChecks {
		f.add("checks", "are %d; use at most %d", n, maxSessionChecks)
	}
	if err := f.err("create", "session "+s.ID); err != nil {
		return Session{}, err
	}
	return r.operations.createSession(ctx, s)
}

const maxSessionChecks = 64

func (r *Registry) createSessionHere(ctx context.Context, s Session) (Session, error) {
	record, err := encode("session "+s.ID, s)
	if err != nil {
		return Session{}, err
	}
	var drafted *draft
	used, err := r.once(ctx, "create", "session "+s.ID, func(d *draft) error {
		drafted = d
		return planSession(d, &s, record)
	})
	if err != nil {
		return Session{}, err
	}
	if used == 0 {
		used = drafted.rev
	}
	s.CreateIndex, s.ModifyIndex = uint64(used), uint64(used)
	return s, nil
}

func planSession(d *draft, s *Session, record []byte) error {
	// Texts as Consul's clients know them.
	thing := "session " + s.ID
	if d.node(s.Node) == nil {
		return weft.Errorf(weft.Invalid, "create", thing, "Missing node registration")
	}
	if d.keys.session(s.ID) != nil {
		return weft.Errorf(weft.Conflict, "create", thing, "there is such a session already")
	}
	for id := range s.checks {
		switch c := d.check(checkKey{s.Node, id}); {
		case c == nil:
			return weft.Errorf(weft.Invalid, "create", thing, "Missing check '%s' registration", id)
		case c.Status >= weft.Critical:
			return weft.Errorf(weft.Invalid, "create", thing, "Check '%s' is in critical state", id)
		}
	}
	own := *s
	own.NodeChecks, own.ServiceChecks = slices.Clone(s.NodeChecks), slices.Clone(s.ServiceChecks)
	d.putLeaf(sessionTree, &leaf{key: s.ID, entry: &Entry{Key: s.ID, Value: record}, session: &own})
	at := nodeSessions(s.Node) + s.ID
	d.putLeaf(bySession, &leaf{key: at, entry: &Entry{Key: at}})
	return nil
}

// checks yields the ids of all checks that the session is bound to.
func (s *Session) checks(yield func(id string) bool) {
	for _, id := range s.NodeChecks {
		if !yield(id) {
			return
		}
	}
	for _, c := range s.ServiceChecks {
		if !yield(c.ID) {
			return
		}
	}
}

// check returns a check of a node or of an instance on it, nil when it is not there.
func (d *draft) check(k checkKey) *weft.Check {
	o := d.owner(k)
	if !o.ok {
		return nil
	}
	if o.instance == "" {
		return findCheck(d.node(k.node).Checks, k.id)
	}
	return findCheck(d.instance(weft.InstanceKey{Node: k.node, ID: o.instance}).Checks, k.id)
}

// DestroySession ends a session, and reports whether it was there.
func (r *Registry) DestroySession(ctx context.Context, id string) (bool, error) {
	return r.operations.destroySession(ctx, id)
}

func (r *Registry) destroySessionHere(ctx context.Context, id string) (there bool, err error) {
	for first := true; ; first = false {
		done := false
		used, err := r.once(ctx, "destroy", "session "+id, func(d *draft) error {
			s := d.keys.session(id)
			if first {
				there = s != nil
			}
			done = s == nil || d.end(s)
			switch {
			case !done:
				d.outcome = part
			case s == nil:
				d.outcome = nothing
			}
			return nil
		})
		if err != nil || used != 0 {
			return used != 0, err
		}
		if done {
			return there, nil
		}
	}
}

// maxEnding is how many bytes the ends of sessions may add to one transaction.
// Nearly all sessions end at one index; the keys of one that holds more are
// released in several transactions, and the session goes with the last.
const maxEnding = 1 << 20

// end ends a session and releases its keys. What a dialect keeps locked by a session is
// bound to it, and goes. It is false when there was no room for
// all of them, and the rest has to be done in another draft.
func (d *draft) end(s *Session) bool {
	var until int64
	if s.LockDelay > 0 {
		until = d.keys.now + time.Duration(s.LockDelay).Milliseconds()
	}
	for _, key := range d.keys.locked(s.ID) {
		if d.keys.ended > maxEnding {
			return false
		}
		before := d.size
		d.release(key, until, s.DeleteKeys || key.tree != KV)
		d.keys.ended += d.size - before
	}
	d.unset(treeRef{sessionTree, s.ID})
	d.unset(treeRef{bySession, nodeSessions(s.Node) + s.ID})
	return true
}

// checksChanged ends the sessions that are bound to a check that went or turned
// critical. now is nil when the instance or the node itself went.
func (d *draft) checksChanged(node string, before, now []weft.Check) {
	b, _ := d.keys.trees[bySession].under(nodeSessions(node))
	if b == nil || b.live == 0 {
		return
	}
	var lost []string
	for i := range before {
		c := findCheck(now, before[i].ID)
		if c == nil || c.Status >= weft.Critical && before[i].Status < weft.Critical {
			lost = append(lost, before[i].ID)
		}
	}
	if len(lost) == 0 {
		return
	}
	for _, s := range d.keys.sessionsOn(node) {
		for id := range s.checks {
			if slices.Contains(lost, id) {
				d.endOrLater(s)
				break
			}
		}
	}
}

// nodeGone ends the sessions of a node.
func (d *draft) nodeGone(node string) {
	for _, s := range d.keys.sessionsOn(node) {
		d.endOrLater(s)
	}
}

func (d *draft) endOrLater(s *Session) {
	if !d.end(s) {
		d.keys.ending = append(d.keys.ending, s.ID)
	}
}

// stands reports whether the node and the checks of a session are still as they
// must be.
func (d *draft) stands(s *Session) bool {
	if d.node(s.Node) == nil {
		return false
	}
	for id := range s.checks {
		if c := d.check(checkKey{s.Node, id}); c == nil || c.Status >= weft.Critical {
			return false
		}
	}
	return true
}

// RenewSession lets a session live for its TTL again, and returns it; nil when there
// is none. Nothing is written.
func (r *Registry) RenewSession(ctx context.Context, id string) (*Session, error) {
	return r.operations.renewSession(ctx, id)
}

func (r *Registry) renewSessionHere(_ context.Context, id string) (*Session, error) {
	s, _ := r.Session(id)
	if s == nil || !r.sessions.renew(id) {
		return nil, nil
	}
	return s, nil
}

// startSessions begins to count the sessions' time, when this server becomes the
// writer. The loop calls it.
func (r *Registry) startSessions() {
	all := r.view.keys.sessionsOn("")
	d := newDraft(&r.view.state)
	var doomed []string // by a writer that did not live to end them
	for _, s := range all {
		if !d.stands(s) {
			doomed = append(doomed, s.ID)
		}
	}
	r.sessions.start(all, doomed)
}

// stopSessions ends that.
func (r *Registry) stopSessions() { r.sessions.stop() }

// endLapsed ends those of the sessions that still have to end.
func (r *Registry) endLapsed(ctx context.Context, ids []string) error {
	return r.do(ctx, "end", "sessions", func(d *draft) error {
		for _, id := range ids {
			if s := d.keys.session(id); s != nil && r.sessions.over(id) {
				d.endOrLater(s)
			}
		}
		return nil
	})
}
