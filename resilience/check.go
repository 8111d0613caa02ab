package resilience

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

// problems collects what is wrong with a Spec, all of it.
type problems struct{ list []error }

func (p *problems) add(field, format string, args ...any) {
	p.list = append(p.list, &FieldError{Field: field, Problem: fmt.Sprintf(format, args...)})
}

func (p *problems) err() error { return errors.Join(p.list...) }

// within complains unless low ≤ n ≤ high, or n is 0, the default.
func (p *problems) within(field string, n, low, high int) {
	switch {
	case n == 0:
	case n < low:
		p.add(field, "%d is below %d", n, low)
	case n > high:
		p.add(field, "%d is above %d", n, high)
	}
}

// number is within for fractions. NaN is in no range.
func (p *problems) number(field string, n, low, high float64) {
	switch {
	case n == 0:
	case n > high:
		p.add(field, "%v is above %v", n, high)
	case !(n >= low):
		p.add(field, "%v is below %v", n, low)
	}
}

// above0 complains unless 0 < n ≤ high, or n is 0, the default.
func (p *problems) above0(field string, n, high float64) {
	if n != 0 && !(n > 0) {
		p.add(field, "%v is not above 0", n)
	} else if n > high {
		p.add(field, "%v is above %v", n, high)
	}
}

// duration is within for durations.
func (p *problems) duration(field string, d, low, high time.Duration) {
	switch {
	case d == 0:
	case d < 0:
		p.add(field, "%s is negative", formatDuration(d))
	case d < low:
		p.add(field, "%s is below %s", formatDuration(d), formatDuration(low))
	case d > high:
		p.add(field, "%s is above %s", formatDuration(d), formatDuration(high))
	}
}

// longest is the longest duration anywhere in a Spec that has no bound of its own.
// It keeps sums and small multiples of durations far from overflowing.
const longest = 366 * 24 * time.Hour

// most bounds every count that has no bound of its own.
const most = 1_000_000_000

// Validate reports everything that is wrong with s, each as a *FieldError.
func (s *Spec) Validate() error {
	var p problems
	s.check(&p)
	return p.err()
}

func (s *Spec) check(p *problems) {
	p.duration("timeout", s.Timeout, 0, longest)
	p.duration("attemptTimeout", s.AttemptTimeout, 0, longest)
	if s.Timeout > 0 && s.AttemptTimeout > s.Timeout {
		p.add("attemptTimeout", "%s is longer than timeout, %s, which would end every attempt",
			formatDuration(s.AttemptTimeout), formatDuration(s.Timeout))
	}
	if s.RateLimit != nil {
		s.RateLimit.check("rateLimit", p)
	}
	if s.Throttle != nil {
		s.Throttle.check("throttle", p)
	}
	if s.AdaptiveConcurrency != nil {
		s.AdaptiveConcurrency.check("adaptiveConcurrency", p)
	}
	if s.Bulkhead != nil {
		s.Bulkhead.check("bulkhead", p)
	}
	if s.Idempotency != nil {
		s.Idempotency.check("idempotency", p)
	}
	if s.Retry != nil {
		s.Retry.check("retry", p)
	}
	if s.Hedge != nil {
		s.Hedge.check("hedge", p)
	}
	if s.CircuitBreaker != nil {
		s.CircuitBreaker.check("circuitBreaker", p)
	}
	if s.Fallback != nil {
		s.Fallback.check("fallback", p)
	}
}

// Defaulted returns the spec with the default in every field that is zero and has
// one. Parts that are absent stay absent.
func (s Spec) Defaulted() Spec { return s.withDefaults() }

func (s Spec) withDefaults() Spec {
	s.RateLimit = defaulted(s.RateLimit)
	s.Throttle = defaulted(s.Throttle)
	s.AdaptiveConcurrency = defaulted(s.AdaptiveConcurrency)
	s.Bulkhead = defaulted(s.Bulkhead)
	s.Idempotency = defaulted(s.Idempotency)
	s.Retry = defaulted(s.Retry)
	s.Hedge = defaulted(s.Hedge)
	s.CircuitBreaker = defaulted(s.CircuitBreaker)
	s.Fallback = defaulted(s.Fallback)
	return s
}

func defaulted[S interface{ withDefaults() S }](part *S) *S {
	if part == nil {
		return nil
	}
	full := (*part).withDefaults()
	return &full
}

// Validate reports everything that is wrong with s, each as a *FieldError.
func (s *BreakerSpec) Validate() error {
	var p problems
	s.check("circuitBreaker", &p)
	return p.err()
}

func (s *BreakerSpec) check(field string, p *problems) {
	p.above0(field+".failureRateThreshold", s.FailureRateThreshold, 100)
	p.above0(field+".slowCallRateThreshold", s.SlowCallRateThreshold, 100)
	p.duration(field+".slowCallDurationThreshold", s.SlowCallDurationThreshold, 0, longest)
	p.within(field+".consecutiveFailures", s.ConsecutiveFailures, 0, most)
	s.SlidingWindow.check(field+".slidingWindow", p)
	p.within(field+".minimumNumberOfCalls", s.MinimumNumberOfCalls, 0, most)
	p.duration(field+".waitDurationInOpenState", s.WaitDurationInOpenState, 0, longest)
	if s.OpenBackoff != nil {
		s.OpenBackoff.check(field+".openBackoff", s.withDefaults().WaitDurationInOpenState, p)
	}
	p.within(field+".permittedCallsInHalfOpenState", s.PermittedCallsInHalfOpenState, 0, 10_000)
	p.duration(field+".halfOpenLease", s.HalfOpenLease, 0, longest)
	checkStatuses(field+".failureStatuses", s.FailureStatuses, p)
	switch s.Mode {
	case ModeAutomatic, ModeForcedOpen, ModeDisabled, ModeMetricsOnly:
	default:
		p.add(field+".mode", "%q is none of %q, %q, %q", string(s.Mode), ModeForcedOpen, ModeDisabled, ModeMetricsOnly)
	}
}

func (s BreakerSpec) withDefaults() BreakerSpec {
	def(&s.FailureRateThreshold, 50)
	def(&s.SlowCallRateThreshold, 100)
	def(&s.SlowCallDurationThreshold, time.Minute)
	s.SlidingWindow = s.SlidingWindow.withDefaults()
	def(&s.MinimumNumberOfCalls, 100)
	if s.SlidingWindow.Type == CountWindow {
		s.MinimumNumberOfCalls = min(s.MinimumNumberOfCalls, s.SlidingWindow.Size)
	}
	def(&s.WaitDurationInOpenState, time.Minute)
	if s.OpenBackoff != nil {
		b := s.OpenBackoff.withDefaults(s.WaitDurationInOpenState)
		s.OpenBackoff = &b
	}
	def(&s.PermittedCallsInHalfOpenState, 10)
	def(&s.HalfOpenLease, max(s.SlowCallDurationThreshold, time.Second))
	if len(s.FailureStatuses) == 0 {
		s.FailureStatuses = []string{"5xx"}
	}
	return s
}

func (s *WindowSpec) check(field string, p *problems) {
	switch s.Type {
	case "", CountWindow:
		p.within(field+".size", s.Size, 1, 10_000)
		if s.Type == CountWindow && s.Size == 0 {
			p.add(field+".size", "a count window needs a size, 1 to 10000")
		}
		if s.Duration != 0 {
			p.add(field+".duration", "is of a time window; type is %q", CountWindow)
		}
	case TimeWindow:
		p.within(field+".size", s.Size, 1, 3600)
		p.duration(field+".duration", s.Duration, time.Second, time.Hour)
		if s.Size == 0 && s.Duration == 0 {
			p.add(field+".duration", "a time window needs a duration, 1s to 1h")
		}
	default:
		p.add(field+".type", "%q is neither %q nor %q", string(s.Type), CountWindow, TimeWindow)
	}
}

// withDefaults returns a count window with a Size or a time window with a Duration.
func (s WindowSpec) withDefaults() WindowSpec {
	if s.Type == TimeWindow {
		def(&s.Duration, time.Duration(s.Size)*time.Second)
		s.Size = 0
		return s
	}
	s.Type = CountWindow
	def(&s.Size, 100)
	return s
}

func (s *OpenBackoffSpec) check(field string, wait time.Duration, p *problems) {
	p.number(field+".multiplier", s.Multiplier, 1, 10)
	p.duration(field+".max", s.Max, 0, longest)
	if s.Max > 0 && s.Max < wait {
		p.add(field+".max", "%s is below the first wait, waitDurationInOpenState, %s", formatDuration(s.Max), formatDuration(wait))
	}
	p.above0(field+".jitter", s.Jitter, 1)
}

func (s OpenBackoffSpec) withDefaults(wait time.Duration) OpenBackoffSpec {
	def(&s.Multiplier, 2)
	def(&s.Max, 10*wait)
	def(&s.Jitter, 0.2)
	return s
}

// Validate reports everything that is wrong with s, each as a *FieldError.
func (s *RetrySpec) Validate() error {
	var p problems
	s.check("retry", &p)
	return p.err()
}

func (s *RetrySpec) check(field string, p *problems) {
	p.within(field+".maxAttempts", s.MaxAttempts, 1, 20)
	s.Backoff.check(field+".backoff", p)
	p.above0(field+".budget.percent", s.Budget.Percent, 1000)
	p.above0(field+".budget.minPerSecond", s.Budget.MinPerSecond, most)
	checkStatuses(field+".statuses", s.Statuses, p)
	checkStatuses(field+".ignoreStatuses", s.IgnoreStatuses, p)
	for i, name := range s.GRPCStatuses {
		if code := grpcCode(name); code < 0 {
			p.add(index(field+".grpcStatuses", i), "%q is no gRPC status; spell it as in UNAVAILABLE", name)
		} else if code == 0 {
			p.add(index(field+".grpcStatuses", i), "OK is no failure")
		}
	}
	for i, m := range s.Methods {
		if !isToken(m) {
			p.add(index(field+".methods", i), "%q is no HTTP method", m)
		} else if m != strings.ToUpper(m) {
			p.add(index(field+".methods", i), "%q: methods are upper-case, %q", m, strings.ToUpper(m))
		}
	}
}

//lint:ignore U1000 defaulted calls it
func (s RetrySpec) withDefaults() RetrySpec {
	def(&s.MaxAttempts, 3)
	s.Backoff = s.Backoff.withDefaults()
	s.Budget = s.Budget.withDefaults()
	if len(s.Statuses) == 0 {
		s.Statuses = []string{"502", "503", "504", "429"}
	}
	if len(s.GRPCStatuses) == 0 {
		s.GRPCStatuses = []string{"UNAVAILABLE"}
	}
	return s
}

func (s *BackoffSpec) check(field string, p *problems) {
	p.duration(field+".initial", s.Initial, 0, longest)
	p.number(field+".multiplier", s.Multiplier, 1, 10)
	p.duration(field+".max", s.Max, 0, longest)
	if initial := s.withDefaults().Initial; s.Max > 0 && s.Max < initial {
		p.add(field+".max", "%s is below initial, %s", formatDuration(s.Max), formatDuration(initial))
	}
	switch s.Jitter {
	case "", FullJitter, DecorrelatedJitter, NoJitter:
	default:
		p.add(field+".jitter", "%q is none of %q, %q, %q", string(s.Jitter), FullJitter, DecorrelatedJitter, NoJitter)
	}
}

func (s BackoffSpec) withDefaults() BackoffSpec {
	def(&s.Initial, 25*time.Millisecond)
	def(&s.Multiplier, 2)
	def(&s.Max, 10*s.Initial)
	def(&s.Jitter, FullJitter)
	return s
}

func (s BudgetSpec) withDefaults() BudgetSpec {
	def(&s.Percent, 20)
	def(&s.MinPerSecond, 3)
	return s
}

// Validate reports everything that is wrong with s, each as a *FieldError.
func (s *HedgeSpec) Validate() error {
	var p problems
	s.check("hedge", &p)
	return p.err()
}

func (s *HedgeSpec) check(field string, p *problems) {
	p.duration(field+".delay", s.Delay, 0, longest)
	p.number(field+".percentile", s.Percentile, 50, 99.9)
	if s.Delay == 0 && s.Percentile == 0 {
		p.add(field, "needs delay, percentile, or both")
	}
	p.within(field+".maxHedges", s.MaxHedges, 1, 5)
}

//lint:ignore U1000 defaulted calls it
func (s HedgeSpec) withDefaults() HedgeSpec {
	def(&s.MaxHedges, 1)
	return s
}

// Validate reports everything that is wrong with s, each as a *FieldError.
func (s *BulkheadSpec) Validate() error {
	var p problems
	s.check("bulkhead", &p)
	return p.err()
}

func (s *BulkheadSpec) check(field string, p *problems) {
	p.atLeast1(field+".maxConcurrentCalls", s.MaxConcurrentCalls)
	p.duration(field+".maxWaitDuration", s.MaxWaitDuration, 0, longest)
	p.within(field+".maxWaiting", s.MaxWaiting, 0, most)
}

func (p *problems) atLeast1(field string, n int) {
	if n < 1 {
		p.add(field, "%d is below 1", n)
	} else if n > most {
		p.add(field, "%d is above %d", n, most)
	}
}

func (s BulkheadSpec) withDefaults() BulkheadSpec { return s }

// Validate reports everything that is wrong with s, each as a *FieldError.
func (s *PoolSpec) Validate() error {
	var p problems
	if p.atLeast1("pool.workers", s.Workers); s.Workers > 1_000_000 {
		p.add("pool.workers", "%d is above 1000000", s.Workers)
	}
	p.within("pool.queue", s.Queue, 0, 1_000_000)
	return p.err()
}

func (s PoolSpec) withDefaults() PoolSpec { return s }

// Validate reports everything that is wrong with s, each as a *FieldError.
func (s *AdaptiveSpec) Validate() error {
	var p problems
	s.check("adaptiveConcurrency", &p)
	return p.err()
}

func (s *AdaptiveSpec) check(field string, p *problems) {
	switch s.Algorithm {
	case "", Gradient, Vegas:
	default:
		p.add(field+".algorithm", "%q is neither %q nor %q", string(s.Algorithm), Gradient, Vegas)
	}
	p.within(field+".initialLimit", s.InitialLimit, 1, most)
	p.within(field+".minLimit", s.MinLimit, 1, most)
	p.within(field+".maxLimit", s.MaxLimit, 1, most)
	full := s.withDefaults()
	if full.MinLimit > full.MaxLimit {
		p.add(field+".minLimit", "%d is above maxLimit, %d", full.MinLimit, full.MaxLimit)
	} else if s.InitialLimit > 0 && (s.InitialLimit < full.MinLimit || s.InitialLimit > full.MaxLimit) {
		p.add(field+".initialLimit", "%d is not between minLimit, %d, and maxLimit, %d", s.InitialLimit, full.MinLimit, full.MaxLimit)
	}
	if s.PriorityHeader != "" && !isToken(s.PriorityHeader) {
		p.add(field+".priorityHeader", "%q is no header name", s.PriorityHeader)
	}
}

func (s AdaptiveSpec) withDefaults() AdaptiveSpec {
	def(&s.Algorithm, Gradient)
	def(&s.MinLimit, 1)
	def(&s.MaxLimit, 1000)
	def(&s.InitialLimit, min(max(20, s.MinLimit), s.MaxLimit))
	return s
}

// Validate reports everything that is wrong with s, each as a *FieldError.
func (s *RateLimitSpec) Validate() error {
	var p problems
	s.check("rateLimit", &p)
	return p.err()
}

func (s *RateLimitSpec) check(field string, p *problems) {
	p.atLeast1(field+".requests", s.Requests)
	p.duration(field+".period", s.Period, 0, longest)
	p.within(field+".burst", s.Burst, 0, most)
	p.duration(field+".maxWaitDuration", s.MaxWaitDuration, 0, longest)
	full := s.withDefaults()
	if full.Requests < 1 || full.Period <= 0 || full.Burst < 1 {
		return
	}
	if int64(full.Requests) > int64(full.Period) {
		p.add(field+".requests", "%d in %s are more than one a nanosecond", full.Requests, formatDuration(full.Period))
	}
	if every := float64(full.Period) / float64(full.Requests); every*float64(full.Burst) > math.MaxInt64/4 {
		p.add(field+".burst", "%d of these take more than 70 years", full.Burst)
	}
}

func (s RateLimitSpec) withDefaults() RateLimitSpec {
	def(&s.Period, time.Second)
	def(&s.Burst, s.Requests)
	return s
}

// Validate reports everything that is wrong with s, each as a *FieldError.
func (s *ThrottleSpec) Validate() error {
	var p problems
	s.check("throttle", &p)
	return p.err()
}

func (s *ThrottleSpec) check(field string, p *problems) {
	if s.K != 0 && !(s.K > 1) {
		p.add(field+".k", "%v is not above 1", s.K)
	} else if s.K > 10 {
		p.add(field+".k", "%v is above 10", s.K)
	}
	p.duration(field+".window", s.Window, time.Second, 10*time.Minute)
}

func (s ThrottleSpec) withDefaults() ThrottleSpec {
	def(&s.K, 2)
	def(&s.Window, 2*time.Minute)
	return s
}

// Validate reports everything that is wrong with s, each as a *FieldError.
func (s *IdempotencySpec) Validate() error {
	var p problems
	s.check("idempotency", &p)
	return p.err()
}

// biggestBody bounds what one kept answer may take.
const biggestBody = 64 << 20

func (s *IdempotencySpec) check(field string, p *problems) {
	if s.Header != "" && !isToken(s.Header) {
		p.add(field+".header", "%q is no header name", s.Header)
	}
	p.duration(field+".ttl", s.TTL, 0, longest)
	p.within(field+".maxBodyBytes", s.MaxBodyBytes, 1, biggestBody)
	switch s.Store {
	case "", "memory", "cluster":
	default:
		p.add(field+".store", "%q is neither %q nor %q", s.Store, "memory", "cluster")
	}
}

func (s IdempotencySpec) withDefaults() IdempotencySpec {
	def(&s.Header, "Idempotency-Key")
	def(&s.TTL, 24*time.Hour)
	def(&s.MaxBodyBytes, 64<<10)
	def(&s.Store, "memory")
	return s
}

// Validate reports everything that is wrong with s, each as a *FieldError.
func (s *FallbackSpec) Validate() error {
	var p problems
	s.check("fallback", &p)
	return p.err()
}

func (s *FallbackSpec) check(field string, p *problems) {
	p.within(field+".status", s.Status, 200, 599)
	if s.Status == 0 && len(s.Headers) > 0 {
		p.add(field+".headers", "without status there is no answer to carry them")
	}
	if s.Status == 0 && s.Body != "" {
		p.add(field+".body", "without status there is no answer to carry it")
	}
	if (s.Status == 204 || s.Status == 304) && s.Body != "" {
		p.add(field+".body", "an answer with status %d has no body", s.Status)
	}
	if s.Service == "" && s.Cached == nil && s.Status == 0 {
		p.add(field, "needs service, cached or status")
	}
	seen := map[string]bool{}
	for _, name := range slices.Sorted(maps.Keys(s.Headers)) {
		at := field + ".headers." + name
		checkHeader(at, name, s.Headers[name], p)
		if lower := strings.ToLower(name); seen[lower] {
			p.add(at, "is there twice, in another case")
		} else {
			seen[lower] = true
		}
	}
	if s.Cached != nil {
		s.Cached.check(field+".cached", p)
	}
}

//lint:ignore U1000 defaulted calls it
func (s FallbackSpec) withDefaults() FallbackSpec {
	s.Cached = defaulted(s.Cached)
	return s
}

func (s *CachedSpec) check(field string, p *problems) {
	p.duration(field+".maxAge", s.MaxAge, 0, longest)
	p.within(field+".maxBodyBytes", s.MaxBodyBytes, 1, biggestBody)
	p.within(field+".maxEntries", s.MaxEntries, 1, 10_000_000)
}

func (s CachedSpec) withDefaults() CachedSpec {
	def(&s.MaxAge, 10*time.Minute)
	def(&s.MaxBodyBytes, 64<<10)
	def(&s.MaxEntries, 1000)
	return s
}

// def sets what is zero.
func def[V comparable](field *V, value V) {
	var zero V
	if *field == zero {
		*field = value
	}
}

func index(field string, i int) string { return field + "[" + strconv.Itoa(i) + "]" }

func checkStatuses(field string, list []string, p *problems) {
	for i, s := range list {
		if _, _, ok := parseStatus(s); !ok {
			p.add(index(field, i), "%q is no HTTP status; write 503 or 5xx", s)
		}
	}
}

// parseStatus reads "503" or "5xx" as the range that it means.
func parseStatus(s string) (low, high int, ok bool) {
	if len(s) != 3 || s[0] < '1' || s[0] > '5' {
		return 0, 0, false
	}
	if class := int(s[0]-'0') * 100; s[1:] == "xx" {
		return class, class + 99, true
	}
	n, err := strconv.Atoi(s)
	return n, n, err == nil
}

// grpcNames in the order of their codes.
var grpcNames = [...]string{"OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED",
	"NOT_FOUND", "ALREADY_EXISTS", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION",
	"ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED"}

// grpcCode returns the code of a name, -1 if there is none.
func grpcCode(name string) int {
	for code, n := range grpcNames {
		if n == name {
			return code
		}
	}
	return -1
}

// checkHeader holds a fixed answer's header to RFC 9110 §5, and keeps away what
// frames a message: the length of a fixed answer is known.
func checkHeader(field, name, value string, p *problems) {
	switch {
	case !isToken(name):
		p.add(field, "%q is no header name", name)
	case strings.EqualFold(name, "content-length"), strings.EqualFold(name, "transfer-encoding"),
		strings.EqualFold(name, "connection"), strings.EqualFold(name, "trailer"), strings.EqualFold(name, "upgrade"):
		p.add(field, "%s frames a message and is not for a policy to say", name)
	}
	for i := range len(value) {
		if c := value[i]; c < ' ' && c != '\t' || c == 0x7f {
			p.add(field, "has a control character")
			break
		}
	}
}

// isToken is RFC 9110's token, section 5.6.2.
func isToken(s string) bool {
	for i := range len(s) {
		c := s[i]
		if c <= ' ' || c >= 0x7f || strings.IndexByte("\"(),/:;<=>?@[\\]{}", c) >= 0 {
			return false
		}
	}
	return s != ""
}

// formatDuration writes d without the zero units at its end: "1m", not "1m0s".
func formatDuration(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = s[:len(s)-2]
	}
	if strings.HasSuffix(s, "h0m") {
		s = s[:len(s)-2]
	}
	return s
}
