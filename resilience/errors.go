package resilience

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// What a *Rejected wraps, for errors.Is.
var (
	ErrCircuitOpen        = errors.New("circuit open")
	ErrBulkheadFull       = errors.New("bulkhead full")
	ErrRateLimited        = errors.New("rate limit exceeded")
	ErrConcurrencyLimited = errors.New("concurrency limit reached")
	ErrThrottled          = errors.New("throttled")
	// ErrTimeout and ErrAttemptTimeout are context.DeadlineExceeded for errors.Is
	// and timeouts for whoever asks a net.Error.
	ErrTimeout        error = &timeoutError{"timeout"}
	ErrAttemptTimeout error = &timeoutError{"attempt timeout"}
)

type timeoutError struct{ text string }

func (e *timeoutError) Error() string        { return e.text }
func (e *timeoutError) Timeout() bool        { return true }
func (e *timeoutError) Temporary() bool      { return true }
func (e *timeoutError) Is(target error) bool { return target == context.DeadlineExceeded }

// Reasons of a Rejected, as x-weft-reason and access records spell them.
const (
	ReasonCircuitOpen        = "circuit_open"
	ReasonBulkheadFull       = "bulkhead_full"
	ReasonRateLimited        = "rate_limited"
	ReasonConcurrencyLimited = "concurrency_limited"
	ReasonThrottled          = "throttled"
	ReasonTimeout            = "timeout"
)

// Rejected is a call that a policy, and not the service, has ended.
type Rejected struct {
	Policy string
	Reason string // one of the Reason constants
	// RetryAfter is how long it makes no sense to call again; 0 is unknown.
	RetryAfter time.Duration
	Err        error // what errors.Is finds: one of the Err variables, and what a timeout interrupted
}

func (e *Rejected) Error() string {
	if e.RetryAfter > 0 {
		return fmt.Sprintf("policy %s: %v, retry after %v", e.Policy, e.Err, e.RetryAfter)
	}
	return fmt.Sprintf("policy %s: %v", e.Policy, e.Err)
}

func (e *Rejected) Unwrap() error { return e.Err }

// FieldError is what is wrong with one field of a Spec. Field is spelled as a
// document spells it: "circuitBreaker.failureRateThreshold".
type FieldError struct{ Field, Problem string }

func (e *FieldError) Error() string {
	if e.Field == "" {
		return e.Problem
	}
	return e.Field + ": " + e.Problem
}

// Permanent marks an error that no further attempt can mend: it counts as a
// failure and is not tried again. Permanent(nil) is nil.
func Permanent(err error) error {
	if err == nil {
		return nil
	}
	return &permanentError{err}
}

type permanentError struct{ err error }

func (e *permanentError) Error() string { return e.err.Error() }
func (e *permanentError) Unwrap() error { return e.err }
