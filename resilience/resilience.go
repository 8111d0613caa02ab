// Package resilience keeps failures small: circuit breaker, retry with a budget,
// hedging, bulkhead, worker pool, adaptive concurrency, rate limit, client-side
// throttling, timeouts, fallbacks, idempotency keys and outlier ejection. It imports
// only the standard library, and is part of the stable API.
//
// A [Policy] composes them. It is made from a [Spec], which is the same struct and
// means the same as a document of kind ResiliencePolicy, and is used
//
//   - by [Do], around a function, and [DoOr], with fallbacks;
//   - by [Transport], around HTTP requests;
//   - by [Policy.Begin] and the methods of [Call], by whoever has no function to
//     hand over: a proxy.
//
// Each mechanism can be had alone, too: [NewBreaker], [NewBulkhead], [NewPool],
// [NewRateLimiter], [NewAdaptive], [NewThrottle], [Budget], [Outlier], and [Once] and
// [Idempotent] for idempotency keys. Their methods take the time from their caller,
// and none has a timer or a goroutine unless it says so.
//
//	policy, err := resilience.New("inventory", resilience.Spec{
//		Timeout:        2 * time.Second,
//		Retry:          &resilience.RetrySpec{},
//		CircuitBreaker: &resilience.BreakerSpec{},
//	})
//	…
//	stock, err := resilience.Do(ctx, policy, func(ctx context.Context) (int, error) {
//		return fetchStock(ctx, item)
//	})
//
// # Order
//
// The order is fixed, from the outside to the inside:
//
//  1. Fallback: it answers for whatever fails inside of it, a rejection too.
//  2. Timeout: the caller's patience covers all of the following, waits and pauses
//     included. A fallback is not under it, or there would be none after a timeout.
//  3. Idempotency: an answer that is there already costs no one a place or a token.
//     It is the server's part, or [Once] around Do.
//  4. Rate limit: how often we call is agreed per call, however many attempts it
//     takes; and who comes too often should not take up a place while waiting.
//  5. Throttle: what the server would reject anyway is not worth a place either.
//  6. Adaptive limit, then bulkhead: they count calls, not attempts, so that a call
//     keeps its place for its retries, and retries cannot crowd out first attempts.
//  7. Retry, paid from the budget.
//  8. Hedge: a hedge belongs to one attempt, and draws on the same budget, so that
//     retries and hedges cannot add up to a storm.
//  9. Circuit breaker: inside of retry and hedge it sees each attempt. That is what
//     tells most about the service, and an open circuit ends the retries.
//  10. Attempt timeout, and the call itself. It is innermost so that the breaker
//     learns how long the attempt took, and retry gets to try another one.
//
// # What counts
//
// Every attempt has an [Outcome]. That the caller cancelled is never held against a
// service: Ignored. A timeout of the policy is a failure, and slow whatever the
// threshold: TimedOut. A deadline that the caller's context brought along and that
// passes during an attempt is a Failure where the policy has no timeout, and else
// Ignored: the caller had less patience than the policy.
//
// # Costs
//
// On the happy path nothing is allocated, and only breaker, adaptive limit and
// throttle take a lock, to count; a timeout in the spec costs one small context an
// attempt, a hedge a goroutine an attempt.
package resilience
