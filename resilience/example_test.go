package resilience_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"time"

	"github.com/weftmesh/weft/resilience"
)

func ExampleDo() {
	policy, err := resilience.New("inventory", resilience.Spec{
		Timeout:        2 * time.Second,
		Retry:          &resilience.RetrySpec{MaxAttempts: 3, Backoff: resilience.BackoffSpec{Initial: time.Millisecond}},
		Bulkhead:       &resilience.BulkheadSpec{MaxConcurrentCalls: 10, MaxWaitDuration: 50 * time.Millisecond},
		CircuitBreaker: &resilience.BreakerSpec{SlidingWindow: resilience.WindowSpec{Type: resilience.CountWindow, Size: 10}},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	attempts := 0
	stock, err := resilience.Do(context.Background(), policy, func(ctx context.Context) (int, error) {
		if attempts++; attempts == 1 {
			return 0, errors.New("connection reset")
		}
		return 42, nil
	})
	fmt.Println(stock, err, attempts)
	// Output: 42 <nil> 2
}

func ExampleDoOr() {
	policy, err := resilience.New("rates", resilience.Spec{
		CircuitBreaker: &resilience.BreakerSpec{ConsecutiveFailures: 1},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	working := true
	var last resilience.LastGood[float64]
	fetch := last.Keep(func(context.Context) (float64, error) {
		if !working {
			return 0, errors.New("the service is down")
		}
		return 1.08, nil
	})
	for range 3 {
		fmt.Println(resilience.DoOr(context.Background(), policy, fetch, last.Fallback, resilience.Static(1.0)))
		working = false
	}
	fmt.Println(policy.Breaker().State())
	// Output:
	// 1.08 <nil>
	// 1.08 <nil>
	// 1.08 <nil>
	// open
}

func ExampleTransport() {
	calls := 0
	service := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if calls++; calls == 1 {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		io.WriteString(w, "three left")
	}))
	defer service.Close()

	policy, err := resilience.New("inventory", resilience.Spec{
		Timeout: 2 * time.Second,
		Retry:   &resilience.RetrySpec{Backoff: resilience.BackoffSpec{Initial: time.Millisecond}},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	client := &http.Client{Transport: &resilience.Transport{Policy: policy}}
	resp, err := client.Get(service.URL)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	fmt.Println(resp.StatusCode, string(body), calls)
	// Output: 200 three left 2
}

func ExampleParseSpec() {
	_, err := resilience.ParseSpec([]byte(`{
		"timeout": "2",
		"circuitBreaker": {"failureRateThreshold": 140, "slidingWindow": {"type": "count", "size": 0}}
	}`))
	fmt.Println(err)
	// Output:
	// timeout: "2" is no duration; write it as in "1m30s"
	// circuitBreaker.failureRateThreshold: 140 is above 100
	// circuitBreaker.slidingWindow.size: a count window needs a size, 1 to 10000
}

func ExamplePolicy_Begin() {
	policy, err := resilience.New("inventory", resilience.Spec{
		Retry: &resilience.RetrySpec{MaxAttempts: 2, Backoff: resilience.BackoffSpec{Jitter: resilience.NoJitter}},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	call, err := policy.Begin(context.Background(), time.Now(), resilience.Normal)
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, status := range []int{503, 200} {
		permit, err := call.Attempt(time.Now())
		if err != nil {
			fmt.Println(err)
			return
		}
		outcome := resilience.Success
		if policy.FailsStatus(status) {
			outcome = resilience.Failure
		}
		call.AttemptDone(permit, time.Now(), outcome)
		if policy.RetriesStatus(status) {
			wait, again := call.Retry(time.Now(), 0)
			fmt.Println(status, "again after", wait, again)
			continue
		}
		fmt.Println(status)
		call.End(time.Now(), outcome)
	}
	// Output:
	// 503 again after 25ms true
	// 200
}
