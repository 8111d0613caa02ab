package resilience

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"strings"
	"time"
)

// IdempotencyStore remembers which keys are in use and what was answered to them.
// MemoryStore is one for one process; package client has one for a mesh.
//
// Who gets ClaimMine runs the request, and then calls Finish or Abandon once. Who
// does neither (it crashed) loses the claim when its lease is over, and the key is
// free again. So no claim is safe beyond its lease: bound what runs under it.
type IdempotencyStore interface {
	// Begin claims the key for one caller, or says what is known of it. Of any
	// number of callers at once exactly one gets ClaimMine. After an error nothing
	// is known: the key may be claimed by nobody until the lease is over.
	Begin(ctx context.Context, key string, fingerprint [32]byte, lease time.Duration) (Claim, error)
	// Finish keeps the answer for ttl. Its slices are the store's from then on. The
	// error is ErrClaimLost when the claim is not c's any more, and then nothing has
	// changed. After another error the claim stands: Abandon it, or let it lapse.
	Finish(ctx context.Context, c Claim, answer StoredAnswer, ttl time.Duration) error
	// Abandon frees the key, so that a repeat runs again. ErrClaimLost as in Finish.
	Abandon(ctx context.Context, c Claim) error
}

var (
	// ErrClaimLost: the lease ran out, and the key is free or somebody else's.
	ErrClaimLost = errors.New("the claim on the idempotency key is lost: its lease ran out")
	// ErrStoreFull: a store has no room, and nothing that it may forget.
	ErrStoreFull = errors.New("the store of idempotency keys is full")
	// ErrInFlight and ErrKeyReused are what Once returns for another caller's key.
	ErrInFlight  = errors.New("the first call with this idempotency key has not ended")
	ErrKeyReused = errors.New("the idempotency key was used for something else")
)

// ClaimLease is how long a request may run under a key: longer than any wait for an
// answer that a caller is likely to bear, and short for those who ask in vain when
// its runner crashed.
const ClaimLease = time.Minute

// DefaultAnswerTTL is how long answers are kept when nobody said otherwise.
const DefaultAnswerTTL = 24 * time.Hour

// ClaimState is what Begin found.
type ClaimState uint8

// The states of a key as Begin's caller sees them. The zero value is none of them.
const (
	ClaimMine     ClaimState = 1 + iota // nobody had it: run the request
	ClaimInFlight                       // another caller runs the same request: ask again later
	ClaimDone                           // it was answered: give that answer again
	ClaimMismatch                       // the key belongs to another request
)

var claimStates = [...]string{ClaimMine: "mine", ClaimInFlight: "in-flight", ClaimDone: "done", ClaimMismatch: "mismatch"}

func (s ClaimState) String() string {
	if s < ClaimMine || s > ClaimMismatch {
		return fmt.Sprintf("ClaimState(%d)", uint8(s))
	}
	return claimStates[s]
}

// MarshalText is String.
func (s ClaimState) MarshalText() ([]byte, error) {
	if s < ClaimMine || s > ClaimMismatch {
		return nil, fmt.Errorf("there is no %v", s)
	}
	return []byte(claimStates[s]), nil
}

// UnmarshalText reads what MarshalText wrote.
func (s *ClaimState) UnmarshalText(text []byte) error {
	for i, name := range claimStates {
		if name != "" && name == string(text) {
			*s = ClaimState(i)
			return nil
		}
	}
	return fmt.Errorf("claim state %q: want mine, in-flight, done or mismatch", text)
}

// Claim is what Begin returns: hand it to Finish or Abandon as it is.
type Claim struct {
	Key         string
	Fingerprint [32]byte
	State       ClaimState
	// Token, of ClaimMine, is another one for every claim on the key: with it the
	// store knows who comes after the end of a lease.
	Token int64
	// Wait, of ClaimInFlight, is what is left of the other caller's lease.
	Wait time.Duration
	// Answer, of ClaimDone. Its slices are shared and must not be changed.
	Answer StoredAnswer
}

// IdempotencyRefusal is what a client is told when its request is not run.
type IdempotencyRefusal struct {
	Status     int
	Reason     string // a word for x-weft-reason and metrics
	Text       string // a sentence for a person
	RetryAfter time.Duration
}

// askAgain is what a twin is told to wait, unless the lease is over earlier. Most
// requests end long before their lease, and asking again costs little.
const askAgain = time.Second

// Refusal says what to answer for a claim that is neither mine nor done.
func (c *Claim) Refusal() (r IdempotencyRefusal, refused bool) {
	switch c.State {
	case ClaimInFlight:
		return IdempotencyRefusal{409, "idempotency_in_flight",
			"the first request with this idempotency key has not ended", min(c.Wait, askAgain)}, true
	case ClaimMismatch:
		return IdempotencyRefusal{422, "idempotency_mismatch",
			"this idempotency key was used for another request; every request needs a key of its own", 0}, true
	}
	return IdempotencyRefusal{}, false
}

// IdempotencyUnavailable is what to answer when the store fails in Begin: to run the
// request all the same could run it twice.
func IdempotencyUnavailable() IdempotencyRefusal {
	return IdempotencyRefusal{503, "idempotency_store", "it cannot be found out whether this request was run before", askAgain}
}

// MaxIdempotencyKey bounds a key as a client sends it, in bytes.
const MaxIdempotencyKey = 255

// Check judges a request by its method and the lines of its key header: whether
// it is to run once, or is refused. Keys are compared as they were sent, quotes
// included (the draft's are quoted, most clients' are not).
func (s *IdempotencySpec) Check(method string, lines ...string) (once bool, refusal *IdempotencyRefusal) {
	if !repeatRunsAgain(method) {
		return false, nil
	}
	switch {
	case len(lines) > 1:
		return false, &IdempotencyRefusal{Status: 400, Reason: "idempotency_key_invalid", Text: "there is more than one line " + s.header()}
	case len(lines) == 0 && s.Required && (method == "POST" || method == "PATCH"):
		return false, &IdempotencyRefusal{Status: 400, Reason: "idempotency_key_missing", Text: "this request needs a header " + s.header()}
	case len(lines) == 0:
		return false, nil
	}
	if err := CheckIdempotencyKey(lines[0]); err != nil {
		return false, &IdempotencyRefusal{Status: 400, Reason: "idempotency_key_invalid", Text: s.header() + ": " + err.Error()}
	}
	return true, nil
}

func (s *IdempotencySpec) header() string {
	if s.Header == "" {
		return "Idempotency-Key"
	}
	return s.Header
}

// repeatRunsAgain reports whether a method is not idempotent by itself (RFC 9110
// §9.2.2).
func repeatRunsAgain(method string) bool {
	switch method {
	case "GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE", "CONNECT":
		return false
	}
	return true
}

// CheckIdempotencyKey says what is wrong with a key: it is 1 to 255 bytes of visible
// ASCII.
func CheckIdempotencyKey(key string) error {
	if key == "" || key == `""` {
		return errors.New("the key is empty")
	}
	if len(key) > MaxIdempotencyKey {
		return fmt.Errorf("the key has %d bytes; at most %d", len(key), MaxIdempotencyKey)
	}
	for i := range len(key) {
		if key[i] <= ' ' || key[i] > '~' {
			return fmt.Errorf("the key has a byte %#02x at %d; visible ASCII only", key[i], i)
		}
	}
	return nil
}

// IdempotencyKey is the key under which a store knows a client's key: it is another
// one in every scope. The scope is everything in which two requests are strangers:
// what is asked, and who asks. It is a digest, 43 letters, digits, "-" and "_":
// what the scope holds (an Authorization) cannot be read from it.
func IdempotencyKey(key string, scope ...string) string {
	h := sha256.New()
	for _, part := range scope {
		writePart(h, part)
	}
	writePart(h, key)
	return base64.RawURLEncoding.EncodeToString(h.Sum(nil))
}

// Fingerprint digests a request, piece by piece: whoever sends a key again with
// another fingerprint has used it for something else.
type Fingerprint struct{ h hash.Hash }

// NewFingerprint begins with what stands before a request's body. path and query
// are as they were sent.
func NewFingerprint[S ~string | ~[]byte](method, path, query, contentType S) *Fingerprint {
	h := sha256.New()
	writePart(h, method)
	writePart(h, path)
	writePart(h, query)
	writePart(h, contentType)
	return &Fingerprint{h}
}

// Write adds a piece of the body. It never fails.
func (f *Fingerprint) Write(piece []byte) (int, error) { return f.h.Write(piece) }

// Sum is the fingerprint of everything so far.
func (f *Fingerprint) Sum() (sum [32]byte) {
	f.h.Sum(sum[:0])
	return sum
}

// writePart writes a part behind its length: "ab"+"c" is not "a"+"bc".
func writePart[S ~string | ~[]byte](h hash.Hash, part S) {
	var n [8]byte
	binary.BigEndian.PutUint64(n[:], uint64(len(part)))
	h.Write(n[:])
	h.Write([]byte(part))
}

// KeepsStatus reports whether an answer with this status is kept. 5xx is not: the
// request failed, and a repeat runs again. Nor is what only says "not now": 408,
// 409, 425 and 429.
func KeepsStatus(status int) bool {
	switch status {
	case 408, 409, 425, 429:
		return false
	}
	return status >= 200 && status < 500
}

// KeepsHeader reports whether a line of an answer is kept with it. What belongs to
// one connection or one transmission is not: whoever replays an answer frames and
// dates it afresh.
func KeepsHeader(name string) bool {
	switch strings.ToLower(name) {
	case "connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade",
		"content-length", "date", "idempotency-replayed":
		return false
	}
	return len(name) < len("x-weft-") || !strings.EqualFold(name[:len("x-weft-")], "x-weft-")
}

// HeaderLine is one line of a head.
type HeaderLine struct{ Name, Value string }

// StoredAnswer is an answer as a store keeps it.
type StoredAnswer struct {
	Status int
	Header []HeaderLine // in order; those that KeepsHeader
	Body   []byte
}

// answerVersion is the first byte of a StoredAnswer in bytes.
const answerVersion = 1

// MarshalBinary writes: the version, then status and number of lines, then name and
// value of each behind their lengths (all numbers are uvarints), then the body.
func (a StoredAnswer) MarshalBinary() ([]byte, error) {
	b := make([]byte, 0, a.size())
	b = append(b, answerVersion)
	b = binary.AppendUvarint(b, uint64(a.Status))
	b = binary.AppendUvarint(b, uint64(len(a.Header)))
	for _, line := range a.Header {
		b = binary.AppendUvarint(b, uint64(len(line.Name)))
		b = append(b, line.Name...)
		b = binary.AppendUvarint(b, uint64(len(line.Value)))
		b = append(b, line.Value...)
	}
	return append(b, a.Body...), nil
}

// UnmarshalBinary reads what MarshalBinary wrote. It keeps nothing of data.
func (a *StoredAnswer) UnmarshalBinary(data []byte) error {
	if len(data) == 0 || data[0] != answerVersion {
		return errors.New("read stored answer: it is not of version 1")
	}
	r := answerReader{rest: data[1:]}
	status, lines := r.number(), r.number()
	// A line has at least its two lengths.
	if r.cut || status < 100 || status > 999 || lines > uint64(len(r.rest)/2) {
		return errors.New("read stored answer: its head is broken")
	}
	out := StoredAnswer{Status: int(status)}
	if lines > 0 {
		out.Header = make([]HeaderLine, lines)
	}
	for i := range out.Header {
		out.Header[i] = HeaderLine{Name: r.text(), Value: r.text()}
	}
	if r.cut {
		return errors.New("read stored answer: a header line is cut off")
	}
	if len(r.rest) > 0 {
		out.Body = append([]byte(nil), r.rest...)
	}
	*a = out
	return nil
}

// size is about what the answer takes in memory, and at least what it does in bytes.
func (a *StoredAnswer) size() int {
	n := 32 + len(a.Body)
	for _, line := range a.Header {
		n += 32 + len(line.Name) + len(line.Value)
	}
	return n
}

type answerReader struct {
	rest []byte
	cut  bool // something was missing
}

func (r *answerReader) number() uint64 {
	v, n := binary.Uvarint(r.rest)
	if n <= 0 {
		r.cut = true
		return 0
	}
	r.rest = r.rest[n:]
	return v
}

func (r *answerReader) text() string {
	n := r.number()
	if r.cut || n > uint64(len(r.rest)) {
		r.cut = true
		return ""
	}
	s := string(r.rest[:n])
	r.rest = r.rest[n:]
	return s
}

// storeTimeout bounds Finish and Abandon, which do not end with their caller's
// patience: what was run is to be remembered.
const storeTimeout = 5 * time.Second

func finish(ctx context.Context, store IdempotencyStore, c Claim, answer StoredAnswer, ttl time.Duration) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), storeTimeout)
	defer cancel()
	return store.Finish(ctx, c, answer, ttl)
}

// abandon has nothing to report when the claim is lost already.
func abandon(ctx context.Context, store IdempotencyStore, c Claim) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), storeTimeout)
	defer cancel()
	if err := store.Abandon(ctx, c); err != nil && !errors.Is(err, ErrClaimLost) {
		return fmt.Errorf("free the idempotency key: %w", err)
	}
	return nil
}

// Once runs fn once for each key and returns its value to every caller, for ttl (0:
// DefaultAnswerTTL); values are kept as JSON. fingerprint says what the key stands
// for: see NewFingerprint. When fn fails or panics the key is free again. fn's
// context ends after ClaimLease.
//
// While another caller runs fn the error is ErrInFlight; ErrKeyReused says that the
// key came with another fingerprint. When fn succeeded and its value could not be
// kept, the value is returned beside the error: a repeat runs again.
func Once[T any](ctx context.Context, store IdempotencyStore, key string, fingerprint [32]byte, ttl time.Duration,
	fn func(context.Context) (T, error)) (value T, err error) {
	claim, err := store.Begin(ctx, key, fingerprint, ClaimLease)
	if err != nil {
		return value, fmt.Errorf("claim the idempotency key: %w", err)
	}
	switch claim.State {
	case ClaimDone:
		if err := json.Unmarshal(claim.Answer.Body, &value); err != nil {
			return value, fmt.Errorf("read the value kept for the idempotency key: %w", err)
		}
		return value, nil
	case ClaimInFlight:
		return value, fmt.Errorf("%w; its lease ends in %v", ErrInFlight, claim.Wait)
	case ClaimMismatch:
		return value, ErrKeyReused
	}
	kept := false
	defer func() {
		if !kept {
			err = errors.Join(err, abandon(ctx, store, claim))
		}
	}()
	run, cancel := context.WithTimeout(ctx, ClaimLease)
	defer cancel()
	if value, err = fn(run); err != nil {
		return value, err
	}
	data, err := json.Marshal(value)
	if err == nil {
		err = finish(ctx, store, claim, StoredAnswer{Status: 200, Body: data}, cmp.Or(ttl, DefaultAnswerTTL))
	}
	if err != nil {
		return value, fmt.Errorf("keep the value for the idempotency key: %w", err)
	}
	kept = true
	return value, nil
}
