package resilience

import "time"

// Spec is what a resilience policy asks for. It is the spec of the resource kind
// ResiliencePolicy (weft.dev/v1) and what Go code gives to New: one struct, one
// meaning. A part that is nil is absent. In a part, a field that is zero takes the
// default that its comment names; New and Validate reject what is out of range and
// name the field as a document spells it, "circuitBreaker.slidingWindow.size".
//
// In JSON and YAML durations are text, "1m30s", and a field that is written as 0
// although 0 is out of its range is an error: ParseSpec never takes the default for
// something that was said.
type Spec struct {
	// Timeout bounds a call as a whole: waiting, every attempt and the pauses
	// between them. 0 is no bound.
	Timeout time.Duration `json:"timeout,omitempty"`
	// AttemptTimeout bounds each attempt. 0 is no bound of its own.
	AttemptTimeout time.Duration `json:"attemptTimeout,omitempty"`

	RateLimit           *RateLimitSpec   `json:"rateLimit,omitempty"`
	Throttle            *ThrottleSpec    `json:"throttle,omitempty"`
	AdaptiveConcurrency *AdaptiveSpec    `json:"adaptiveConcurrency,omitempty"`
	Bulkhead            *BulkheadSpec    `json:"bulkhead,omitempty"`
	Idempotency         *IdempotencySpec `json:"idempotency,omitempty"`
	Retry               *RetrySpec       `json:"retry,omitempty"`
	Hedge               *HedgeSpec       `json:"hedge,omitempty"`
	CircuitBreaker      *BreakerSpec     `json:"circuitBreaker,omitempty"`
	Fallback            *FallbackSpec    `json:"fallback,omitempty"`
}

// BreakerSpec says when a circuit opens and how it closes again. Names, defaults
// and meaning are Resilience4j's where it has them. Rates are percent.
type BreakerSpec struct {
	// FailureRateThreshold opens the circuit when at least this share of the calls
	// in the window failed. (0, 100]; default 50.
	FailureRateThreshold float64 `json:"failureRateThreshold,omitempty"`
	// SlowCallRateThreshold is the same for calls that took longer than
	// SlowCallDurationThreshold. (0, 100]; default 100.
	SlowCallRateThreshold float64 `json:"slowCallRateThreshold,omitempty"`
	// SlowCallDurationThreshold: default 60 s.
	SlowCallDurationThreshold time.Duration `json:"slowCallDurationThreshold,omitempty"`
	// ConsecutiveFailures opens the circuit after so many failures in a row,
	// whatever the rates and MinimumNumberOfCalls say. 0 is off.
	ConsecutiveFailures int `json:"consecutiveFailures,omitempty"`
	// SlidingWindow is what rates are computed over.
	SlidingWindow WindowSpec `json:"slidingWindow,omitzero"`
	// MinimumNumberOfCalls in the window before a rate counts. Default 100, and
	// never more than the size of a count window.
	MinimumNumberOfCalls int `json:"minimumNumberOfCalls,omitempty"`
	// WaitDurationInOpenState before an open circuit becomes half-open. Default 60 s.
	WaitDurationInOpenState time.Duration `json:"waitDurationInOpenState,omitempty"`
	// OpenBackoff makes the wait grow when probes fail. nil: the wait is fixed.
	OpenBackoff *OpenBackoffSpec `json:"openBackoff,omitempty"`
	// PermittedCallsInHalfOpenState decide together whether the circuit closes or
	// opens again. Default 10.
	PermittedCallsInHalfOpenState int `json:"permittedCallsInHalfOpenState,omitempty"`
	// HalfOpenLease is how long a permitted call may take until its permit is given
	// to another one and it counts as failed, so that probes that hang cannot wedge
	// the circuit. Default: the slow-call duration, at least 1 s.
	HalfOpenLease time.Duration `json:"halfOpenLease,omitempty"`
	// FailureStatuses are the HTTP statuses that count as failures, "5xx", "429".
	// Default: 5xx.
	FailureStatuses []string `json:"failureStatuses,omitempty"`
	// Mode holds the circuit in a state whatever the calls do. "": the calls decide.
	Mode Mode `json:"mode,omitempty"`
}

// Mode is a state that a person holds a circuit in.
type Mode string

const (
	ModeAutomatic   Mode = ""
	ModeForcedOpen  Mode = "forced-open"  // nothing passes
	ModeDisabled    Mode = "disabled"     // everything passes, nothing is counted
	ModeMetricsOnly Mode = "metrics-only" // everything passes, calls are counted, the circuit never opens
)

// WindowType of a WindowSpec.
type WindowType string

const (
	CountWindow WindowType = "count" // the last Size calls
	TimeWindow  WindowType = "time"  // the calls of the last Duration
)

// WindowSpec is a sliding window. The zero value is the last 100 calls.
type WindowSpec struct {
	Type     WindowType    `json:"type,omitempty"`     // default count
	Size     int           `json:"size,omitempty"`     // of a count window, 1 to 10000; a time window's in seconds unless Duration is set
	Duration time.Duration `json:"duration,omitempty"` // of a time window, 1 s to 1 h
}

// OpenBackoffSpec: the n-th wait in a row is WaitDurationInOpenState ×
// Multiplier^(n-1), at most Max, give or take Jitter of itself.
type OpenBackoffSpec struct {
	Multiplier float64       `json:"multiplier,omitempty"` // 1 to 10; default 2
	Max        time.Duration `json:"max,omitempty"`        // at least the first wait; default 10 × it
	Jitter     float64       `json:"jitter,omitempty"`     // (0, 1]; default 0.2
}

// RetrySpec says what is tried again, when, and how often.
type RetrySpec struct {
	// MaxAttempts counts the first one too. 1 to 20; default 3.
	MaxAttempts int         `json:"maxAttempts,omitempty"`
	Backoff     BackoffSpec `json:"backoff,omitzero"`
	Budget      BudgetSpec  `json:"budget,omitzero"`
	// Statuses are the HTTP statuses that are tried again: "503", "5xx". Default:
	// 502, 503, 504 and 429. A broken connection and a timeout of an attempt are
	// always among what is tried again.
	Statuses []string `json:"statuses,omitempty"`
	// IgnoreStatuses are never tried again, whatever Statuses says.
	IgnoreStatuses []string `json:"ignoreStatuses,omitempty"`
	// GRPCStatuses that are tried again, by name. Default: UNAVAILABLE.
	GRPCStatuses []string `json:"grpcStatuses,omitempty"`
	// Methods are tried again although HTTP does not call them idempotent. What
	// was never sent, and a request with an Idempotency-Key, is tried again
	// whatever its method is.
	Methods []string `json:"methods,omitempty"`
}

// Jitter of a backoff.
type Jitter string

const (
	FullJitter         Jitter = "full"         // anywhere between 0 and the wait; the default
	DecorrelatedJitter Jitter = "decorrelated" // anywhere between Initial and three times the last pause
	NoJitter           Jitter = "none"
)

// BackoffSpec is the pause between attempts. A server's Retry-After, or a gRPC
// server's push-back, takes its place, up to what the deadline leaves.
type BackoffSpec struct {
	Initial    time.Duration `json:"initial,omitempty"`    // default 25 ms
	Multiplier float64       `json:"multiplier,omitempty"` // 1 to 10; default 2
	Max        time.Duration `json:"max,omitempty"`        // at least Initial; default 10 × it
	Jitter     Jitter        `json:"jitter,omitempty"`
}

// BudgetSpec keeps retries and hedges together a fraction of the calls of the last
// ten seconds.
type BudgetSpec struct {
	Percent      float64 `json:"percent,omitempty"`      // (0, 1000]; default 20
	MinPerSecond float64 `json:"minPerSecond,omitempty"` // allowed whatever the traffic; default 3
}

// HedgeSpec starts a second attempt when the first takes long, and takes whichever
// answers first. Only what may be sent twice is hedged.
type HedgeSpec struct {
	// Delay before a hedge. With Percentile it is the least delay, and the one
	// that counts until enough calls were measured.
	Delay time.Duration `json:"delay,omitempty"`
	// Percentile of the latencies measured, 50 to 99.9: "the slowest 5 %" is 95.
	// 0: Delay alone decides.
	Percentile float64 `json:"percentile,omitempty"`
	MaxHedges  int     `json:"maxHedges,omitempty"` // 1 to 5; default 1
}

// BulkheadSpec bounds how many calls run at once.
type BulkheadSpec struct {
	MaxConcurrentCalls int           `json:"maxConcurrentCalls"`        // at least 1
	MaxWaitDuration    time.Duration `json:"maxWaitDuration,omitempty"` // 0: who finds it full is rejected at once
	MaxWaiting         int           `json:"maxWaiting,omitempty"`      // 0: no bound but the wait
}

// PoolSpec is a bulkhead with workers of its own and a queue. Go only.
type PoolSpec struct {
	Workers int // at least 1
	Queue   int // calls that may wait for a worker; 0: none
}

// Algorithm of an adaptive limit.
type Algorithm string

const (
	Gradient Algorithm = "gradient" // the default: short-term latency against long-term
	Vegas    Algorithm = "vegas"    // queue length, from latency against the least latency seen
)

// AdaptiveSpec finds by itself how many calls at once a service bears. With a
// limit of its own each priority keeps a share: when the limit is reached, the
// least important are rejected first.
type AdaptiveSpec struct {
	Algorithm    Algorithm `json:"algorithm,omitempty"`
	InitialLimit int       `json:"initialLimit,omitempty"` // between the other two; default 20
	MinLimit     int       `json:"minLimit,omitempty"`     // default 1
	MaxLimit     int       `json:"maxLimit,omitempty"`     // default 1000
	// PriorityHeader names the request header that carries "critical", "high",
	// "normal" or "low". "": everything is normal.
	PriorityHeader string `json:"priorityHeader,omitempty"`
}

// RateLimitSpec: Requests per Period, evenly, Burst of them at once.
type RateLimitSpec struct {
	Requests        int           `json:"requests"`                  // at least 1
	Period          time.Duration `json:"period,omitempty"`          // default 1 s
	Burst           int           `json:"burst,omitempty"`           // default Requests
	MaxWaitDuration time.Duration `json:"maxWaitDuration,omitempty"` // 0: who comes too early is rejected at once
}

// ThrottleSpec rejects at the client, with growing probability, what the server
// would reject: the more so the more of the last calls it did not accept.
type ThrottleSpec struct {
	// K: calls are let through up to K × the calls accepted. Above 1, at most 10;
	// default 2.
	K      float64       `json:"k,omitempty"`
	Window time.Duration `json:"window,omitempty"` // 1 s to 10 min; default 2 min
}

// IdempotencySpec makes a request with a key run once: its answer is kept and
// given again to whoever repeats it.
type IdempotencySpec struct {
	Header       string        `json:"header,omitempty"`       // default Idempotency-Key
	TTL          time.Duration `json:"ttl,omitempty"`          // of a stored answer; default 24 h
	MaxBodyBytes int           `json:"maxBodyBytes,omitempty"` // of a stored answer and of a compared request; default 64 KiB
	Store        string        `json:"store,omitempty"`        // "memory", the default, or "cluster"
	Required     bool          `json:"required,omitempty"`     // 400 for POST and PATCH without a key
}

// FallbackSpec is what a caller gets instead of a failure, the first that is there:
// another service's answer, the last good one, a fixed one.
type FallbackSpec struct {
	Service string            `json:"service,omitempty"` // asked instead: "inventory-backup", "name.namespace"
	Cached  *CachedSpec       `json:"cached,omitempty"`
	Status  int               `json:"status,omitempty"` // of the fixed answer, 200 to 599; 0: there is none
	Headers map[string]string `json:"headers,omitempty"`
	Body    string            `json:"body,omitempty"`
}

// CachedSpec keeps good answers to GET and HEAD, by URL, for the day when there is
// none.
type CachedSpec struct {
	MaxAge       time.Duration `json:"maxAge,omitempty"`       // default 10 min
	MaxBodyBytes int           `json:"maxBodyBytes,omitempty"` // of one answer; default 64 KiB
	MaxEntries   int           `json:"maxEntries,omitempty"`   // default 1000
}
