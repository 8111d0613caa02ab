package eureka

import (
	"context"
	"fmt"
	"time"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/registry"
)

const (
	// preserveShare is the share of an application's leases, in percent, that may
	// lapse within Run's patience before they are kept. It is the share that
	// Eureka's own server has.
	preserveShare = 15
	// preserveCount: one crash alone is no reason to doubt the network, however
	// small the application.
	preserveCount = 2
	// keptFor bounds how long instances are kept of which nothing is heard. It is
	// long enough for a network to be mended, and nobody's ghost for ever.
	keptFor = 30 * time.Minute
)

// preserves reports whether an application keeps its lapsed leases.
func preserves(lapsed, leases int) bool {
	return lapsed >= preserveCount && lapsed*100 > leases*preserveShare
}

func preserveReason(lapsed, leases int) string {
	return fmt.Sprintf("%d of %d leases have lapsed, which is more than %d %%: the network is the likelier reason; "+
		"the instances are shown as they were, for at most %s", lapsed, leases, preserveShare, keptFor)
}

// Run deregisters instances whose leases have lapsed, until ctx ends. It looks when
// something changed on the node "eureka", and not more often than once a second.
func (a *API) Run(ctx context.Context) error {
	since := make(map[weft.InstanceKey]time.Time) // when a lease was first seen lapsed
	for ctx.Err() == nil {
		_, instances, index := a.registry.Node(nodeName)
		next := a.evict(ctx, instances, since)
		rest := time.NewTimer(a.pause)
		select {
		case <-ctx.Done():
		case <-rest.C:
		}
		rest.Stop()
		waiting, cancel := context.WithDeadline(ctx, next)
		a.registry.Wait(waiting, registry.NodeTopic(nodeName), index)
		cancel()
	}
	return nil
}

// evict deregisters what has lapsed for longer than Run's patience, and returns when
// to look again, if nothing changes.
func (a *API) evict(ctx context.Context, instances []*weft.Instance, since map[weft.InstanceKey]time.Time) (next time.Time) {
	now := a.now()
	next = now.Add(time.Hour)
	type tally struct{ lapsed, leases int }
	apps := make(map[weft.ServiceName]tally)
	gone := make(map[weft.InstanceKey]bool, len(since))
	for key := range since {
		gone[key] = true
	}
	for _, in := range instances {
		if in.Extra[dialect] == nil {
			continue
		}
		t := apps[in.Service]
		t.leases++
		if lapsed(in) {
			t.lapsed++
			delete(gone, in.Key())
			if since[in.Key()].IsZero() {
				since[in.Key()] = now
			}
		}
		apps[in.Service] = t
	}
	for key := range gone { // renewed, or not there any more
		delete(since, key)
	}
	for _, in := range instances {
		first, isLapsed := since[in.Key()]
		t := apps[in.Service]
		if !isLapsed || preserves(t.lapsed, t.leases) {
			continue
		}
		if guard, guarded := a.registry.Guard(in.Service); guarded && guard.Keeps(in.Key()) {
			continue
		}
		if due := first.Add(a.patience); due.After(now) {
			if due.Before(next) {
				next = due
			}
			continue
		}
		if err := a.remove(ctx, in); err != nil {
			next = now.Add(a.pause)
			a.logger.WarnContext(ctx, "eureka: instance is not deregistered; it is tried again", "instance", in.ID, "error", err)
		}
	}
	return next
}

// remove deregisters an instance, unless it changed meanwhile: each server of a
// cluster runs Run, and each must decide by what is true.
func (a *API) remove(ctx context.Context, in *weft.Instance) error {
	ctx = registry.WithActor(ctx, "lease of "+in.ID+" lapsed")
	err := a.transact(ctx, "deregister", registry.InstanceOp{Verb: "delete-cas", Instance: *in})
	switch {
	case weft.KindOf(err) == weft.Conflict || ctx.Err() != nil:
		return nil
	case err == nil:
		a.logger.WarnContext(ctx, "eureka: instance deregistered", "instance", in.ID, "service", in.Service, "reason", "its lease has lapsed")
	}
	return err
}
