package resilience

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

// Callers of little patience do not open the circuit for others, unless nobody else
// says how long is too long.
func TestImpatientCallers(t *testing.T) {
	for name, tt := range map[string]struct {
		spec Spec
		want State
	}{
		"the policy has a timeout":          {Spec{Timeout: time.Second}, Closed},
		"its attempts have":                 {Spec{AttemptTimeout: time.Second}, Closed},
		"the callers are all that is there": {Spec{}, Open},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				tt.spec.CircuitBreaker = &BreakerSpec{ConsecutiveFailures: 5}
				p, err := New("hung", tt.spec)
				if err != nil {
					t.Fatal(err)
				}
				for range 5 {
					ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
					_, _ = Do(ctx, p, func(ctx context.Context) (int, error) {
						<-ctx.Done()
						return 0, ctx.Err()
					})
					cancel()
				}
				if got := p.Breaker().State(); got != tt.want {
					t.Errorf("the circuit is %v; want %v", got, tt.want)
				}
			})
		})
	}
}
