package registry

import (
	"context"
	"time"

	"github.com/weftmesh/weft"
)

// Freshness says how new a read is that this server answers from its view.
type Freshness struct {
	KnownLeader bool          // a server leads, as far as this one knows
	LastContact time.Duration // since when none did, else 0
}

// freshPatience is how long an ordinary read waits for what was acknowledged
// elsewhere. Within an election it is better to tell what this server has than to
// make a reader fail, who then backs off for minutes.
const freshPatience = 500 * time.Millisecond

// Fresh makes the reads after it as new as the writes that were acknowledged before
// it. Only with strict it fails, with Kind Unavailable, when that cannot be done;
// otherwise the reads are as new as this server is, and Freshness says how new.
func (r *Registry) Fresh(ctx context.Context, strict bool) (Freshness, error) {
	if r.peers == nil || r.writes.Load() && !strict {
		// A write is answered when the writer's view has it.
		return r.Stale(), nil
	}
	if strict {
		err := r.CatchUp(ctx)
		return r.Stale(), err
	}
	f := r.Stale()
	if !f.KnownLeader {
		return f, nil
	}
	ctx, cancel := context.WithTimeout(ctx, freshPatience)
	defer cancel()
	if err := r.CatchUp(ctx); err != nil && weft.KindOf(err) != weft.Unavailable {
		return f, err
	}
	return r.Stale(), nil
}

// FreshNow is Fresh without strict for who cannot wait: ok is false when it would
// have to.
func (r *Registry) FreshNow() (f Freshness, ok bool) {
	if r.peers != nil && !r.writes.Load() {
		return f, false
	}
	return r.Stale(), true
}

// Stale says how new reads are without waiting for anything.
func (r *Registry) Stale() Freshness {
	if r.store.Leader() != 0 {
		return Freshness{KnownLeader: true}
	}
	since := r.leaderless.Load()
	if since == 0 {
		return Freshness{}
	}
	return Freshness{LastContact: time.Since(time.Unix(0, since))}
}

// noteLeader keeps since when no server leads. It is the loop's.
func (r *Registry) noteLeader() {
	switch leads := r.store.Leader() != 0; {
	case leads:
		r.leaderless.Store(0)
	case r.leaderless.Load() == 0:
		r.leaderless.Store(time.Now().UnixNano())
	}
}
