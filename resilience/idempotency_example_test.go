package resilience_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"time"

	"github.com/weftmesh/weft/resilience"
)

func ExampleIdempotent() {
	once, err := resilience.Idempotent(resilience.NewMemoryStore(64<<20), resilience.IdempotencySpec{Required: true})
	if err != nil {
		fmt.Println(err)
		return
	}
	payments := 0
	pay := once(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		payments++
		w.WriteHeader(http.StatusCreated)
		fmt.Fprintf(w, "payment %d", payments)
	}))

	send := func(key, body string) {
		r := httptest.NewRequest("POST", "/payments", strings.NewReader(body))
		if key != "" {
			r.Header.Set("Idempotency-Key", key)
		}
		w := httptest.NewRecorder()
		pay.ServeHTTP(w, r)
		fmt.Printf("%d, replayed %q: %s\n", w.Code, w.Header().Get("Idempotency-Replayed"), strings.TrimSpace(w.Body.String()))
	}
	send("8e03978e", `{"amount": 10}`)
	send("8e03978e", `{"amount": 10}`)
	send("8e03978e", `{"amount": 99}`)
	send("", `{"amount": 10}`)
	// Output:
	// 201, replayed "": payment 1
	// 201, replayed "true": payment 1
	// 422, replayed "": weft: this idempotency key was used for another request; every request needs a key of its own
	// 400, replayed "": weft: this request needs a header Idempotency-Key
}

func ExampleMemoryStore() {
	ctx, store := context.Background(), resilience.NewMemoryStore(64<<20)
	key := resilience.IdempotencyKey("8e03978e", "charge", "customer 42")
	request := resilience.NewFingerprint("charge", "customer 42", "", "").Sum()

	claim, _ := store.Begin(ctx, key, request, resilience.ClaimLease)
	fmt.Println("first:", claim.State)
	twin, _ := store.Begin(ctx, key, request, resilience.ClaimLease)
	fmt.Println("beside it:", twin.State)
	_ = store.Finish(ctx, claim, resilience.StoredAnswer{Status: 201, Body: []byte("charged")}, resilience.DefaultAnswerTTL)
	repeat, _ := store.Begin(ctx, key, request, resilience.ClaimLease)
	fmt.Println("after it:", repeat.State, string(repeat.Answer.Body))
	// Output:
	// first: mine
	// beside it: in-flight
	// after it: done charged
}

func ExampleOnce() {
	store := resilience.NewMemoryStore(64 << 20)
	order := resilience.NewFingerprint("order 42", "", "", "").Sum()
	charge := func(context.Context) (string, error) {
		fmt.Println("charging")
		return "receipt 7", nil
	}
	for range 2 {
		receipt, err := resilience.Once(context.Background(), store, "order 42", order, time.Hour, charge)
		fmt.Println(receipt, err)
	}
	// Output:
	// charging
	// receipt 7 <nil>
	// receipt 7 <nil>
}
