package registry

import "github.com/weftmesh/weft"

// Watchers is how many readers wait for the next change of a service: each of them
// has been told the present one.
func (r *Registry) Watchers(n weft.ServiceName) int {
	r.waiters.mu.Lock()
	defer r.waiters.mu.Unlock()
	if list := r.waiters.topics[ServiceTopic(n)]; list != nil {
		return list.n
	}
	return 0
}
