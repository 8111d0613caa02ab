package cluster

import "google.golang.org/grpc/connectivity"

// Reaches reports whether a server could be reached when that was last tried. One
// that was never tried counts as reached.
func (c *Cluster) Reaches(id uint64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	conn := c.conns[c.book[id].Control]
	return conn == nil || conn.GetState() != connectivity.TransientFailure
}
