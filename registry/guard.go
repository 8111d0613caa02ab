package registry

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/store"
)

// Guard says that a service's traffic still goes to instances that failed, because
// too many failed together: that is more often the fault of who checks, or of what
// all of them need, than of each. Traffic that is sent to what may be dead is no worse
// than traffic that is sent nowhere.
//
// Health is told as it is: the instances are critical wherever checks are shown. Kept
// are they where traffic is sent: Endpoints has them, and a dialect that is asked for
// passing instances only must add those that Keeps. That holds also when all of them
// answer their checks with a failure of their own.
//
// It begins when, by failures and not by deregistration, maintenance or drains, a
// service loses its last healthy instance, and three or more have failed within a
// minute. One or two are not guarded: a single process that dies is the common case,
// and the clients of a service of one or two expect to see it gone. The label
// "weft-guard" of an instance sets this for its service: "off", or a share such as
// "50%" of the instances from which on the failed ones are kept beside the healthy.
//
// It ends when fewer have failed than that: as a rule, with the first instance that is
// healthy again; when all kept ones are deregistered, in maintenance or drained; or by
// ReleaseGuard. While it lasts its instances are not deregistered for being critical,
// for guardHold at most, so that what never comes back does not stay for ever.
type Guard struct {
	Reason string             `json:"reason"`
	Since  time.Time          `json:"since"`
	Kept   []weft.InstanceKey `json:"kept"` // sorted by node and id
}

const (
	// GuardLabel of an instance sets the guard of its service.
	GuardLabel = "weft-guard"
	// guardMin instances must fail together, within guardWindow: that is longer than
	// the intervals and leases in use, within which checks notice a common cause.
	guardMin    = 3
	guardWindow = time.Minute
	// guardHold is how long a guard keeps instances from being deregistered.
	guardHold = time.Hour
)

// Keeps reports whether the guard has an instance.
func (g Guard) Keeps(key weft.InstanceKey) bool {
	_, found := slices.BinarySearchFunc(g.Kept, key, compareKeys)
	return found
}

// Guard returns the guard of a service, and whether there is one. It changes with
// ServiceTopic(n).
func (r *Registry) Guard(n weft.ServiceName) (g Guard, guarded bool) {
	r.view.mu.RLock()
	defer r.view.mu.RUnlock()
	if found := r.view.guards[n]; found != nil {
		return *found, true
	}
	return Guard{}, false
}

// Guarded returns the names of the services that are guarded, sorted.
func (r *Registry) Guarded() []weft.ServiceName {
	r.view.mu.RLock()
	defer r.view.mu.RUnlock()
	return slices.SortedFunc(maps.Keys(r.view.guards), byName)
}

// ReleaseGuard ends the guard of a service: its failed instances get no traffic any
// more. The error is of Kind NotFound when there is none. The result is the index of
// ServiceTopic.
func (r *Registry) ReleaseGuard(ctx context.Context, n weft.ServiceName) (uint64, error) {
	return r.operations.releaseGuard(ctx, n)
}

func (r *Registry) releaseGuardHere(ctx context.Context, n weft.ServiceName) (uint64, error) {
	used, err := r.once(ctx, "release", "guard of "+n.String(), func(d *draft) error {
		if d.guard(n) == nil {
			return weft.Errorf(weft.NotFound, "release", "guard of "+n.String(), "the service is not guarded")
		}
		d.guards[n], d.released[n] = nil, d.actor
		return nil
	})
	if err != nil || used != 0 {
		return uint64(used), err
	}
	return r.view.index(ServiceTopic(n)), nil
}

// held reports whether a guard keeps an instance from being deregistered.
func (r *Registry) held(key weft.InstanceKey, now time.Time) bool {
	r.view.mu.RLock()
	defer r.view.mu.RUnlock()
	if in := r.view.instance(key); in != nil {
		g := r.view.guards[in.Service]
		return g != nil && now.Sub(g.Since) < guardHold && g.Keeps(key)
	}
	return false
}

const guardsDir = root + "guards/"

func guardRecord(n weft.ServiceName) string {
	return guardsDir + url.PathEscape(n.Namespace) + "/" + url.PathEscape(n.Name)
}

// parseGuardRecord returns the service whose guard key is.
func parseGuardRecord(key string) (n weft.ServiceName, ok bool) {
	rest, found := strings.CutPrefix(key, guardsDir)
	if !found {
		return n, false
	}
	n.Namespace, n.Name, ok = cutPair(rest)
	return n, ok
}

// setGuard takes over what a record says; nil when it is gone.
func (s *state) setGuard(n weft.ServiceName, g *Guard) {
	if g == nil {
		delete(s.guards, n)
		return
	}
	s.guards[n] = g
}

func (d *draft) guard(n weft.ServiceName) *Guard {
	if g, ok := d.guards[n]; ok {
		return g
	}
	return d.view.guards[n]
}

// guardTxn adds what the guards that the draft changes mean.
func (d *draft) guardTxn(t *store.Txn, cells map[string]bool) {
	for n, after := range d.guards {
		before := d.view.guards[n]
		switch {
		case after == nil && before != nil:
			t.Delete = append(t.Delete, guardRecord(n))
			cells[serviceCell(n)], cells[instancesCell] = true, true
			if by, ok := d.released[n]; ok {
				d.depart(n, guardRecord(n), by)
			}
		case after != nil && (before == nil || !slices.Equal(before.Kept, after.Kept)):
			if b, err := json.Marshal(after); err == nil { // texts and a time of ours
				d.put(guardRecord(n), b)
				cells[instancesCell] = true
			}
		}
	}
}

// settle computes what follows from a draft's changes, before it is committed:
// aliases, and then guards.
func (r *Registry) settle(d *draft) {
	d.actor = aliasActor
	d.settleAliases()
	now := time.Now()
	recently := func(key weft.InstanceKey) bool { return r.checks.fellSince(key, now.Add(-guardWindow)) }
	for n := range d.services() {
		before := d.guard(n)
		d.settleGuard(n, now, recently)
		after := d.guard(n)
		switch {
		case before == nil && after != nil:
			r.log.Warn("registry: service guarded", "service", n, "kept", len(after.Kept), "reason", after.Reason)
		case before != nil && after == nil:
			r.log.Info("registry: service no longer guarded", "service", n)
		}
	}
}

// services returns those whose guard a draft's changes may begin or end: an instance
// of theirs failed, or they are guarded.
func (d *draft) services() map[weft.ServiceName]bool {
	names := make(map[weft.ServiceName]bool)
	concern := func(key weft.InstanceKey) {
		before, after := d.view.instance(key), d.instance(key)
		for _, in := range []*weft.Instance{before, after} {
			if in != nil && d.view.guards[in.Service] != nil {
				names[in.Service] = true
			}
		}
		if before != nil && after != nil && standingOf(before, d.view.node(key.Node)) == healthy &&
			standingOf(after, d.node(key.Node)) == failed {
			names[after.Service] = true
		}
	}
	for key, after := range d.instances {
		if after != d.view.instance(key) {
			concern(key)
		}
	}
	for name, after := range d.nodes {
		if after == d.view.node(name) {
			continue
		}
		for _, key := range d.instancesOn(name) {
			concern(key)
		}
	}
	return names
}

// standing is what an instance is for a guard.
type standing uint8

const (
	healthy standing = iota
	failed           // by a check
	resting          // taken out by somebody: maintenance, a drain
)

// standingOf an instance on its node, which may be nil.
func standingOf(in *weft.Instance, node *weft.Node) standing {
	s := healthy
	for _, checks := range [][]weft.Check{in.Checks, checksOfNode(node)} {
		for i := range checks {
			switch {
			case checks[i].Status < weft.Critical:
			case checks[i].Kind == weft.MaintenanceCheck:
				return resting
			default:
				s = failed
			}
		}
	}
	return s
}

func checksOfNode(n *weft.Node) []weft.Check {
	if n == nil {
		return nil
	}
	return n.Checks
}

// settleGuard begins, changes or ends the guard of one service. recently says of an
// instance that was failed before the draft that it failed within guardWindow.
func (d *draft) settleGuard(n weft.ServiceName, now time.Time, recently func(weft.InstanceKey) bool) {
	old := d.guard(n)
	present := d.instancesOf(n)
	var lost []*weft.Instance
	total := 0
	for _, in := range present {
		s := standingOf(in, d.node(in.Node))
		if s != resting {
			total++
		}
		if s == failed {
			lost = append(lost, in)
		}
	}
	share, on := guardShare(present)
	if !on || len(lost) == 0 || len(lost)*100 < share*total {
		if old != nil {
			d.guards[n] = nil
		}
		return
	}
	next := Guard{Since: now.UTC()}
	if old != nil {
		next = Guard{Since: old.Since, Reason: old.Reason}
	}
	fellNow := false
	for _, in := range lost {
		before := d.view.instance(in.Key())
		justNow := before != nil && standingOf(before, d.view.node(in.Node)) == healthy
		fellNow = fellNow || justNow
		if justNow || old != nil && old.Keeps(in.Key()) || old == nil && recently(in.Key()) {
			next.Kept = append(next.Kept, in.Key())
		}
	}
	switch {
	case old != nil && len(next.Kept) == 0:
		d.guards[n] = nil
	case old != nil:
		d.guards[n] = &next
	case fellNow && len(next.Kept) >= guardMin:
		next.Reason = guardReason(next.Kept, total, lost)
		d.guards[n] = &next
	}
}

// instancesOf returns a service's instances after the draft, sorted by node and id.
func (d *draft) instancesOf(n weft.ServiceName) (list []*weft.Instance) {
	if e := d.view.services[n]; e != nil {
		for _, in := range e.instances {
			if after := d.instance(in.Key()); after != nil && after.Service == n {
				list = append(list, after)
			}
		}
	}
	for key, in := range d.instances {
		if in == nil || in.Service != n {
			continue
		}
		if before := d.view.instance(key); before == nil || before.Service != n {
			list = append(list, in)
		}
	}
	slices.SortFunc(list, byKey)
	return list
}

// guardShare returns the percentage of a service's instances that must have failed
// for it to be guarded. The first label that says something counts.
func guardShare(instances []*weft.Instance) (percent int, on bool) {
	for _, in := range instances {
		label := in.Labels[GuardLabel]
		if label == "off" {
			return 0, false
		}
		number, isShare := strings.CutSuffix(label, "%")
		if percent, err := strconv.Atoi(number); isShare && err == nil && percent > 0 && percent <= 100 {
			return percent, true
		}
	}
	return 100, true
}

// guardReason is for people: how many, and of what the newest one failed.
func guardReason(kept []weft.InstanceKey, total int, lost []*weft.Instance) string {
	var last *weft.Check
	for _, in := range lost {
		for i := range in.Checks {
			c := &in.Checks[i]
			if c.Status >= weft.Critical && (last == nil || cmp.Compare(c.ModifyIndex-1, last.ModifyIndex-1) > 0) {
				last = c // 0 is this very change, and less one the greatest
			}
		}
	}
	reason := fmt.Sprintf("%d of %d instances failed within %s; traffic still goes to them", len(kept), total, guardWindow)
	if last != nil {
		reason += fmt.Sprintf(" (check %q: %s)", last.ID, strings.ToValidUTF8(firstLine(last.Output), "?"))
	}
	return reason
}

// decodeGuard reads the guard of a service into d.
func decodeGuard(d decoded, n weft.ServiceName, ev *store.Event, log *slog.Logger) (decoded, bool) {
	d.kind, d.topic = guardKind, ServiceTopic(n)
	if ev.Deleted {
		return d, true
	}
	d.guard = new(Guard)
	if err := json.Unmarshal(ev.Value, d.guard); err != nil {
		log.Error("registry: guard record cannot be read", "key", ev.Key, "error", err)
		return d, false
	}
	return d, true
}
