package api

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/client"
	"github.com/weftmesh/weft/resilience"
	"github.com/weftmesh/weft/store"
)

const (
	// maxKeptAnswer bounds an answer, in bytes.
	maxKeptAnswer = 1 << 20
	// maxKeys bounds the keys, which the store holds in memory. maxKeptBytes bounds
	// what answers take of the store, whose 8 GB they share with everything else.
	maxKeys      = 250_000
	maxKeptBytes = 1 << 30

	maxLease = time.Hour
	maxTTL   = 366 * 24 * time.Hour
)

// Idempotency keeps idempotency keys in the store, for all processes of the mesh. It
// is a resilience.IdempotencyStore.
//
// It changes a key in one transaction, on the condition that the key is still as it
// was read. So it is serialisable whoever else does the same on the same store, and
// the revision of the claim is its token.
//
// A key is kept under "idempotency/" and its SHA-256 in hex. A key whose time is over
// counts as absent at once, and is removed by Run.
type Idempotency struct {
	// constant
	store    *store.Store
	log      *slog.Logger
	maxKeys  int
	maxBytes int64

	mu     sync.Mutex // guards the rest, which is how full the store is, about
	shards [sweepShards]usage
	total  usage
	gone   [historySlots]goneBytes
}

// usage is what there is in one part of the keys.
type usage struct {
	keys  int
	bytes int64 // of their values
}

// NewIdempotency returns the keys that are kept in s. Run must run while it is used.
func NewIdempotency(s *store.Store, logger *slog.Logger) *Idempotency {
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	return &Idempotency{store: s, log: logger, maxKeys: maxKeys, maxBytes: maxKeptBytes}
}

var _ resilience.IdempotencyStore = (*Idempotency)(nil)

// beginTries bounds how often Begin looks again when somebody else changed the key in
// between. The second look finds the other's claim, unless that is over already.
const beginTries = 8

// Begin is IdempotencyStore's.
func (d *Idempotency) Begin(ctx context.Context, key string, fingerprint [32]byte, lease time.Duration) (resilience.Claim, error) {
	claim := resilience.Claim{Key: key, Fingerprint: fingerprint}
	if err := checkTime("lease", lease, maxLease); err != nil {
		return claim, keyError(weft.Invalid, "claim", key, err)
	}
	if err := resilience.CheckIdempotencyKey(key); err != nil {
		return claim, &weft.Error{Kind: weft.Invalid, Op: "claim", Thing: "idempotency key", Err: err}
	}
	at := recordKey(key)
	for range beginTries {
		kv, found, err := d.store.Get(ctx, at)
		if err != nil {
			return claim, err
		}
		now := time.Now()
		if found {
			known, err := readRecord(kv.Value)
			if err != nil {
				return claim, keyError(weft.Internal, "claim", key, err)
			}
			if now.Before(known.end) {
				return known.claim(claim, now)
			}
		}
		value := record{fingerprint: fingerprint, end: now.Add(lease)}.bytes()
		if err := d.admit(now, len(value)-len(kv.Value), !found); err != nil {
			return claim, keyError(weft.Unavailable, "claim", key, err)
		}
		rev, err := d.store.Commit(ctx, store.Txn{If: []store.Cond{{Key: at, ModRev: kv.ModRev}}, Put: []store.KV{{Key: at, Value: value}}})
		if err == nil {
			d.changed(now, at, kv.Value, value)
			claim.State, claim.Token = resilience.ClaimMine, rev
			return claim, nil
		}
		if weft.KindOf(err) != weft.Conflict {
			return claim, err
		}
	}
	return claim, keyError(weft.Unavailable, "claim", key, errors.New("others claim and free it all the time"))
}

// Finish is IdempotencyStore's.
func (d *Idempotency) Finish(ctx context.Context, c resilience.Claim, answer resilience.StoredAnswer, ttl time.Duration) error {
	data, err := answer.MarshalBinary()
	if err != nil {
		return keyError(weft.Invalid, "finish", c.Key, err)
	}
	return d.finish(ctx, c, data, ttl)
}

func (d *Idempotency) finish(ctx context.Context, c resilience.Claim, answer []byte, ttl time.Duration) error {
	if err := checkTime("ttl", ttl, maxTTL); err != nil {
		return keyError(weft.Invalid, "finish", c.Key, err)
	}
	if len(answer) > maxKeptAnswer {
		return keyError(weft.TooLarge, "finish", c.Key, fmt.Errorf("the answer has %d bytes; at most %d", len(answer), maxKeptAnswer))
	}
	now, at := time.Now(), recordKey(c.Key)
	claimed := record{fingerprint: c.Fingerprint}.bytes()
	value := record{fingerprint: c.Fingerprint, end: now.Add(ttl), done: true, answer: answer}.bytes()
	if err := d.admit(now, len(value)-len(claimed), false); err != nil {
		return keyError(weft.Unavailable, "finish", c.Key, err)
	}
	if err := d.end(ctx, "finish", c, store.Txn{Put: []store.KV{{Key: at, Value: value}}}); err != nil {
		return err
	}
	d.changed(now, at, claimed, value)
	return nil
}

// Abandon is IdempotencyStore's.
func (d *Idempotency) Abandon(ctx context.Context, c resilience.Claim) error {
	at := recordKey(c.Key)
	if err := d.end(ctx, "abandon", c, store.Txn{Delete: []string{at}}); err != nil {
		return err
	}
	d.changed(time.Now(), at, record{}.bytes(), nil)
	return nil
}

// end commits t if the claim still is c's.
func (d *Idempotency) end(ctx context.Context, op string, c resilience.Claim, t store.Txn) error {
	if c.Token <= 0 { // 0 would be the condition that there is no such key
		return keyError(weft.Invalid, op, c.Key, fmt.Errorf("token %d is no claim's", c.Token))
	}
	t.If = []store.Cond{{Key: recordKey(c.Key), ModRev: c.Token}}
	_, err := d.store.Commit(ctx, t)
	if weft.KindOf(err) == weft.Conflict {
		return keyError(weft.Conflict, op, c.Key, resilience.ErrClaimLost)
	}
	return err
}

func keyError(kind weft.Kind, op, key string, err error) error {
	return &weft.Error{Kind: kind, Op: op, Thing: "idempotency key " + key, Err: err}
}

func checkTime(what string, d, most time.Duration) error {
	if d <= 0 || d > most {
		return fmt.Errorf("the %s is %v; more than 0 and at most %v", what, d, most)
	}
	return nil
}

const recordPrefix = "idempotency/"

// recordKey is where a key is kept: a digest, so that keys spread evenly over the
// shards.
func recordKey(key string) string {
	sum := sha256.Sum256([]byte(key))
	return recordPrefix + hex.EncodeToString(sum[:])
}

// record is what is kept for a key.
type record struct {
	fingerprint [32]byte
	end         time.Time // of the claim's lease, or of the answer's time; milliseconds
	done        bool
	answer      []byte // as resilience.StoredAnswer writes it
}

const (
	recordVersion = 1
	recordHead    = 1 + 1 + 8 + 32 // version, done, end, fingerprint
)

func (r record) bytes() []byte {
	b := make([]byte, 2, recordHead+len(r.answer))
	b[0] = recordVersion
	if r.done {
		b[1] = 1
	}
	b = binary.BigEndian.AppendUint64(b, uint64(r.end.UnixMilli()))
	b = append(b, r.fingerprint[:]...)
	return append(b, r.answer...)
}

func readRecord(b []byte) (r record, err error) {
	if len(b) < recordHead || b[0] != recordVersion || b[1] > 1 {
		return r, errors.New("what is kept of it cannot be read; it may be of a newer server")
	}
	r.done = b[1] == 1
	r.end = time.UnixMilli(int64(binary.BigEndian.Uint64(b[2:])))
	copy(r.fingerprint[:], b[10:])
	r.answer = b[recordHead:]
	return r, nil
}

// claim says what the record, whose time is not over, means for who asks with c.
func (r record) claim(c resilience.Claim, now time.Time) (resilience.Claim, error) {
	switch {
	case r.fingerprint != c.Fingerprint:
		c.State = resilience.ClaimMismatch
	case !r.done:
		c.State, c.Wait = resilience.ClaimInFlight, r.end.Sub(now)
	default:
		if err := c.Answer.UnmarshalBinary(r.answer); err != nil {
			return c, keyError(weft.Internal, "claim", c.Key, err)
		}
		c.State = resilience.ClaimDone
	}
	return c, nil
}

// What is removed stays in the store's history, which reaches back up to two hours
// (an hour, cut every hour). Bytes count as long.
const (
	historySlot  = 10 * time.Minute
	historySlots = 13
)

// goneBytes are what was removed in one slot of time.
type goneBytes struct {
	slot  int64
	bytes int64
}

// admit refuses what there is no room for.
func (d *Idempotency) admit(now time.Time, more int, isNew bool) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if isNew && d.total.keys >= d.maxKeys {
		return fmt.Errorf("the server keeps %d keys already, which is the most; those go first whose answers' time ends first", d.total.keys)
	}
	bytes := d.total.bytes + int64(more)
	oldest := now.UnixNano()/int64(historySlot) - historySlots
	for _, g := range d.gone {
		if g.slot > oldest {
			bytes += g.bytes
		}
	}
	if more > 0 && bytes > d.maxBytes {
		return fmt.Errorf("the server keeps answers of %d bytes already; at most %d, counting those that ended in the last two hours", bytes-int64(more), d.maxBytes)
	}
	return nil
}

// changed counts that a value came in the place of another; nil is none.
func (d *Idempotency) changed(now time.Time, at string, old, value []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var delta usage
	if old != nil {
		delta = usage{-1, -int64(len(old))}
		slot := now.UnixNano() / int64(historySlot)
		g := &d.gone[slot%historySlots]
		if g.slot != slot {
			*g = goneBytes{slot: slot}
		}
		g.bytes += int64(len(old))
	}
	if value != nil {
		delta.keys++
		delta.bytes += int64(len(value))
	}
	d.count(shardOf(at), delta)
}

// count adds to a shard; mu is held.
func (d *Idempotency) count(shard int, delta usage) {
	for _, u := range []*usage{&d.shards[shard], &d.total} {
		u.keys += delta.keys
		u.bytes += delta.bytes
	}
}

const (
	// sweepShards parts the keys by the first byte of their digest. The store lists
	// a prefix as a whole, so that a part is what is in memory at once: some 4 MB
	// when the store is full.
	sweepShards = 256
	// sweepPause makes a round of all shards take some four minutes, which is short
	// against the time that answers are kept for, and costs nothing.
	sweepPause = time.Second
	// sweepBatch is how many keys are removed in one transaction.
	sweepBatch = 128
)

// shardOf is the shard of a key as recordKey returns it.
func shardOf(at string) int {
	b, err := hex.DecodeString(at[len(recordPrefix) : len(recordPrefix)+2])
	if err != nil {
		return 0 // not by recordKey
	}
	return int(b[0])
}

// Run counts what is kept, and removes what is over, until ctx ends.
func (d *Idempotency) Run(ctx context.Context) error {
	pause := time.NewTicker(sweepPause)
	defer pause.Stop()
	failed := false
	for round := 0; ; round++ {
		if round >= sweepShards { // what is there is counted at once
			select {
			case <-ctx.Done():
			case <-pause.C:
			}
		}
		if ctx.Err() != nil {
			return nil
		}
		err := d.sweep(ctx, round%sweepShards)
		if err != nil && !failed && ctx.Err() == nil {
			d.log.Warn("old idempotency keys cannot be removed", "error", err)
		}
		failed = err != nil
	}
}

// sweep removes from one shard what is over, and counts what is left.
func (d *Idempotency) sweep(ctx context.Context, shard int) error {
	kvs, _, err := d.store.List(ctx, fmt.Sprintf("%s%02x", recordPrefix, shard))
	if err != nil {
		return err
	}
	now := time.Now()
	var there usage
	var over []store.KV
	for _, kv := range kvs {
		there.keys++
		there.bytes += int64(len(kv.Value))
		if r, err := readRecord(kv.Value); err == nil && !now.Before(r.end) {
			over = append(over, kv)
		}
	}
	d.mu.Lock()
	known := d.shards[shard]
	d.count(shard, usage{there.keys - known.keys, there.bytes - known.bytes})
	d.mu.Unlock()
	for len(over) > 0 {
		n := min(len(over), sweepBatch)
		if err := d.remove(ctx, over[:n]); err != nil {
			return err
		}
		over = over[n:]
	}
	return nil
}

// remove removes keys that are still as they were read. When one of them is not, all
// wait for the next round.
func (d *Idempotency) remove(ctx context.Context, kvs []store.KV) error {
	var t store.Txn
	for _, kv := range kvs {
		t.If = append(t.If, store.Cond{Key: kv.Key, ModRev: kv.ModRev})
		t.Delete = append(t.Delete, kv.Key)
	}
	if _, err := d.store.Commit(ctx, t); err != nil {
		if weft.KindOf(err) == weft.Conflict {
			return nil
		}
		return err
	}
	now := time.Now()
	for _, kv := range kvs {
		d.changed(now, kv.Key, kv.Value, nil)
	}
	return nil
}

// keys is nil, with the reason, when this server keeps none.
func (a *api) keys(op string) (*Idempotency, error) {
	if a.Idempotency == nil {
		return nil, weft.Errorf(weft.Unavailable, op, "idempotency key", "this server keeps none")
	}
	return a.Idempotency, nil
}

func (a *api) beginKey(r *http.Request) (any, error) {
	d, err := a.keys("claim")
	if err != nil {
		return nil, err
	}
	var in client.IdempotencyBegin
	if err := decode(r, "claim", &in); err != nil {
		return nil, err
	}
	key := r.PathValue("key")
	fingerprint, err := fingerprintOf("claim", key, in.Fingerprint)
	if err != nil {
		return nil, err
	}
	c, err := d.Begin(r.Context(), key, fingerprint, durationOf(in.LeaseMS))
	if err != nil {
		return nil, err
	}
	out := client.IdempotencyClaim{State: c.State, Token: c.Token, WaitMS: (c.Wait + time.Millisecond - 1).Milliseconds()}
	if c.State == resilience.ClaimDone {
		if out.Answer, err = c.Answer.MarshalBinary(); err != nil {
			return nil, keyError(weft.Internal, "claim", key, err)
		}
	}
	return out, nil
}

func (a *api) finishKey(r *http.Request) (any, error) {
	d, err := a.keys("finish")
	if err != nil {
		return nil, err
	}
	var in client.IdempotencyFinish
	if err := decode(r, "finish", &in); err != nil {
		return nil, err
	}
	key := r.PathValue("key")
	fingerprint, err := fingerprintOf("finish", key, in.Fingerprint)
	if err != nil {
		return nil, err
	}
	var answer resilience.StoredAnswer
	if err := answer.UnmarshalBinary(in.Answer); err != nil { // who repeats must be able to
		return nil, keyError(weft.Invalid, "finish", key, err)
	}
	return nil, d.finish(r.Context(), resilience.Claim{Key: key, Fingerprint: fingerprint, Token: in.Token}, in.Answer, durationOf(in.TTLMS))
}

func (a *api) abandonKey(r *http.Request) (any, error) {
	d, err := a.keys("abandon")
	if err != nil {
		return nil, err
	}
	var in client.IdempotencyAbandon
	if err := decode(r, "abandon", &in); err != nil {
		return nil, err
	}
	return nil, d.Abandon(r.Context(), resilience.Claim{Key: r.PathValue("key"), Token: in.Token})
}

func fingerprintOf(op, key string, b []byte) (f [32]byte, err error) {
	if len(b) != len(f) {
		return f, keyError(weft.Invalid, op, key, fmt.Errorf("the fingerprint has %d bytes; want %d", len(b), len(f)))
	}
	return [32]byte(b), nil
}

// durationOf does not overflow: what is negative, or over a year, is refused anyway.
func durationOf(ms int64) time.Duration {
	return time.Duration(min(max(ms, 0), (2*maxTTL).Milliseconds())) * time.Millisecond
}
