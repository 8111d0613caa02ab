package client

import (
	"errors"
	"testing"
	"time"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/resilience"
)

func TestKeysOverTheAPI(t *testing.T) {
	ctx := t.Context()
	claim := resilience.Claim{Key: "a/b.c", Fingerprint: [32]byte{0xff}, Token: 7}
	const print = `"fingerprint":"/wAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="`
	for _, tc := range []struct {
		call   func(s resilience.IdempotencyStore) (resilience.Claim, error)
		answer string
		want   asked
		state  resilience.ClaimState
	}{
		{func(s resilience.IdempotencyStore) (resilience.Claim, error) {
			return s.Begin(ctx, claim.Key, claim.Fingerprint, time.Minute)
		}, `{"state":"mine","token":7}`, asked{"POST /api/idempotency/a%2Fb%2Ec/begin", `{` + print + `,"leaseMS":60000}`}, resilience.ClaimMine},
		{func(s resilience.IdempotencyStore) (resilience.Claim, error) {
			return s.Begin(ctx, claim.Key, claim.Fingerprint, time.Nanosecond)
		}, `{"state":"in-flight","waitMS":1500}`, asked{"POST /api/idempotency/a%2Fb%2Ec/begin", `{` + print + `,"leaseMS":1}`}, resilience.ClaimInFlight},
		{func(s resilience.IdempotencyStore) (resilience.Claim, error) {
			return claim, s.Finish(ctx, claim, resilience.StoredAnswer{Status: 200}, time.Second)
		}, "", asked{"POST /api/idempotency/a%2Fb%2Ec/finish", `{"token":7,` + print + `,"ttlMS":1000,"answer":"AcgBAA=="}`}, 0},
		{func(s resilience.IdempotencyStore) (resilience.Claim, error) { return claim, s.Abandon(ctx, claim) },
			"", asked{"POST /api/idempotency/a%2Fb%2Ec/abandon", `{"token":7}`}, 0},
	} {
		c, a := serve(t, 200, tc.answer)
		got, err := tc.call(c.IdempotencyStore())
		if err != nil || *a != tc.want {
			t.Errorf("asked %+v, %v; want %+v", *a, err, tc.want)
		}
		if got.State != tc.state || got.Key != claim.Key || got.Fingerprint != claim.Fingerprint {
			t.Errorf("claim %+v", got)
		}
		switch {
		case tc.state == resilience.ClaimMine && got.Token != 7, tc.state == resilience.ClaimInFlight && got.Wait != 1500*time.Millisecond:
			t.Errorf("claim %+v", got)
		}
	}
}

func TestAnswersAboutKeysThatMakeNoSense(t *testing.T) {
	for _, answer := range []string{`{}`, `{"state":"free"}`, `{"state":"done"}`, `{"state":"done","answer":"AcgB"}`} {
		c, _ := serve(t, 200, answer)
		if got, err := c.IdempotencyStore().Begin(t.Context(), "k", [32]byte{}, time.Minute); weft.KindOf(err) != weft.Internal || err == nil {
			t.Errorf("%s: %+v, %v", answer, got, err)
		}
	}
}

func TestALostClaimIsKnown(t *testing.T) {
	c, _ := serve(t, 409, `{"kind":"conflict","message":"gone"}`)
	s := c.IdempotencyStore()
	for _, err := range []error{
		s.Finish(t.Context(), resilience.Claim{Key: "k", Token: 1}, resilience.StoredAnswer{Status: 200}, time.Minute),
		s.Abandon(t.Context(), resilience.Claim{Key: "k", Token: 1}),
	} {
		if !errors.Is(err, resilience.ErrClaimLost) || weft.KindOf(err) != weft.Conflict {
			t.Errorf("%v", err)
		}
	}
}
