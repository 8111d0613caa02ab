package registry

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/weftmesh/weft"
)

// Followers tells who has seen what of a service: the proxies that the control plane
// serves. Drain calls it, from its caller's goroutine; it must not block.
type Followers interface {
	// Acked returns the names of those who follow a service: who has acknowledged its
	// state at index or later, and for whom that is still to come.
	Acked(n weft.ServiceName, index uint64) (acked, waiting []string)
	// AckChanged is closed when what Acked says of a service may be different. It is
	// asked for before Acked, so that no change falls between.
	AckChanged(n weft.ServiceName) <-chan struct{}
}

// DrainRequest asks that an instance gets no new traffic.
type DrainRequest struct {
	Key      weft.InstanceKey
	Deadline weft.Duration // how long to wait for those who follow; 10 s when 0, at most 5 m
}

// DrainResult says who knows of a drain.
type DrainResult struct {
	Index   uint64   // of ServiceTopic, at which the instance is out of all views
	Acked   []string // sorted
	Waiting []string // who had not acknowledged at the deadline; sorted
}

const (
	drainPrefix     = "_weft_drain:" // + instance id
	defaultDeadline = 10 * time.Second
	maxDeadline     = 5 * time.Minute
)

// Drain takes an instance out of every view at one index, by a maintenance check that
// stays until EndDrain or Deregister, and waits until everybody who follows its
// service has acknowledged that, or the deadline passes. Then its owner lets it
// finish what is in flight, deregisters it, and stops it. A second Drain of the same
// instance waits too, and changes nothing.
//
// Followers tells of those who follow any server of the cluster.
func (r *Registry) Drain(ctx context.Context, q DrainRequest) (DrainResult, error) {
	key := r.onOwnNode(q.Key)
	deadline := q.Deadline.Std()
	switch {
	case deadline < 0 || deadline > maxDeadline:
		return DrainResult{}, weft.Errorf(weft.Invalid, "drain", "instance "+key.ID,
			"deadline: %s is out of range; use a time up to %s, or 0 for %s", q.Deadline, maxDeadline, defaultDeadline)
	case deadline == 0:
		deadline = defaultDeadline
	}
	marked, err := r.operations.markDrain(ctx, drainMark{Key: key, On: true})
	if err != nil {
		return DrainResult{}, err
	}
	wait, cancel := context.WithTimeout(ctx, deadline)
	defer cancel()
	result := DrainResult{Index: marked.Index}
	result.Acked, result.Waiting = r.AwaitAcked(wait, marked.Service, marked.Index)
	if ctx.Err() != nil {
		return result, &weft.Error{Kind: weft.Unavailable, Op: "drain", Thing: "instance " + key.ID,
			Err: errors.Join(errors.New("the instance is out of all views, and not all have acknowledged it"), ctx.Err())}
	}
	return result, nil
}

// EndDrain brings a drained instance back. Without a drain it changes nothing.
func (r *Registry) EndDrain(ctx context.Context, key weft.InstanceKey) error {
	_, err := r.operations.markDrain(ctx, drainMark{Key: r.onOwnNode(key)})
	return err
}

// AwaitAcked waits until everybody who follows a service has acknowledged its state at
// an index of ServiceTopic, or a later one, or until ctx ends. It returns who has, and
// who has not, both sorted.
func (r *Registry) AwaitAcked(ctx context.Context, n weft.ServiceName, index uint64) (acked, waiting []string) {
	if r.followers == nil {
		return nil, nil
	}
	for {
		changed := r.followers.AckChanged(n)
		acked, waiting = r.followers.Acked(n, index)
		slices.Sort(acked)
		slices.Sort(waiting)
		if len(waiting) == 0 {
			return acked, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return acked, waiting
		case <-r.ctx.Done():
			return acked, waiting
		}
	}
}

// drainMark begins or ends that an instance is drained.
type drainMark struct {
	Key weft.InstanceKey
	On  bool
}

// drainMarked is where that is to be seen.
type drainMarked struct {
	Service weft.ServiceName
	Index   uint64
}

func (r *Registry) markDrainHere(ctx context.Context, m drainMark) (drainMarked, error) {
	id := drainPrefix + m.Key.ID
	var service weft.ServiceName
	used, err := r.once(ctx, "drain", "instance "+m.Key.ID, func(d *draft) error {
		in := d.instance(m.Key)
		if in == nil {
			return noInstance("drain", m.Key)
		}
		service = in.Service
		if !m.On {
			return editChecks(d, m.Key, "drain", without(id))
		}
		return planCheck(d, m.Key, weft.Check{
			ID: id, Name: "Drain", Kind: weft.MaintenanceCheck, Status: weft.Critical,
			Notes: "It finishes what it has, and gets nothing new.",
		})
	})
	switch {
	case err != nil:
		return drainMarked{}, err
	case used != 0:
		if in, _ := r.Instance(m.Key); in != nil {
			service = in.Service
		}
		return drainMarked{Service: service, Index: uint64(used)}, nil
	}
	return drainMarked{Service: service, Index: r.view.index(ServiceTopic(service))}, nil
}
