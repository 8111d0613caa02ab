package resilience

import (
	"sync"
	"sync/atomic"
	"time"
)

// OutlierPolicy says when a host is ejected and for how long. It is immutable.
type OutlierPolicy struct {
	Consecutive5xx     uint32 // failures in a row; 0 is off
	ConsecutiveGateway uint32 // of these, all but FaultAnswer; 0 is off
	// ConsecutiveLocal: so many of FaultLocal in a row eject, and the other two do not
	// count them. 0: they count as FaultGateway.
	ConsecutiveLocal   uint32
	Interval           time.Duration
	BaseEjection       time.Duration // times the number of ejections in a row
	MaxEjection        time.Duration // cap; never below BaseEjection
	MaxEjectionPercent uint32
}

// Outlier is the failure history of one host. The zero value is a healthy host.
type Outlier struct {
	failures atomic.Uint32 // in a row
	gateway  atomic.Uint32
	local    atomic.Uint32
	until    atomic.Int64 // unix ns; 0 when in service

	mu       sync.Mutex
	times    int   // ejections in a row, forgotten one an interval
	returned int64 // when the last ejection ended, unix ns
}

// Ejected reports whether the host is out of service at now.
func (o *Outlier) Ejected(now time.Time) bool {
	until := o.until.Load()
	return until != 0 && now.UnixNano() < until
}

// Fault is how a call to a host failed.
type Fault uint8

const (
	FaultAnswer  Fault = iota // it answered that it cannot: 500 and its like
	FaultGateway              // it answered 502, 503 or 504
	FaultLocal                // it did not answer: no connection, a broken one, a timeout
)

// Success ends all rows of failures.
func (o *Outlier) Success() {
	for _, row := range []*atomic.Uint32{&o.failures, &o.gateway, &o.local} {
		if row.Load() != 0 {
			row.Store(0)
		}
	}
}

// Failure counts a failed call and reports whether the host has reached the
// policy's threshold and should be ejected. A FaultAnswer ends a row of gateway
// faults, and any answer one of local faults.
func (o *Outlier) Failure(p *OutlierPolicy, f Fault) (due bool) {
	if f == FaultLocal && p.ConsecutiveLocal > 0 {
		return o.local.Add(1) >= p.ConsecutiveLocal
	}
	o.local.Store(0)
	n, g := o.failures.Add(1), uint32(0)
	if f == FaultAnswer {
		o.gateway.Store(0)
	} else {
		g = o.gateway.Add(1)
	}
	return p.Consecutive5xx > 0 && n >= p.Consecutive5xx ||
		p.ConsecutiveGateway > 0 && g >= p.ConsecutiveGateway
}

// Eject takes the host out of service, unless ejected hosts would then be more
// than MaxEjectionPercent of all hosts (100 × (ejected+1) / hosts, as Envoy counts
// it: with 10 % and fewer than ten hosts nobody is ever ejected). It returns how
// long the host is out, 0 if it stays.
func (o *Outlier) Eject(p *OutlierPolicy, now time.Time, ejected, hosts int) time.Duration {
	if hosts == 0 || uint32(100*(ejected+1)/hosts) > p.MaxEjectionPercent {
		return 0
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.Ejected(now) {
		return 0
	}
	if until := o.until.Load(); until != 0 {
		o.returned = until
	}
	if p.Interval > 0 && o.returned != 0 {
		forget := (now.UnixNano() - o.returned) / int64(p.Interval)
		o.times = max(0, o.times-int(min(forget, int64(o.times))))
	}
	o.times++
	out := min(p.BaseEjection*time.Duration(o.times), max(p.MaxEjection, p.BaseEjection))
	o.until.Store(now.Add(out).UnixNano())
	o.failures.Store(0)
	o.gateway.Store(0)
	o.local.Store(0)
	return out
}
