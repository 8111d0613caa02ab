package resilience

import (
	"encoding/json"
	"errors"
	"math"
	"reflect"
	"strings"
	"testing"
	"time"
)

// problemsOf lists what an error joins, one line a field.
func problemsOf(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

const inventory = `{
  "timeout": "2s",
  "circuitBreaker": {
    "failureRateThreshold": 50, "slowCallRateThreshold": 50, "slowCallDurationThreshold": "2s",
    "slidingWindow": {"type": "count", "size": 10},
    "waitDurationInOpenState": "30s", "permittedCallsInHalfOpenState": 3},
  "retry": {"maxAttempts": 3,
    "backoff": {"initial": "200ms", "multiplier": 2, "max": "10s", "jitter": "full"},
    "ignoreStatuses": ["4xx"], "budget": {"percent": 20, "minPerSecond": 3}},
  "bulkhead": {"maxConcurrentCalls": 10, "maxWaitDuration": "50ms"},
  "fallback": {"status": 200, "headers": {"content-type": "application/json"}, "body": "{\"status\":\"unknown\"}"}
}`

func TestParseSpec(t *testing.T) {
	got, err := ParseSpec([]byte(inventory))
	if err != nil {
		t.Fatal(err)
	}
	want := &Spec{
		Timeout: 2 * time.Second,
		CircuitBreaker: &BreakerSpec{FailureRateThreshold: 50, SlowCallRateThreshold: 50, SlowCallDurationThreshold: 2 * time.Second,
			SlidingWindow:           WindowSpec{Type: CountWindow, Size: 10},
			WaitDurationInOpenState: 30 * time.Second, PermittedCallsInHalfOpenState: 3},
		Retry: &RetrySpec{MaxAttempts: 3,
			Backoff:        BackoffSpec{200 * time.Millisecond, 2, 10 * time.Second, FullJitter},
			IgnoreStatuses: []string{"4xx"}, Budget: BudgetSpec{20, 3}},
		Bulkhead: &BulkheadSpec{MaxConcurrentCalls: 10, MaxWaitDuration: 50 * time.Millisecond},
		Fallback: &FallbackSpec{Status: 200, Headers: map[string]string{"content-type": "application/json"}, Body: `{"status":"unknown"}`},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	if full := got.withDefaults(); full.CircuitBreaker.MinimumNumberOfCalls != 10 || full.CircuitBreaker.HalfOpenLease != 2*time.Second {
		t.Errorf("defaults that depend on others: %+v", full.CircuitBreaker)
	}
}

func TestParseSpecNamesWhatIsWrong(t *testing.T) {
	for _, tc := range []struct{ name, document, want string }{
		{"not JSON", `{"timeout"`, `not JSON: unexpected end of JSON input`},
		{"no object", `5`, `5 is no object`},
		{"unknown", `{"retry": {"attempts": 3}}`, `retry.attempts: there is no such field`},
		{"case counts", `{"Timeout": "1s"}`, `Timeout: there is no such field`},
		{"twice", `{"timeout": "1s", "timeout": "2s"}`, `timeout: is there twice`},
		{"null", `{"retry": null}`, `retry: null is no value; leave the field out`},
		{"duration as a number", `{"timeout": 2}`, `timeout: 2 is no duration; write it as in "1m30s"`},
		{"bad duration", `{"bulkhead": {"maxConcurrentCalls": 1, "maxWaitDuration": "5 s"}}`,
			`bulkhead.maxWaitDuration: "5 s" is no duration; write it as in "1m30s"`},
		{"fraction", `{"retry": {"maxAttempts": 2.5}}`, `retry.maxAttempts: 2.5 is no whole number`},
		{"text for a number", `{"circuitBreaker": {"failureRateThreshold": "50"}}`, `circuitBreaker.failureRateThreshold: "50" is no number`},
		{"number for text", `{"fallback": {"status": 200, "body": 7}}`, `fallback.body: 7 is no text`},
		{"text for a list", `{"retry": {"statuses": "5xx"}}`, `retry.statuses: "5xx" is no list`},
		{"object in a list", `{"retry": {"statuses": [{}]}}`, `retry.statuses[0]: {} is no text`},
		{"number for an object", `{"bulkhead": 10}`, `bulkhead: 10 is no object`},
		{"text for a flag", `{"idempotency": {"required": "yes"}}`, `idempotency.required: "yes" is neither true nor false`},
		{"zero threshold", `{"circuitBreaker": {"failureRateThreshold": 0}}`,
			`circuitBreaker.failureRateThreshold: 0 is out of range; without the field it is 50`},
		{"zero wait", `{"circuitBreaker": {"waitDurationInOpenState": "0s"}}`,
			`circuitBreaker.waitDurationInOpenState: "0s" is out of range; without the field it is 1m`},
		{"zero window", `{"circuitBreaker": {"slidingWindow": {"size": 0}}}`,
			`circuitBreaker.slidingWindow.size: 0 is out of range; without the field it is 100`},
		{"zero count window", `{"circuitBreaker": {"slidingWindow": {"type": "count", "size": 0}}}`,
			`circuitBreaker.slidingWindow.size: a count window needs a size, 1 to 10000`},
		{"zero time window", `{"circuitBreaker": {"slidingWindow": {"type": "time", "duration": "0s"}}}`,
			`circuitBreaker.slidingWindow.duration: a time window needs a duration, 1s to 1h`},
		{"zero calls at once", `{"bulkhead": {"maxConcurrentCalls": 0}}`, `bulkhead.maxConcurrentCalls: 0 is below 1`},
		{"zero attempts", `{"retry": {"maxAttempts": 0}}`, `retry.maxAttempts: 0 is out of range; without the field it is 3`},
		{"no statuses", `{"retry": {"statuses": []}}`,
			`retry.statuses: [] is out of range; without the field it is ["502","503","504","429"]`},
		{"no header", `{"idempotency": {"header": ""}}`, `idempotency.header: "" is out of range; without the field it is "Idempotency-Key"`},
		{"all at once", `{"timeout": "-1s", "rateLimit": {"requests": "x", "foo": 1}, "circuitBreaker": {"failureRateThreshold": 140}}`,
			"rateLimit.requests: \"x\" is no whole number\nrateLimit.foo: there is no such field\n" +
				"timeout: -1s is negative\ncircuitBreaker.failureRateThreshold: 140 is above 100"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := ParseSpec([]byte(tc.document))
			if got := problemsOf(err); got != tc.want {
				t.Errorf("got  %s\nwant %s", got, tc.want)
			}
			var s Spec
			if json.Unmarshal([]byte(tc.document), &s) == nil {
				t.Error("json.Unmarshal takes it")
			}
			var field *FieldError
			if !errors.As(err, &field) {
				t.Error("it is no FieldError")
			}
		})
	}
}

func TestZeroIsAValueWhereItIsInRange(t *testing.T) {
	for _, document := range []string{
		`{"timeout": "0s", "attemptTimeout": "0"}`,
		`{"circuitBreaker": {"consecutiveFailures": 0, "mode": ""}}`,
		`{"bulkhead": {"maxConcurrentCalls": 1, "maxWaitDuration": "0s", "maxWaiting": 0}}`,
		`{"hedge": {"delay": "1s", "percentile": 0}}`,
		`{"retry": {"methods": [], "ignoreStatuses": []}}`,
		`{"retry": {"statuses": [503, "5xx"]}}`,
	} {
		if _, err := ParseSpec([]byte(document)); err != nil {
			t.Errorf("%s: %v", document, err)
		}
	}
}

func TestValidate(t *testing.T) {
	for _, tc := range []struct {
		name string
		spec Spec
		want string // "" is valid
	}{
		{"nothing", Spec{}, ""},
		{"every default", Spec{Throttle: &ThrottleSpec{}, AdaptiveConcurrency: &AdaptiveSpec{}, Idempotency: &IdempotencySpec{},
			Retry: &RetrySpec{}, CircuitBreaker: &BreakerSpec{OpenBackoff: &OpenBackoffSpec{}}}, ""},
		{"attempt longer than all", Spec{Timeout: time.Second, AttemptTimeout: 2 * time.Second},
			"attemptTimeout: 2s is longer than timeout, 1s, which would end every attempt"},
		{"NaN", Spec{CircuitBreaker: &BreakerSpec{FailureRateThreshold: math.NaN()}}, "circuitBreaker.failureRateThreshold: NaN is not above 0"},
		{"infinity", Spec{Retry: &RetrySpec{Budget: BudgetSpec{Percent: math.Inf(1)}}}, "retry.budget.percent: +Inf is above 1000"},
		{"negative percent", Spec{CircuitBreaker: &BreakerSpec{SlowCallRateThreshold: -1}}, "circuitBreaker.slowCallRateThreshold: -1 is not above 0"},
		{"negative minimum", Spec{CircuitBreaker: &BreakerSpec{MinimumNumberOfCalls: -1}}, "circuitBreaker.minimumNumberOfCalls: -1 is below 0"},
		{"big window", Spec{CircuitBreaker: &BreakerSpec{SlidingWindow: WindowSpec{Size: 10_001}}}, "circuitBreaker.slidingWindow.size: 10001 is above 10000"},
		{"duration of a count window", Spec{CircuitBreaker: &BreakerSpec{SlidingWindow: WindowSpec{Duration: time.Minute}}},
			`circuitBreaker.slidingWindow.duration: is of a time window; type is "count"`},
		{"unknown window", Spec{CircuitBreaker: &BreakerSpec{SlidingWindow: WindowSpec{Type: "sliding"}}},
			`circuitBreaker.slidingWindow.type: "sliding" is neither "count" nor "time"`},
		{"short time window", Spec{CircuitBreaker: &BreakerSpec{SlidingWindow: WindowSpec{Type: TimeWindow, Duration: time.Millisecond}}},
			"circuitBreaker.slidingWindow.duration: 1ms is below 1s"},
		{"seconds of a time window", Spec{CircuitBreaker: &BreakerSpec{SlidingWindow: WindowSpec{Type: TimeWindow, Size: 10}}}, ""},
		{"backoff that shrinks", Spec{CircuitBreaker: &BreakerSpec{OpenBackoff: &OpenBackoffSpec{Max: time.Second}}},
			"circuitBreaker.openBackoff.max: 1s is below the first wait, waitDurationInOpenState, 1m"},
		{"mode", Spec{CircuitBreaker: &BreakerSpec{Mode: "open"}},
			`circuitBreaker.mode: "open" is none of "forced-open", "disabled", "metrics-only"`},
		{"status", Spec{CircuitBreaker: &BreakerSpec{FailureStatuses: []string{"5xx", "600", "50x"}}},
			"circuitBreaker.failureStatuses[1]: \"600\" is no HTTP status; write 503 or 5xx\n" +
				"circuitBreaker.failureStatuses[2]: \"50x\" is no HTTP status; write 503 or 5xx"},
		{"gRPC status", Spec{Retry: &RetrySpec{GRPCStatuses: []string{"unavailable", "OK"}}},
			"retry.grpcStatuses[0]: \"unavailable\" is no gRPC status; spell it as in UNAVAILABLE\nretry.grpcStatuses[1]: OK is no failure"},
		{"method", Spec{Retry: &RetrySpec{Methods: []string{"POST", "patch", "A B"}}},
			"retry.methods[1]: \"patch\": methods are upper-case, \"PATCH\"\nretry.methods[2]: \"A B\" is no HTTP method"},
		{"jitter", Spec{Retry: &RetrySpec{Backoff: BackoffSpec{Jitter: "some"}}},
			`retry.backoff.jitter: "some" is none of "full", "decorrelated", "none"`},
		{"attempts", Spec{Retry: &RetrySpec{MaxAttempts: 21}}, "retry.maxAttempts: 21 is above 20"},
		{"backoff's max", Spec{Retry: &RetrySpec{Backoff: BackoffSpec{Max: time.Millisecond}}}, "retry.backoff.max: 1ms is below initial, 25ms"},
		{"hedge when?", Spec{Hedge: &HedgeSpec{}}, "hedge: needs delay, percentile, or both"},
		{"percentile", Spec{Hedge: &HedgeSpec{Percentile: 99.99}}, "hedge.percentile: 99.99 is above 99.9"},
		{"k", Spec{Throttle: &ThrottleSpec{K: 1}}, "throttle.k: 1 is not above 1"},
		{"limits", Spec{AdaptiveConcurrency: &AdaptiveSpec{MinLimit: 50, MaxLimit: 40}}, "adaptiveConcurrency.minLimit: 50 is above maxLimit, 40"},
		{"initial limit", Spec{AdaptiveConcurrency: &AdaptiveSpec{InitialLimit: 50, MaxLimit: 40}},
			"adaptiveConcurrency.initialLimit: 50 is not between minLimit, 1, and maxLimit, 40"},
		{"small limit", Spec{AdaptiveConcurrency: &AdaptiveSpec{MaxLimit: 4}}, ""},
		{"rate", Spec{RateLimit: &RateLimitSpec{Requests: 0, Burst: -1}}, "rateLimit.requests: 0 is below 1\nrateLimit.burst: -1 is below 0"},
		{"rate beyond the clock", Spec{RateLimit: &RateLimitSpec{Requests: 11, Period: 10}}, "rateLimit.requests: 11 in 10ns are more than one a nanosecond"},
		{"store", Spec{Idempotency: &IdempotencySpec{Store: "redis"}}, `idempotency.store: "redis" is neither "memory" nor "cluster"`},
		{"empty fallback", Spec{Fallback: &FallbackSpec{}}, "fallback: needs service, cached or status"},
		{"fallback without status", Spec{Fallback: &FallbackSpec{Body: "sorry", Headers: map[string]string{"a": "b"}}},
			"fallback.headers: without status there is no answer to carry them\nfallback.body: without status there is no answer to carry it\n" +
				"fallback: needs service, cached or status"},
		{"fallback's head", Spec{Fallback: &FallbackSpec{Status: 200, Headers: map[string]string{"Content-Length": "0", "x": "a\r\nb", "y y": "", "X": ""}}},
			"fallback.headers.Content-Length: Content-Length frames a message and is not for a policy to say\n" +
				"fallback.headers.x: has a control character\nfallback.headers.x: is there twice, in another case\n" +
				"fallback.headers.y y: \"y y\" is no header name"},
		{"204 with a body", Spec{Fallback: &FallbackSpec{Status: 204, Body: "x"}}, "fallback.body: an answer with status 204 has no body"},
		{"informational", Spec{Fallback: &FallbackSpec{Status: 101}}, "fallback.status: 101 is below 200"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := problemsOf(tc.spec.Validate()); got != tc.want {
				t.Errorf("got  %s\nwant %s", got, tc.want)
			}
		})
	}
}

func TestMarshalSpec(t *testing.T) {
	s := Spec{Timeout: 90 * time.Minute, Bulkhead: &BulkheadSpec{MaxConcurrentCalls: 3}, Retry: &RetrySpec{Statuses: []string{"503"}},
		CircuitBreaker: &BreakerSpec{SlidingWindow: WindowSpec{Type: TimeWindow, Duration: time.Minute}}}
	got, err := json.Marshal(s)
	want := `{"timeout":"1h30m","bulkhead":{"maxConcurrentCalls":3},"retry":{"statuses":["503"]},` +
		`"circuitBreaker":{"slidingWindow":{"type":"time","duration":"1m"}}}`
	if err != nil || string(got) != want {
		t.Errorf("got  %s, %v\nwant %s", got, err, want)
	}
}

func FuzzParseSpec(f *testing.F) {
	f.Add([]byte(inventory))
	f.Add([]byte(`{"hedge":{"percentile":95,"delay":"1ms"},"throttle":{"k":1.5},"idempotency":{"required":true}}`))
	f.Add([]byte(`{"fallback":{"cached":{},"headers":{}},"rateLimit":{"requests":1,"period":"1h0m0.5s"}}`))
	f.Fuzz(func(t *testing.T, document []byte) {
		s, err := ParseSpec(document)
		if err != nil {
			for line := range strings.SplitSeq(err.Error(), "\n") {
				if line == "" {
					t.Errorf("%q: a problem without words in %q", document, err)
				}
			}
			return
		}
		text, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		again, err := ParseSpec(text)
		if err != nil {
			t.Fatalf("%s, from %s: %v", text, document, err)
		}
		twice, _ := json.Marshal(again)
		if string(twice) != string(text) {
			t.Errorf("%s became %s", text, twice)
		}
		if full := again.withDefaults(); full.Validate() != nil {
			t.Errorf("%s: with its defaults it is not valid: %v", text, full.Validate())
		}
	})
}
