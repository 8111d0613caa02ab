package resilience

import (
	"context"
	"errors"
	"sync/atomic"
	"time"
)

// Fallback makes an answer for a call that failed with err. An error of its own
// says that it has none.
type Fallback[T any] func(ctx context.Context, err error) (T, error)

// DoOr is Do with answers for the time when there is none: the fallbacks are asked
// one after the other until one has an answer. They run outside of the policy, in
// the caller's context and without its timeout. Without an answer the error is that
// of the call, joined by what fallbacks had to say. There is no fallback for a caller
// who cancelled, nor for an error that Config.Classify does not call a Failure.
func DoOr[T any](ctx context.Context, p *Policy, fn func(context.Context) (T, error), fallbacks ...Fallback[T]) (T, error) {
	value, o, err := do(ctx, p, fn)
	if err == nil || !mends(ctx, o, err) {
		return value, err
	}
	all := err
	for _, fallback := range fallbacks {
		instead, own := fallback(ctx, err)
		if own == nil {
			return instead, nil
		}
		if !errors.Is(all, own) {
			all = errors.Join(all, own)
		}
	}
	return value, all
}

// mends reports whether a fallback may stand in for a call that ended like this.
func mends(ctx context.Context, o Outcome, err error) bool {
	_, rejected := err.(*Rejected)
	return (rejected || o.Failed()) && ctx.Err() != context.Canceled
}

// Static is a Fallback that always answers value.
func Static[T any](value T) Fallback[T] {
	return func(context.Context, error) (T, error) { return value, nil }
}

// LastGood keeps the last good answer of a function for the day when there is none.
// It holds one value: what depends on a key needs a LastGood for each.
//
//	var rates resilience.LastGood[Rates]
//	fetch := rates.Keep(fetchRates)
//	now, err := resilience.DoOr(ctx, policy, fetch, rates.Fallback)
type LastGood[T any] struct {
	MaxAge time.Duration // of an answer; 0: any

	kept atomic.Pointer[goodAnswer[T]]
}

type goodAnswer[T any] struct {
	value T
	at    time.Time
}

// Keep returns fn, whose good answers are kept from now on.
func (l *LastGood[T]) Keep(fn func(context.Context) (T, error)) func(context.Context) (T, error) {
	return func(ctx context.Context) (T, error) {
		value, err := fn(ctx)
		if err == nil {
			l.kept.Store(&goodAnswer[T]{value, time.Now()})
		}
		return value, err
	}
}

// Fallback answers with what was kept. Without that it returns err.
func (l *LastGood[T]) Fallback(_ context.Context, err error) (T, error) {
	if good := l.kept.Load(); good != nil && (l.MaxAge == 0 || time.Since(good.at) <= l.MaxAge) {
		return good.value, nil
	}
	var none T
	return none, err
}
