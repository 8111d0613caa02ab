package client

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/resilience"
)

// IdempotencyBegin is the body of POST /api/idempotency/{key}/begin.
type IdempotencyBegin struct {
	Fingerprint []byte `json:"fingerprint"` // 32 bytes; in JSON all bytes are base64
	LeaseMS     int64  `json:"leaseMS"`     // at most an hour
}

// IdempotencyClaim answers it.
type IdempotencyClaim struct {
	State  resilience.ClaimState `json:"state"`            // "mine", "in-flight", "done" or "mismatch"
	Token  int64                 `json:"token,omitempty"`  // of mine: for finish or abandon
	WaitMS int64                 `json:"waitMS,omitempty"` // of in-flight: what is left of the other's lease
	Answer []byte                `json:"answer,omitempty"` // of done: as resilience.StoredAnswer writes it
}

// IdempotencyFinish is the body of POST /api/idempotency/{key}/finish.
type IdempotencyFinish struct {
	Token       int64  `json:"token"`
	Fingerprint []byte `json:"fingerprint"`
	TTLMS       int64  `json:"ttlMS"`  // at most 366 days
	Answer      []byte `json:"answer"` // at most 1 MiB
}

// IdempotencyAbandon is the body of POST /api/idempotency/{key}/abandon.
type IdempotencyAbandon struct {
	Token int64 `json:"token"`
}

// IdempotencyStore returns the store of idempotency keys that the server keeps for
// the whole mesh, on disk: of any number of callers in any number of processes one
// runs. Each of its methods is one call of the server, which writes to disk. Answers
// have at most 1 MiB; more is weft.TooLarge. When the server has too many keys,
// Begin and Finish are weft.Unavailable until some answers' time is over.
func (c *Client) IdempotencyStore() resilience.IdempotencyStore { return &idempotencyStore{c} }

type idempotencyStore struct{ client *Client }

func (s *idempotencyStore) Begin(ctx context.Context, key string, fingerprint [32]byte, lease time.Duration) (resilience.Claim, error) {
	var out IdempotencyClaim
	err := s.call(ctx, "claim", key, "begin", IdempotencyBegin{Fingerprint: fingerprint[:], LeaseMS: ceilMS(lease)}, &out)
	if err != nil {
		return resilience.Claim{}, err
	}
	claim := resilience.Claim{Key: key, Fingerprint: fingerprint, State: out.State, Token: out.Token,
		Wait: time.Duration(out.WaitMS) * time.Millisecond}
	switch out.State {
	case resilience.ClaimDone:
		err = claim.Answer.UnmarshalBinary(out.Answer)
	case resilience.ClaimMine, resilience.ClaimInFlight, resilience.ClaimMismatch:
	default:
		err = errors.New("the server did not say whose it is")
	}
	if err != nil {
		return resilience.Claim{}, &weft.Error{Kind: weft.Internal, Op: "claim", Thing: keyThing(key), Err: err}
	}
	return claim, nil
}

func (s *idempotencyStore) Finish(ctx context.Context, claim resilience.Claim, answer resilience.StoredAnswer, ttl time.Duration) error {
	data, err := answer.MarshalBinary()
	if err != nil {
		return &weft.Error{Kind: weft.Invalid, Op: "finish", Thing: keyThing(claim.Key), Err: err}
	}
	return s.call(ctx, "finish", claim.Key, "finish", IdempotencyFinish{Token: claim.Token, Fingerprint: claim.Fingerprint[:],
		TTLMS: ceilMS(ttl), Answer: data}, nil)
}

func (s *idempotencyStore) Abandon(ctx context.Context, claim resilience.Claim) error {
	return s.call(ctx, "abandon", claim.Key, "abandon", IdempotencyAbandon{Token: claim.Token}, nil)
}

func (s *idempotencyStore) call(ctx context.Context, op, key, step string, body, out any) error {
	if err := resilience.CheckIdempotencyKey(key); err != nil {
		return &weft.Error{Kind: weft.Invalid, Op: op, Thing: "idempotency key", Err: err}
	}
	// A segment that is all dots would be taken for a way up.
	segment := strings.ReplaceAll(url.PathEscape(key), ".", "%2E")
	err := s.client.call(ctx, request{op: op, thing: keyThing(key), method: http.MethodPost,
		path: "/api/idempotency/" + segment + "/" + step, body: body}, out)
	if weft.KindOf(err) == weft.Conflict {
		// What the store's callers look for does not travel.
		return &weft.Error{Kind: weft.Conflict, Op: op, Thing: keyThing(key), Err: resilience.ErrClaimLost}
	}
	return err
}

// ceilMS rounds up: a short lease is one all the same.
func ceilMS(d time.Duration) int64 { return (d + time.Millisecond - 1).Milliseconds() }

func keyThing(key string) string { return "idempotency key " + key }
