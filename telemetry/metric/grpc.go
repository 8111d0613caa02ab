package metric

import (
	"maps"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

type grpcKey struct{ direction, source, destination string }

const (
	// grpcStatuses are 0 to 16 (grpc/doc/statuscodes.md).
	grpcStatuses        = 17
	statusUnimplemented = 12

	// maxMethods bounds the methods of one destination, so that a client that
	// makes names up cannot take the registry's places from other destinations.
	maxMethods = 200
	maxPath    = 256
)

// GRPCCalls counts the gRPC calls from one service to another by method and
// status. Resolve it once and keep it; Observe is then a lookup and a few atomic
// additions.
type GRPCCalls struct {
	// constant
	r      *Registry
	key    grpcKey
	folded bool // it stands for all destinations that have no place

	// atomics
	methods atomic.Pointer[map[string]*grpcSeries] // by path; a map that is never changed
	other   grpcSeries                             // the calls that belong to none of them
}

// grpcSeries is one method.
type grpcSeries struct {
	// constant
	service, method string

	// atomics
	statuses [grpcStatuses + 1]atomic.Uint64 // the last counts what is no status
	took     durations
}

// GRPC returns the calls between two services, the same at each call. direction
// is "inbound", "outbound" or "gateway".
func (r *Registry) GRPC(direction, source, destination string) *GRPCCalls {
	key := grpcKey{direction, source, destination}
	r.mu.Lock()
	defer r.mu.Unlock()
	if c := r.grpc[key]; c != nil {
		return c
	}
	if len(r.grpc) >= r.maxSeries {
		r.folded.Add(1)
		if r.otherGRPC == nil {
			r.otherGRPC = newGRPCCalls(r, grpcKey{other, other, other})
			r.otherGRPC.folded = true
		}
		return r.otherGRPC
	}
	key = grpcKey{strings.Clone(direction), strings.Clone(source), strings.Clone(destination)}
	c := newGRPCCalls(r, key)
	r.grpc[key] = c
	return c
}

func newGRPCCalls(r *Registry, key grpcKey) *GRPCCalls {
	c := &GRPCCalls{r: r, key: key, other: grpcSeries{service: other, method: other}}
	c.methods.Store(&map[string]*grpcSeries{})
	return c
}

// Observe counts one call: the request's path, "/service/method", its grpc-status
// and how long it took until that came. The path may lie in a buffer that is
// reused.
//
// What is no path of gRPC, and what the server says it does not implement, is
// counted as the service and method "other": names that clients make up get no
// label sets. So are methods beyond the maximum.
func (c *GRPCCalls) Observe(path string, status int, d time.Duration) {
	s := (*c.methods.Load())[path]
	if s == nil {
		s = c.unknown(path, status)
	}
	if status < 0 || status >= grpcStatuses {
		status = grpcStatuses
	}
	s.statuses[status].Add(1)
	s.took.observe(d)
}

// unknown returns what a path without a series is counted in, and makes one when
// it may have its own.
func (c *GRPCCalls) unknown(path string, status int) *grpcSeries {
	service, method, ok := splitPath(path)
	if !ok || status == statusUnimplemented {
		return &c.other
	}
	r := c.r
	// Without the lock first: a flood of new names must not meet at it.
	if c.folded || len(*c.methods.Load()) >= maxMethods || r.grpcMethods.Load() >= int64(r.maxSeries) {
		r.folded.Add(1)
		return &c.other
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	have := *c.methods.Load()
	if s := have[path]; s != nil {
		return s // somebody else was faster
	}
	if len(have) >= maxMethods || r.grpcMethods.Load() >= int64(r.maxSeries) {
		r.folded.Add(1)
		return &c.other
	}
	r.grpcMethods.Add(1)
	s := &grpcSeries{service: strings.Clone(service), method: strings.Clone(method)}
	next := maps.Clone(have)
	next[strings.Clone(path)] = s
	c.methods.Store(&next)
	return s
}

// splitPath takes "/service/method" apart. Names are what a label shows as it is.
func splitPath(path string) (service, method string, ok bool) {
	i := strings.LastIndexByte(path, '/')
	if i < 2 || path[0] != '/' || i == len(path)-1 || len(path) > maxPath {
		return "", "", false
	}
	for _, c := range []byte(path) {
		if c <= ' ' || c >= 0x7f {
			return "", "", false
		}
	}
	return path[1:i], path[i+1:], true
}

// gatherGRPC is called under r.mu.
func (r *Registry) gatherGRPC() []Family {
	total := Family{Name: "weft_grpc_requests_total", Help: "gRPC calls by their status, a number from 0 to 16.", Type: TypeCounter}
	duration := Family{Name: "weft_grpc_request_duration_seconds", Help: "How long gRPC calls took until their status came.", Type: TypeHistogram}
	gather := func(c *GRPCCalls, s *grpcSeries) {
		labels := []Label{
			{"direction", c.key.direction}, {"source", c.key.source}, {"destination", c.key.destination},
			{"service", s.service}, {"method", s.method},
		}
		seen := false
		for status := range s.statuses {
			n := s.statuses[status].Load()
			if n == 0 {
				continue
			}
			seen = true
			name := other
			if status < grpcStatuses {
				name = strconv.Itoa(status)
			}
			total.Samples = append(total.Samples, Sample{Labels: append(labels[:5:5], Label{"grpc_status", name}), Value: float64(n)})
		}
		if seen {
			duration.Samples = append(duration.Samples, Sample{Labels: labels, Histogram: s.took.gather()})
		}
	}
	each := func(c *GRPCCalls) {
		for _, s := range *c.methods.Load() {
			gather(c, s)
		}
		gather(c, &c.other)
	}
	for _, c := range r.grpc {
		each(c)
	}
	if r.otherGRPC != nil {
		each(r.otherGRPC)
	}
	if len(total.Samples) == 0 {
		return nil
	}
	return []Family{total, duration}
}
