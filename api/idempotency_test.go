package api

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/client"
	"github.com/weftmesh/weft/resilience"
	"github.com/weftmesh/weft/store"
)

func openState(t *testing.T, dir string) *store.Store {
	t.Helper()
	state, err := store.Open(t.Context(), store.Config{Dir: dir, Logger: slog.New(slog.NewTextHandler(t.Output(), nil))})
	check(t, err)
	return state
}

// keyServer is a server of its own over a state, and a client of it.
type keyServer struct {
	*Idempotency
	client resilience.IdempotencyStore
	url    string
	stop   func()
}

func serveKeys(t *testing.T, state *store.Store) *keyServer {
	t.Helper()
	k := &keyServer{Idempotency: NewIdempotency(state, nil)}
	s := httptest.NewServer(New(Config{Idempotency: k.Idempotency, Logger: slog.New(slog.NewTextHandler(t.Output(), nil))}))
	c, err := client.New(t.Context(), client.At(s.URL))
	check(t, err)
	k.client, k.url = c.IdempotencyStore(), s.URL
	k.stop = func() { s.CloseClientConnections(); s.Close() }
	t.Cleanup(k.stop)
	return k
}

func openKeys(t *testing.T) *keyServer {
	t.Helper()
	state := openState(t, t.TempDir())
	t.Cleanup(func() { check(t, state.Close()) })
	return serveKeys(t, state)
}

var request = [32]byte{1, 2, 3}

func claimIn(t *testing.T, s resilience.IdempotencyStore, key string, lease time.Duration, want resilience.ClaimState) resilience.Claim {
	t.Helper()
	c, err := s.Begin(t.Context(), key, request, lease)
	if err != nil || c.State != want {
		t.Fatalf("%s is %v, %v; want %v", key, c.State, err, want)
	}
	return c
}

func TestLifeOfAKeyInTheCluster(t *testing.T) {
	ctx, s := t.Context(), openKeys(t)
	answer := resilience.StoredAnswer{Status: 201, Body: []byte{0, 0xff, 'x'},
		Header: []resilience.HeaderLine{{Name: "Set-Cookie", Value: "b=\xff"}, {Name: "Location", Value: "/1"}, {Name: "Set-Cookie", Value: "a"}}}
	for name, keys := range map[string]resilience.IdempotencyStore{"client": s.client, "server": s.Idempotency} {
		t.Run(name, func(t *testing.T) {
			first := claimIn(t, keys, name, time.Minute, resilience.ClaimMine)
			if c := claimIn(t, keys, name, time.Minute, resilience.ClaimInFlight); c.Wait <= 0 || c.Wait > time.Minute+time.Millisecond {
				t.Errorf("to wait: %v", c.Wait)
			}
			if c, err := keys.Begin(ctx, name, [32]byte{}, time.Minute); err != nil || c.State != resilience.ClaimMismatch {
				t.Errorf("another request: %v, %v", c.State, err)
			}
			check(t, keys.Finish(ctx, first, answer, time.Hour))
			if c := claimIn(t, keys, name, time.Minute, resilience.ClaimDone); !reflect.DeepEqual(c.Answer, answer) {
				t.Errorf("the answer became %+v", c.Answer)
			}
			if c, err := keys.Begin(ctx, name, [32]byte{}, time.Minute); err != nil || c.State != resilience.ClaimMismatch {
				t.Errorf("another request, after the first: %v, %v", c.State, err)
			}
			for _, err := range []error{keys.Finish(ctx, first, answer, time.Hour), keys.Abandon(ctx, first)} {
				if !errors.Is(err, resilience.ErrClaimLost) || weft.KindOf(err) != weft.Conflict {
					t.Errorf("ended twice: %v", err)
				}
			}
			free := claimIn(t, keys, name+"2", time.Minute, resilience.ClaimMine)
			check(t, keys.Abandon(ctx, free))
			claimIn(t, keys, name+"2", time.Minute, resilience.ClaimMine)
		})
	}
}

func TestALateAnswerDoesNotReplaceANewerOneInTheCluster(t *testing.T) {
	ctx, s := t.Context(), openKeys(t)
	slow := claimIn(t, s.client, "k", time.Nanosecond, resilience.ClaimMine)
	next := eventually(t, func() (resilience.Claim, bool) {
		c, err := s.client.Begin(ctx, "k", request, time.Minute)
		check(t, err)
		return c, c.State == resilience.ClaimMine
	})
	if next.Token == slow.Token {
		t.Error("two claims have one token")
	}
	for range 2 { // while the next one runs, and after it
		if err := s.client.Finish(ctx, slow, resilience.StoredAnswer{Status: 200, Body: []byte("late")}, time.Hour); !errors.Is(err, resilience.ErrClaimLost) {
			t.Errorf("late: %v", err)
		}
		if err := s.client.Abandon(ctx, slow); !errors.Is(err, resilience.ErrClaimLost) {
			t.Errorf("late: %v", err)
		}
		_ = s.client.Finish(ctx, next, resilience.StoredAnswer{Status: 200, Body: []byte("in time")}, time.Hour)
	}
	if c := claimIn(t, s.client, "k", time.Minute, resilience.ClaimDone); string(c.Answer.Body) != "in time" {
		t.Errorf("the answer is %q", c.Answer.Body)
	}
}

// Two servers on one state, each with eight clients that all want the same key.
func TestOneOfManyRunsInTheCluster(t *testing.T) {
	state := openState(t, t.TempDir())
	t.Cleanup(func() { check(t, state.Close()) })
	servers := []*keyServer{serveKeys(t, state), serveKeys(t, state)}
	for round := range 20 {
		key := strconv.Itoa(round)
		var mine, lost atomic.Int32
		var callers sync.WaitGroup
		for i := range 16 {
			keys := servers[i%2].client
			callers.Go(func() {
				c, err := keys.Begin(t.Context(), key, request, time.Minute)
				if err != nil {
					t.Error(err)
					return
				}
				if c.State != resilience.ClaimMine {
					lost.Add(1)
					return
				}
				mine.Add(1)
				if err := keys.Finish(t.Context(), c, resilience.StoredAnswer{Status: 200, Body: []byte(key)}, time.Hour); err != nil {
					t.Error(err)
				}
			})
		}
		callers.Wait()
		if mine.Load() != 1 || lost.Load() != 15 {
			t.Fatalf("%d run %s, %d do not", mine.Load(), key, lost.Load())
		}
		for _, s := range servers {
			if c := claimIn(t, s.client, key, time.Minute, resilience.ClaimDone); string(c.Answer.Body) != key {
				t.Errorf("the answer to %s is %q", key, c.Answer.Body)
			}
		}
	}
}

func TestAnyKeyArrivesAsItIs(t *testing.T) {
	s := openKeys(t)
	keys := []string{"k", "a/b", "a%2Fb", ".", "..", "../begin", "a?b=c#d", `"quoted"`, "~!$&'()*+,;=:@[]{}|^`\\<>", "%", "//", strings.Repeat("k", 255)}
	for _, key := range keys {
		check(t, s.client.Finish(t.Context(), claimIn(t, s.client, key, time.Minute, resilience.ClaimMine),
			resilience.StoredAnswer{Status: 200, Body: []byte(key)}, time.Hour))
	}
	for _, key := range keys {
		if c := claimIn(t, s.Idempotency, key, time.Minute, resilience.ClaimDone); string(c.Answer.Body) != key {
			t.Errorf("the answer to %q is %q's", key, c.Answer.Body)
		}
	}
}

// pay is an application that charges once for each key, by the middleware.
func pay(t *testing.T, keys resilience.IdempotencyStore, charges *atomic.Int32) func(key string) *httptest.ResponseRecorder {
	t.Helper()
	once, err := resilience.Idempotent(keys, resilience.IdempotencySpec{})
	check(t, err)
	h := once(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusCreated)
		fmt.Fprintf(w, "charge %d", charges.Add(1))
	}))
	return func(key string) *httptest.ResponseRecorder {
		r := httptest.NewRequest("POST", "http://bank/charges", strings.NewReader(`{"amount":1}`))
		r.Header.Set("Idempotency-Key", key)
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		return w
	}
}

func TestTwoProcessesChargeOnce(t *testing.T) {
	dir := t.TempDir()
	state := openState(t, dir)
	var charges atomic.Int32
	one, other := serveKeys(t, state), serveKeys(t, state)
	first := pay(t, one.client, &charges)("k")
	again := pay(t, other.client, &charges)("k")
	if first.Code != 201 || again.Code != 201 || again.Body.String() != "charge 1" || again.Header().Get("Idempotency-Replayed") != "true" {
		t.Errorf("first %d %s, again %d %s", first.Code, first.Body, again.Code, again.Body)
	}

	one.stop()
	if w := pay(t, one.client, &charges)("k2"); w.Code != 503 || w.Header().Get("X-Weft-Reason") != "idempotency_store" {
		t.Errorf("without the server: %d %s", w.Code, w.Body)
	}
	other.stop()
	check(t, state.Close())
	state = openState(t, dir)
	t.Cleanup(func() { check(t, state.Close()) })
	if w := pay(t, serveKeys(t, state).client, &charges)("k"); w.Body.String() != "charge 1" || charges.Load() != 1 {
		t.Errorf("after a restart: %s; %d charges", w.Body, charges.Load())
	}
}

// over waits until a key's lease or answer has had its time, and nobody claimed it.
func (d *Idempotency) over(t *testing.T, key string) {
	t.Helper()
	eventually(t, func() (bool, bool) {
		kv, found, err := d.store.Get(t.Context(), recordKey(key))
		check(t, err)
		if !found {
			t.Fatalf("%s is gone", key)
		}
		r, err := readRecord(kv.Value)
		check(t, err)
		return true, !time.Now().Before(r.end)
	})
}

func (d *Idempotency) sweepAll(t *testing.T) {
	t.Helper()
	for shard := range sweepShards {
		check(t, d.sweep(t.Context(), shard))
	}
}

func TestWhatIsOverIsRemoved(t *testing.T) {
	s, ctx := openKeys(t), t.Context()
	answer := resilience.StoredAnswer{Status: 200, Body: make([]byte, 1000)}
	for i := range 300 { // more than one to a shard
		c := claimIn(t, s, strconv.Itoa(i), time.Millisecond, resilience.ClaimMine)
		if i%2 == 0 {
			check(t, s.Finish(ctx, c, answer, time.Millisecond))
		}
	}
	check(t, s.Finish(ctx, claimIn(t, s, "kept", time.Minute, resilience.ClaimMine), answer, time.Hour))
	claimIn(t, s, "runs", time.Hour, resilience.ClaimMine)
	s.over(t, "299")
	s.over(t, "298")

	late := NewIdempotency(s.store, nil) // of a server that starts now
	ctx, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- late.Run(ctx) }()
	eventually(t, func() (int, bool) {
		kvs, _, err := s.store.List(t.Context(), recordPrefix)
		check(t, err)
		return len(kvs), len(kvs) == 2
	})
	stop()
	check(t, <-ended)
	late.sweepAll(t)
	s.sweepAll(t)
	for name, d := range map[string]*Idempotency{"late": late, "first": s.Idempotency} {
		if d.total.keys != 2 || d.total.bytes < 1000 || d.total.bytes > 1200 {
			t.Errorf("%s counts %+v", name, d.total)
		}
	}
	claimIn(t, s, "kept", time.Minute, resilience.ClaimDone)
	claimIn(t, s, "runs", time.Minute, resilience.ClaimInFlight)
}

func TestASweepSparesWhatWasClaimedMeanwhile(t *testing.T) {
	s := openKeys(t)
	claimIn(t, s, "k", time.Millisecond, resilience.ClaimMine)
	s.over(t, "k")
	kvs, _, err := s.store.List(t.Context(), recordPrefix)
	check(t, err)
	claimIn(t, s, "k", time.Minute, resilience.ClaimMine)
	check(t, s.remove(t.Context(), kvs))
	claimIn(t, s, "k", time.Minute, resilience.ClaimInFlight)
}

func TestTheServerKeepsOnlySoMuch(t *testing.T) {
	s, ctx := openKeys(t), t.Context()
	full := func(what string, err error) {
		t.Helper()
		if weft.KindOf(err) != weft.Unavailable || !strings.Contains(err.Error(), "keeps") {
			t.Errorf("%s: %v", what, err)
		}
	}
	s.maxKeys, s.maxBytes = 3, 3000
	var claims []resilience.Claim
	for i := range 3 {
		claims = append(claims, claimIn(t, s.client, strconv.Itoa(i), time.Minute, resilience.ClaimMine))
	}
	_, err := s.client.Begin(ctx, "another", request, time.Minute)
	full("a fourth key", err)
	check(t, s.client.Abandon(ctx, claims[0]))
	claims[0] = claimIn(t, s.client, "another", time.Minute, resilience.ClaimMine)

	answer := resilience.StoredAnswer{Status: 200, Body: make([]byte, 2000)}
	check(t, s.client.Finish(ctx, claims[0], answer, time.Millisecond))
	full("a second answer", s.client.Finish(ctx, claims[1], answer, time.Hour))
	check(t, s.client.Finish(ctx, claims[1], resilience.StoredAnswer{Status: 204}, time.Hour))
	s.over(t, "another")
	s.sweepAll(t)
	if s.total.keys != 2 {
		t.Errorf("%+v are left", s.total)
	}
	full("while the first is in the store's history", s.client.Finish(ctx, claims[2], answer, time.Hour))
	for i := range s.gone { // and two hours later
		s.gone[i].slot -= historySlots
	}
	check(t, s.client.Finish(ctx, claims[2], answer, time.Hour))
}

func TestBadRequestsForKeys(t *testing.T) {
	s := openKeys(t)
	const print = `"fingerprint":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="`
	for _, tc := range []struct {
		name, path, body string
		status           int
		want             string
	}{
		{"a good one", "k/begin", `{` + print + `,"leaseMS":60000}`, 200, `"state":"mine"`},
		{"no JSON", "k/begin", `x`, 400, "JSON"},
		{"an unknown field", "k/begin", `{` + print + `,"lease":"1m"}`, 400, "lease"},
		{"no fingerprint", "k/begin", `{"leaseMS":1}`, 400, "fingerprint has 0 bytes"},
		{"no lease", "k/begin", `{` + print + `}`, 400, "lease is 0s"},
		{"a negative lease", "k/begin", `{` + print + `,"leaseMS":-9223372036854775808}`, 400, "lease is 0s"},
		{"a long lease", "k/begin", `{` + print + `,"leaseMS":9223372036854775807}`, 400, "at most 1h"},
		{"a space in the key", "a%20b/begin", `{` + print + `,"leaseMS":1}`, 400, "visible ASCII"},
		{"a long key", strings.Repeat("k", 256) + "/begin", `{` + print + `,"leaseMS":1}`, 400, "256 bytes"},
		{"no ttl", "k/finish", `{` + print + `,"token":1,"answer":"AcgBAA=="}`, 400, "ttl is 0s"},
		{"no token", "k/finish", `{` + print + `,"ttlMS":1,"answer":"AcgBAA=="}`, 400, "token 0"},
		{"no answer", "k/finish", `{` + print + `,"ttlMS":1,"token":1}`, 400, "stored answer"},
		{"a claim that is none", "k/finish", `{` + print + `,"ttlMS":1,"token":1,"answer":"AcgBAA=="}`, 409, "lost"},
		{"an answer too large", "k/finish", `{` + print + `,"ttlMS":1,"token":1,"answer":"AcgBAAAA` + strings.Repeat("AAAA", 350_000) + `"}`, 413, "at most 1048576"},
		{"a body too large", "k/finish", `{"answer":"` + strings.Repeat("A", 5<<20) + `"}`, 413, "4 MiB"},
		{"no claim to abandon", "k/abandon", `{}`, 400, "token 0"},
		{"an unknown step", "k/end", `{}`, 404, "no such call"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h := &house{url: s.url}
			status, body := h.do(t, "POST", "/api/idempotency/"+tc.path, tc.body, nil)
			if status != tc.status || !strings.Contains(body, tc.want) {
				t.Errorf("%d %s, want %d and %q", status, body, tc.status, tc.want)
			}
		})
	}
	for _, key := range []string{"", "a b"} {
		if _, err := s.client.Begin(t.Context(), key, request, time.Minute); weft.KindOf(err) != weft.Invalid {
			t.Errorf("key %q: %v", key, err)
		}
	}
	none := httptest.NewServer(New(Config{}))
	defer none.Close()
	defer none.CloseClientConnections()
	c, err := client.New(t.Context(), client.At(none.URL))
	check(t, err)
	if _, err := c.IdempotencyStore().Begin(t.Context(), "k", request, time.Minute); weft.KindOf(err) != weft.Unavailable {
		t.Errorf("a server that keeps no keys: %v", err)
	}
}

func TestRecordsOfANewerServer(t *testing.T) {
	s := openKeys(t)
	_, err := s.store.Commit(t.Context(), store.Txn{Put: []store.KV{{Key: recordKey("k"), Value: []byte{9, 0}}}})
	check(t, err)
	if _, err := s.client.Begin(t.Context(), "k", request, time.Minute); err == nil || !strings.Contains(err.Error(), "newer server") {
		t.Errorf("%v", err)
	}
	s.sweepAll(t)
	if _, found, err := s.store.Get(t.Context(), recordKey("k")); !found {
		t.Errorf("what cannot be read was removed, %v", err)
	}
}
