package resilience

import (
	"context"
	"errors"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestWhichRequestsRunOnce(t *testing.T) {
	long := strings.Repeat("k", 255)
	for _, tc := range []struct {
		name     string
		required bool
		method   string
		lines    []string
		once     bool
		reason   string // of the refusal
	}{
		{"a payment", false, "POST", []string{"8e03978e-40d5"}, true, ""},
		{"quoted, as the draft writes it", false, "POST", []string{`"8e03978e-40d5"`}, true, ""},
		{"a patch", false, "PATCH", []string{"k"}, true, ""},
		{"an unknown method", false, "LINK", []string{"k"}, true, ""},
		{"the longest key", false, "POST", []string{long}, true, ""},
		{"no key", false, "POST", nil, false, ""},
		{"a read", true, "GET", []string{"k"}, false, ""},
		{"a read without a key", true, "HEAD", nil, false, ""},
		{"what is idempotent by itself", true, "PUT", []string{"k"}, false, ""},
		{"so is its removal", true, "DELETE", []string{"k", "k"}, false, ""},
		{"a tunnel", true, "CONNECT", nil, false, ""},
		{"a key that is required", true, "POST", nil, false, "idempotency_key_missing"},
		{"a key that is required for a patch", true, "PATCH", nil, false, "idempotency_key_missing"},
		{"a key that only POST and PATCH need", true, "LINK", nil, false, ""},
		{"two keys", false, "POST", []string{"a", "b"}, false, "idempotency_key_invalid"},
		{"an empty key", false, "POST", []string{""}, false, "idempotency_key_invalid"},
		{"an empty key in quotes", false, "POST", []string{`""`}, false, "idempotency_key_invalid"},
		{"a key too long", false, "POST", []string{long + "k"}, false, "idempotency_key_invalid"},
		{"a space", false, "POST", []string{"a b"}, false, "idempotency_key_invalid"},
		{"not ASCII", false, "POST", []string{"schlüssel"}, false, "idempotency_key_invalid"},
		{"a control character", false, "POST", []string{"a\x7f"}, false, "idempotency_key_invalid"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			spec := IdempotencySpec{Required: tc.required}
			once, refusal := spec.Check(tc.method, tc.lines...)
			if once != tc.once || (refusal != nil) != (tc.reason != "") {
				t.Fatalf("once %v, refusal %+v", once, refusal)
			}
			if refusal != nil && (refusal.Reason != tc.reason || refusal.Status != 400 || !strings.Contains(refusal.Text, "Idempotency-Key")) {
				t.Errorf("refusal %+v", *refusal)
			}
		})
	}
}

func TestWhatAClaimIsAnswered(t *testing.T) {
	for _, tc := range []struct {
		claim Claim
		want  IdempotencyRefusal // Status 0: none
	}{
		{Claim{State: ClaimMine}, IdempotencyRefusal{}},
		{Claim{State: ClaimDone}, IdempotencyRefusal{}},
		{Claim{State: ClaimMismatch}, IdempotencyRefusal{Status: 422, Reason: "idempotency_mismatch"}},
		{Claim{State: ClaimInFlight, Wait: time.Minute}, IdempotencyRefusal{Status: 409, Reason: "idempotency_in_flight", RetryAfter: time.Second}},
		{Claim{State: ClaimInFlight, Wait: time.Millisecond}, IdempotencyRefusal{Status: 409, Reason: "idempotency_in_flight", RetryAfter: time.Millisecond}},
	} {
		got, refused := tc.claim.Refusal()
		if refused != (tc.want.Status != 0) || refused == (got.Text == "") {
			t.Errorf("%v: %+v, %v", tc.claim.State, got, refused)
		}
		if got.Text = ""; got != tc.want {
			t.Errorf("%v: %+v, want %+v", tc.claim.State, got, tc.want)
		}
	}
}

func TestKeysOfStrangersAreStrangers(t *testing.T) {
	seen := map[string]string{}
	for name, key := range map[string]string{
		"plain":              IdempotencyKey("k"),
		"scoped":             IdempotencyKey("k", "POST", "shop"),
		"other borders":      IdempotencyKey("k", "POS", "Tshop"),
		"joined":             IdempotencyKey("k", "POSTshop"),
		"key within scope":   IdempotencyKey("shopk", "POST"),
		"an empty part more": IdempotencyKey("k", "POST", "shop", ""),
		"another caller":     IdempotencyKey("k", "POST", "shop", "Bearer b"),
	} {
		if other, twice := seen[key]; twice {
			t.Errorf("%s and %s share %s", name, other, key)
		}
		seen[key] = name
		if err := CheckIdempotencyKey(key); err != nil || len(key) != 43 {
			t.Errorf("%s: %q: %v", name, key, err)
		}
	}
	if again := IdempotencyKey("k", "POST", "shop"); seen[again] != "scoped" {
		t.Errorf("the same is another one: %s", again)
	}
}

func TestFingerprintOfPieces(t *testing.T) {
	whole := NewFingerprint("POST", "/orders", "a=1", "application/json")
	whole.Write([]byte(`{"sku":"A"}`))
	pieces := NewFingerprint([]byte("POST"), []byte("/orders"), []byte("a=1"), []byte("application/json"))
	for _, b := range []byte(`{"sku":"A"}`) {
		pieces.Write([]byte{b})
	}
	want := whole.Sum()
	for range 2 { // asking changes nothing
		if pieces.Sum() != want {
			t.Error("pieces and the whole differ")
		}
	}
	for _, head := range [][4]string{
		{"PATCH", "/orders", "a=1", "application/json"},
		{"POST", "/order", "sa=1", "application/json"},
		{"POST", "/orders", "a=1", "text/plain"},
		{"POST", "/orders", "a=1", `application/json{"sku":"A"}`},
	} {
		other := NewFingerprint(head[0], head[1], head[2], head[3])
		if !strings.HasSuffix(head[3], "}") {
			other.Write([]byte(`{"sku":"A"}`))
		}
		if other.Sum() == want {
			t.Errorf("%q is the same as another request", head)
		}
	}
}

func TestWhatIsKept(t *testing.T) {
	for status, want := range map[int]bool{
		100: false, 199: false, 200: true, 204: true, 301: true, 304: true, 400: true, 404: true, 422: true, 499: true,
		408: false, 409: false, 425: false, 429: false, 500: false, 503: false, 600: false,
	} {
		if KeepsStatus(status) != want {
			t.Errorf("status %d is kept: %v", status, !want)
		}
	}
	for name, want := range map[string]bool{
		"Content-Type": true, "set-cookie": true, "Location": true, "X-Weft": true, "ETag": true,
		"Connection": false, "transfer-encoding": false, "Content-Length": false, "date": false, "Trailer": false,
		"x-weft-reason": false, "X-Weft-Idempotency": false, "Idempotency-Replayed": false,
	} {
		if KeepsHeader(name) != want {
			t.Errorf("header %s is kept: %v", name, !want)
		}
	}
}

func TestClaimStatesAreWords(t *testing.T) {
	for s := ClaimMine; s <= ClaimMismatch; s++ {
		text, err := s.MarshalText()
		var back ClaimState
		if err != nil || string(text) != s.String() || back.UnmarshalText(text) != nil || back != s {
			t.Errorf("%d: %q, %v, back %v", s, text, err, back)
		}
	}
	var s ClaimState
	if _, err := s.MarshalText(); err == nil {
		t.Error("the zero state has a word")
	}
	for _, bad := range []string{"", "Mine", "none"} {
		if s.UnmarshalText([]byte(bad)) == nil {
			t.Errorf("%q is a state", bad)
		}
	}
}

func TestStoredAnswersInBytes(t *testing.T) {
	for _, a := range []StoredAnswer{
		{Status: 204},
		{Status: 200, Body: []byte("hello")},
		{Status: 201, Header: []HeaderLine{{"Set-Cookie", "a=1"}, {"Location", "/orders/1"}, {"Set-Cookie", "b=\xff"}, {"X-Empty", ""}},
			Body: []byte{0, 1, 2}},
		{Status: 200, Body: []byte(strings.Repeat("x", 70_000))},
	} {
		data, err := a.MarshalBinary()
		var back StoredAnswer
		if err != nil || back.UnmarshalBinary(data) != nil || !reflect.DeepEqual(a, back) {
			t.Errorf("%d: %v, back %+v", a.Status, err, back)
		}
		if len(data) > a.size() {
			t.Errorf("%d bytes are more than its size, %d", len(data), a.size())
		}
		if len(a.Header) > 0 {
			for cut := range len(data) - len(a.Body) {
				if back.UnmarshalBinary(data[:cut]) == nil {
					t.Errorf("the first %d of %d bytes are an answer", cut, len(data))
				}
			}
		}
	}
	for name, data := range map[string]string{
		"another version": "\x02\xc8\x01\x00", "no status": "\x01\x00\x00", "lines for which there is no room": "\x01\xc8\x01\xff\xff\xff\xff\x0f",
	} {
		var a StoredAnswer
		if a.UnmarshalBinary([]byte(data)) == nil {
			t.Errorf("%s: read as %+v", name, a)
		}
	}
}

func FuzzStoredAnswer(f *testing.F) {
	a := StoredAnswer{Status: 201, Header: []HeaderLine{{"Location", "/orders/1"}}, Body: []byte("{}")}
	seed, _ := a.MarshalBinary()
	f.Add(seed)
	f.Add([]byte("\x01\xc8\x01\x00"))
	f.Fuzz(func(t *testing.T, data []byte) {
		var a, b StoredAnswer
		if a.UnmarshalBinary(data) != nil {
			return
		}
		again, err := a.MarshalBinary()
		if err != nil || len(again) > len(data) {
			t.Fatalf("%d bytes became %d: %v", len(data), len(again), err)
		}
		if err := b.UnmarshalBinary(again); err != nil || !reflect.DeepEqual(a, b) {
			t.Fatalf("%+v became %+v: %v", a, b, err)
		}
	})
}

func TestOnceRunsOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := NewMemoryStore(1 << 20)
		order := NewFingerprint("order", "42", "", "").Sum()
		ran := 0
		pay := func(context.Context) (map[string]int, error) {
			ran++
			return map[string]int{"receipt": ran}, nil
		}
		for range 3 {
			got, err := Once(t.Context(), store, "k", order, time.Hour, pay)
			if err != nil || got["receipt"] != 1 || ran != 1 {
				t.Fatalf("%v, %v, ran %d times", got, err, ran)
			}
		}
		if _, err := Once(t.Context(), store, "k", [32]byte{1}, 0, pay); !errors.Is(err, ErrKeyReused) {
			t.Errorf("another request with the key: %v", err)
		}
		time.Sleep(time.Hour)
		if got, err := Once(t.Context(), store, "k", order, 0, pay); err != nil || got["receipt"] != 2 {
			t.Errorf("after its time: %v, %v", got, err)
		}
		time.Sleep(DefaultAnswerTTL - time.Second)
		if got, err := Once(t.Context(), store, "k", order, 0, pay); err != nil || got["receipt"] != 2 {
			t.Errorf("a day is not over: %v, %v", got, err)
		}
	})
}

func TestOnceFreesTheKeyOfWhatFailed(t *testing.T) {
	store := NewMemoryStore(1 << 20)
	down := errors.New("the bank is down")
	if _, err := Once(t.Context(), store, "k", [32]byte{}, 0, func(context.Context) (int, error) { return 0, down }); !errors.Is(err, down) {
		t.Errorf("the failure: %v", err)
	}
	func() {
		defer func() { recover() }()
		Once(t.Context(), store, "k", [32]byte{}, 0, func(context.Context) (int, error) { panic("bug") })
	}()
	if got, err := Once(t.Context(), store, "k", [32]byte{}, 0, func(ctx context.Context) (int, error) {
		if _, err := Once(ctx, store, "k", [32]byte{}, 0, func(context.Context) (int, error) { return 9, nil }); !errors.Is(err, ErrInFlight) {
			t.Errorf("beside the first: %v", err)
		}
		if end, ok := ctx.Deadline(); !ok || time.Until(end) > ClaimLease {
			t.Error("it may outlive its claim")
		}
		return 7, nil
	}); err != nil || got != 7 {
		t.Errorf("after failures: %v, %v", got, err)
	}
}

func TestOnceTellsThatAValueWasNotKept(t *testing.T) {
	store := NewMemoryStore(1000)
	big := strings.Repeat("x", 2000)
	ran := 0
	for range 2 {
		got, err := Once(t.Context(), store, "k", [32]byte{}, 0, func(context.Context) (string, error) { ran++; return big, nil })
		if !errors.Is(err, ErrStoreFull) || got != big {
			t.Errorf("%d bytes, %v", len(got), err)
		}
	}
	if ran != 2 {
		t.Errorf("ran %d times: its key must be free", ran)
	}
	if _, err := Once(t.Context(), store, "k", [32]byte{}, 0, func(context.Context) (chan int, error) { return nil, nil }); err == nil {
		t.Error("a channel was kept as JSON")
	}
}
