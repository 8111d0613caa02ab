package registry

import (
	"context"
	"sync"

	"github.com/weftmesh/weft"
)

// Topic is something that a reader can wait for. Topics are comparable.
type Topic struct {
	kind      topicKind
	namespace string
	name      string
}

type topicKind uint8

const (
	_ topicKind = iota
	serviceTopic
	servicesTopic
	nodesTopic
	nodeTopic
	instancesTopic
	keyTopic
	keysTopic
	everyKey // of those who wait: all keys and prefixes were loaded again
)

// ServiceTopic changes with the instances of a service, their checks, and the
// nodes that they are on.
func ServiceTopic(n weft.ServiceName) Topic {
	return Topic{kind: serviceTopic, namespace: n.Namespace, name: n.Name}
}

// ServicesTopic changes when a service appears or goes, or its union of tags
// changes, in any namespace.
func ServicesTopic() Topic { return Topic{kind: servicesTopic} }

// NodesTopic changes when a node appears, goes, or is anything else than it was; not
// with its checks.
func NodesTopic() Topic { return Topic{kind: nodesTopic} }

// NodeTopic changes with a node, its checks, its instances and their checks.
func NodeTopic(name string) Topic { return Topic{kind: nodeTopic, name: name} }

// InstancesTopic changes with any instance, any check, also of nodes, and any node that
// instances are on: whatever moves the index of a service moves this one.
func InstancesTopic() Topic { return Topic{kind: instancesTopic} }

func (t Topic) service() weft.ServiceName {
	return weft.ServiceName{Namespace: t.namespace, Name: t.name}
}

// waiters holds who waits for which topic. The lock order is waiters.mu, then
// view.mu.
type waiters struct {
	onWake func(Topic) // called at each wake; constant; nil but in tests

	mu     sync.Mutex
	topics map[Topic]*waitList
	// lengths has the lengths of the prefixes that somebody waits for, by tree, with
	// how many those are: so that a changed key finds them without a search.
	lengths map[string]map[int]int
}

// waitList is everybody who waits for the next change of one topic.
type waitList struct {
	changed chan struct{} // closed by the change
	n       int
}

// Wait returns the topic's index as soon as it is greater than after, or as it is
// when ctx ends or the registry closes. With after 0 it returns at once. A change
// of another topic does not wake it.
func (r *Registry) Wait(ctx context.Context, t Topic, after uint64) uint64 {
	for {
		index, list := r.waiters.join(&r.view, t, after)
		if list == nil {
			return index
		}
		select {
		case <-list.changed:
			if r.waiters.onWake != nil {
				r.waiters.onWake(t)
			}
			continue
		case <-ctx.Done():
		case <-r.ctx.Done():
		}
		r.waiters.leave(t, list)
		return r.view.index(t)
	}
}

// join returns the topic's index, and the list to wait on unless the index is new
// enough.
func (w *waiters) join(v *view, t Topic, after uint64) (uint64, *waitList) {
	w.mu.Lock()
	defer w.mu.Unlock()
	index := v.index(t)
	if index > after || after == 0 {
		return index, nil
	}
	list := w.topics[t]
	if list == nil {
		list = &waitList{changed: make(chan struct{})}
		if w.topics == nil {
			w.topics = make(map[Topic]*waitList)
		}
		w.topics[t] = list
		w.count(t, 1)
	}
	list.n++
	return index, list
}

// leave forgets a waiter that gave up, and the list with the last one.
func (w *waiters) leave(t Topic, list *waitList) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if list.n--; list.n == 0 && w.topics[t] == list {
		delete(w.topics, t)
		w.count(t, -1)
	}
}

// wake wakes everybody who waits for one of the topics. The view has their new
// indexes already.
func (w *waiters) wake(topics map[Topic]bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for t := range topics {
		w.wakeOne(t)
		switch t.kind {
		case keyTopic:
			w.wakePrefixes(t)
		case everyKey:
			w.wakeEveryKey()
		}
	}
}

func (w *waiters) wakeOne(t Topic) {
	if list := w.topics[t]; list != nil {
		close(list.changed)
		delete(w.topics, t)
		w.count(t, -1)
	}
}
