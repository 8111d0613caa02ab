package metric

import (
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// requestKey is a label set of the request metrics.
type requestKey struct{ direction, source, destination, version string }

// bounds are the upper bounds of the duration histogram's buckets. A call over
// loopback takes some hundred microseconds, hence the fine low ones; above, the
// steps that Prometheus' clients use by default.
var bounds = [...]time.Duration{
	100 * time.Microsecond, 250 * time.Microsecond, 500 * time.Microsecond,
	1 * time.Millisecond, 2500 * time.Microsecond, 5 * time.Millisecond,
	10 * time.Millisecond, 25 * time.Millisecond, 50 * time.Millisecond,
	100 * time.Millisecond, 250 * time.Millisecond, 500 * time.Millisecond,
	1 * time.Second, 2500 * time.Millisecond, 5 * time.Second, 10 * time.Second,
}

// exactCodes is how many different status codes a label set counts by their
// number; a service that uses more gets the others counted by class ("4xx").
const exactCodes = 12

// classes are the codes that stand for more than one, by index code/100; 0 is a
// request that got no answer.
var classes = [...]string{"0", "1xx", "2xx", "3xx", "4xx", "5xx", "other"}

// RequestSeries counts the requests of one label set. Resolve it once and keep
// it; Observe is then a few atomic additions.
type RequestSeries struct {
	// constant
	key requestKey

	// atomics
	codes  [exactCodes]codeCount // filled from the front, in order of first appearance
	folded [len(classes)]atomic.Uint64
	took   durations
}

// durations is a histogram that is being filled.
type durations struct {
	buckets [len(bounds) + 1]atomic.Uint64 // the last has no upper bound; not cumulative
	nanos   atomic.Int64
}

type codeCount struct {
	code atomic.Int64 // 0: free
	n    atomic.Uint64
}

// Requests returns the series of this label set, the same one at each call.
// direction is "inbound", "outbound" or "gateway".
func (r *Registry) Requests(direction, source, destination, version string) *RequestSeries {
	key := requestKey{direction, source, destination, version}
	r.mu.Lock()
	defer r.mu.Unlock()
	if s := r.requests[key]; s != nil {
		return s
	}
	if len(r.requests) >= r.maxSeries {
		r.folded.Add(1)
		if r.otherRequest == nil {
			r.otherRequest = &RequestSeries{key: requestKey{other, other, other, other}}
		}
		return r.otherRequest
	}
	// Copies, because the caller's texts may lie in a buffer that it reuses.
	key = requestKey{strings.Clone(direction), strings.Clone(source), strings.Clone(destination), strings.Clone(version)}
	s := &RequestSeries{key: key}
	r.requests[key] = s
	return s
}

// Observe counts one request: its status code, or 0 when no answer came, and
// how long it took.
func (s *RequestSeries) Observe(code int, d time.Duration) {
	s.counter(code).Add(1)
	s.took.observe(d)
}

func (h *durations) observe(d time.Duration) {
	i := 0
	for i < len(bounds) && d > bounds[i] {
		i++
	}
	h.buckets[i].Add(1)
	h.nanos.Add(int64(d))
}

func (s *RequestSeries) counter(code int) *atomic.Uint64 {
	switch {
	case code == 0:
		return &s.folded[0]
	case code < 100 || code > 599:
		return &s.folded[len(classes)-1]
	}
	for i := range s.codes {
		c := &s.codes[i]
		have := c.code.Load()
		if have == 0 && !c.code.CompareAndSwap(0, int64(code)) {
			have = c.code.Load() // somebody else took the place
		} else if have == 0 {
			have = int64(code)
		}
		if have == int64(code) {
			return &c.n
		}
	}
	return &s.folded[code/100]
}

// gatherRequests is called under r.mu.
func (r *Registry) gatherRequests() []Family {
	if len(r.requests) == 0 {
		return nil
	}
	total := Family{Name: "weft_requests_total", Help: "Requests by their status code; 0 is no answer.", Type: TypeCounter}
	errors := Family{Name: "weft_request_errors_total", Help: "Requests that failed: no answer, or a status code from 500.", Type: TypeCounter}
	duration := Family{Name: "weft_request_duration_seconds", Help: "How long requests took until the last byte of the answer.", Type: TypeHistogram}
	gather := func(s *RequestSeries) {
		labels := []Label{
			{"direction", s.key.direction}, {"source", s.key.source},
			{"destination", s.key.destination}, {"version", s.key.version},
		}
		count := func(code string, isError bool, n uint64) {
			sample := Sample{Labels: append(labels[:4:4], Label{"code", code}), Value: float64(n)}
			total.Samples = append(total.Samples, sample)
			if isError {
				errors.Samples = append(errors.Samples, sample)
			}
		}
		for i := range s.codes {
			code := s.codes[i].code.Load()
			if code == 0 {
				break
			}
			count(strconv.FormatInt(code, 10), code >= 500, s.codes[i].n.Load())
		}
		for i := range s.folded {
			if n := s.folded[i].Load(); n > 0 {
				count(classes[i], i == 0 || i >= 5, n)
			}
		}
		duration.Samples = append(duration.Samples, Sample{Labels: labels, Histogram: s.took.gather()})
	}
	for _, s := range r.requests {
		gather(s)
	}
	if r.otherRequest != nil {
		gather(r.otherRequest)
	}
	families := []Family{total, duration}
	if len(errors.Samples) > 0 {
		families = append(families, errors)
	}
	return families
}

func (h *durations) gather() *Histogram {
	out := &Histogram{Buckets: make([]Bucket, len(bounds)), Sum: time.Duration(h.nanos.Load()).Seconds()}
	for i := range h.buckets {
		out.Count += h.buckets[i].Load()
		if i < len(bounds) {
			out.Buckets[i] = Bucket{UpperBound: bounds[i].Seconds(), Count: out.Count}
		}
	}
	return out
}
