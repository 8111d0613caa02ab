package proxy

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/weftmesh/weft/resilience"
)

// Requests with an idempotency key run once: package resilience says what that
// means, and this is where an exchange asks.

// noteHeader tells the client that a request with a key was not protected.
const noteHeader = "x-weft-idempotency"

// idempotency is what a policy asks for, with the store that it names.
type idempotency struct {
	spec  resilience.IdempotencySpec
	store resilience.IdempotencyStore
}

// memoryAnswers bounds the answers that a proxy keeps in memory for all policies.
const memoryAnswers = 64 << 20

// newIdempotency finds the policy's store.
func (p *Proxy) newIdempotency(s *resilience.IdempotencySpec) (*idempotency, error) {
	switch {
	case s == nil:
		return nil, nil
	case s.Store != "cluster":
		return &idempotency{*s, p.answers()}, nil
	case p.cluster == nil:
		return nil, errors.New("idempotency.store: this proxy has no server to keep answers at")
	}
	return &idempotency{*s, p.cluster}, nil
}

// storeTimeout bounds each question to a store.
const storeTimeout = 5 * time.Second

// once runs try for a request whose key is new, and answers others from the store.
func (x *Exchange) once(pl *plan) (keep bool, fault *Answer) {
	once := pl.guard.settings.Load().once
	if once == nil {
		return x.try(pl)
	}
	keys := x.headerLines(once.spec.Header)
	runs, refusal := once.spec.Check(string(x.head.Method), keys...)
	switch {
	case refusal != nil:
		return false, refused(*refusal)
	case !runs:
		return x.try(pl)
	case !x.whole || len(x.body) > once.spec.MaxBodyBytes:
		x.note = "the request's body is too large to be compared, or does not say how long it is"
		return x.try(pl)
	}
	until := time.Now().Add(storeTimeout)
	if !pl.deadline.IsZero() && pl.deadline.Before(until) {
		until = pl.deadline
	}
	ctx, cancel := context.WithDeadline(x.conn.p.life, until)
	claim, err := once.store.Begin(ctx, x.storeKey(keys[0]), x.fingerprint(), resilience.ClaimLease)
	cancel()
	if err != nil {
		x.conn.p.logger.Warn("idempotency store failed", "op", "claim", "target", pl.guard.target, "error", err)
		return false, refused(resilience.IdempotencyUnavailable())
	}
	if refusal, no := claim.Refusal(); no {
		return false, refused(refusal)
	}
	if claim.State == resilience.ClaimDone {
		return x.answer(replayed(&claim.Answer)), nil
	}
	return x.claimed(pl, once, claim)
}

// claimed runs the request, and keeps its answer or frees the key: before the client
// has the end of the answer, so that who repeats it at once is not told to wait.
func (x *Exchange) claimed(pl *plan, once *idempotency, claim resilience.Claim) (keep bool, fault *Answer) {
	if lease := x.record.Start.Add(resilience.ClaimLease); pl.deadline.IsZero() || lease.Before(pl.deadline) {
		pl.deadline = lease // beyond it, a repeat may run
	}
	settled := false
	settle := func(whole bool) {
		if !settled {
			settled = true
			x.settleClaim(pl, once, claim, whole)
		}
	}
	x.keep = copying{most: once.spec.MaxBodyBytes, settle: settle}
	keep, fault = x.try(pl)
	settle(false)
	x.keep = copying{}
	return keep, fault
}

// settleClaim keeps the answer if it is whole and one to be kept, and else frees the
// key.
func (x *Exchange) settleClaim(pl *plan, once *idempotency, claim resilience.Claim, whole bool) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(x.conn.p.life), storeTimeout)
	defer cancel()
	op := "free"
	var err error
	if whole && len(x.keep.body) <= once.spec.MaxBodyBytes && resilience.KeepsStatus(x.response.Status) {
		op, err = "keep", once.store.Finish(ctx, claim, x.storedAnswer(x.keep.body), once.spec.TTL)
	} else {
		err = once.store.Abandon(ctx, claim)
	}
	if err != nil && !errors.Is(err, resilience.ErrClaimLost) {
		x.conn.p.logger.Warn("idempotency store failed", "op", op, "target", pl.guard.target, "error", err)
	}
}

func refused(r resilience.IdempotencyRefusal) *Answer {
	return &Answer{Status: r.Status, Reason: r.Reason, Text: r.Text, RetryAfter: r.RetryAfter, Unsent: true}
}

// headerLines are the values of all lines of a header.
func (x *Exchange) headerLines(name string) (lines []string) {
	for i := range x.head.Fields {
		if equalFold(x.head.Name(i), name) {
			lines = append(lines, string(x.head.Value(i)))
		}
	}
	return lines
}

// storeKey is another one for everybody who may ask: keys are the clients' choice.
func (x *Exchange) storeKey(key string) string {
	authorization, _ := x.Header("authorization")
	return resilience.IdempotencyKey(key, x.request.Method, x.request.Host, x.request.Path, authorization, x.conn.p.self.String(), x.conn.source)
}

func (x *Exchange) fingerprint() [32]byte {
	contentType, _ := x.Header("content-type")
	f := resilience.NewFingerprint(x.request.Method, x.request.Path, x.request.Query, contentType)
	_, _ = f.Write(x.body)
	return f.Sum()
}

// storedAnswer is the response as it is kept.
func (x *Exchange) storedAnswer(body []byte) resilience.StoredAnswer {
	r := &x.response
	a := resilience.StoredAnswer{Status: r.Status, Body: body}
	for i := range r.Fields {
		if name := string(r.Name(i)); !r.Fields[i].Drop && resilience.KeepsHeader(name) {
			a.Header = append(a.Header, resilience.HeaderLine{Name: name, Value: string(r.Value(i))})
		}
	}
	return a
}

// replayed is a kept answer as it is given again.
func replayed(a *resilience.StoredAnswer) *Answer {
	var lines strings.Builder
	for _, h := range a.Header {
		lines.WriteString(h.Name + ": " + h.Value + "\r\n")
	}
	lines.WriteString("Idempotency-Replayed: true\r\n")
	return &Answer{Status: a.Status, Reason: "replayed", Body: string(a.Body), Lines: lines.String()}
}
