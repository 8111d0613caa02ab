package proxy

import (
	"container/list"
	"crypto/sha256"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/weftmesh/weft/resilience"
	"github.com/weftmesh/weft/wire/http1"
)

// keeper holds the last good answer to each of the latest requests that a policy
// has seen, for the time when there is none. It is no cache: nothing is answered
// from it while the service answers.
type keeper struct {
	// constant
	spec resilience.CachedSpec

	mu      sync.Mutex
	answers map[keeperKey]*list.Element
	order   list.List // of *kept, the one used last in front
}

// keeperKey stands for a request. Who asks is part of it, so that nobody gets
// somebody else's answer.
type keeperKey [sha256.Size]byte

// kept is an answer. It is immutable.
type kept struct {
	key    keeperKey
	at     time.Time
	age    time.Duration // that it had then
	status int
	lines  []byte // header lines but for framing
	body   []byte
}

func newKeeper(s *resilience.CachedSpec) *keeper {
	return &keeper{spec: *s, answers: map[keeperKey]*list.Element{}}
}

// varied are the request's headers that an answer may depend on. An answer whose
// Vary names another one is not kept.
var varied = [...]string{"authorization", "cookie", "accept", "accept-language", "accept-encoding", "origin"}

// keeperKey of the request, the same for GET and HEAD. ok is false when there is no
// kept answer to it.
func (x *Exchange) keeperKey() (key keeperKey, ok bool) {
	if !x.isRead() || x.head.Framing != http1.NoBody {
		return key, false
	}
	if _, ranged := x.head.Lookup("range"); ranged > 0 {
		return key, false
	}
	b := x.takeOut()[:0]
	for _, part := range [...]string{x.request.Host, x.request.Path, x.request.Query, strconv.FormatBool(x.head.HasQuery), x.conn.source} {
		b = appendPart(b, part)
	}
	for _, name := range varied {
		value, _ := x.Header(name)
		b = appendPart(b, value)
	}
	return sha256.Sum256(b), true
}

// appendPart appends what cannot be mistaken for the end of one part and the
// beginning of another.
func appendPart(b []byte, part string) []byte {
	b = strconv.AppendInt(append(b, 0), int64(len(part)), 10)
	return append(append(b, ':'), part...)
}

// get returns the last good answer, unless that is too long ago.
func (k *keeper) get(key keeperKey, now time.Time) *kept {
	k.mu.Lock()
	defer k.mu.Unlock()
	el := k.answers[key]
	if el == nil {
		return nil
	}
	a := el.Value.(*kept)
	if now.Sub(a.at) > k.spec.MaxAge {
		k.order.Remove(el)
		delete(k.answers, key)
		return nil
	}
	k.order.MoveToFront(el)
	return a
}

func (k *keeper) put(a *kept) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if el := k.answers[a.key]; el != nil {
		el.Value = a
		k.order.MoveToFront(el)
		return
	}
	if k.order.Len() >= k.spec.MaxEntries {
		oldest := k.order.Back()
		k.order.Remove(oldest)
		delete(k.answers, oldest.Value.(*kept).key)
	}
	k.answers[a.key] = k.order.PushFront(a)
}

// copying is a sink that copies what it passes on, as long as it is not too much.
type copying struct {
	client
	most   int
	body   []byte
	over   bool             // it was too much, or had trailers
	settle func(whole bool) // what an idempotency key waits for; nil: none does
	lost   error            // what the client's side failed with
}

func (c *copying) write(data []byte, last bool) error {
	if len(c.body)+len(data) > c.most {
		c.over, c.body = true, nil
	}
	if !c.over {
		c.body = append(c.body, data...)
	}
	if last {
		c.ends()
	}
	return c.pass(c.client.write(data, last))
}

func (c *copying) flush() error { return c.pass(c.client.flush()) }

func (c *copying) end(trailers []byte) error {
	c.over = c.over || len(trailers) > 0
	c.ends()
	return c.pass(c.client.end(trailers))
}

// ends says that the copy is complete.
func (c *copying) ends() {
	if c.settle != nil {
		c.settle(!c.over)
	}
}

// pass hides that the client went away while its key is waiting for the answer: the
// client will ask again.
func (c *copying) pass(err error) error {
	if err == nil || c.settle == nil {
		return err
	}
	c.lost, c.client = err, nowhere{c.client}
	return nil
}

// nowhere is a client that has gone.
type nowhere struct{ client }

func (nowhere) write([]byte, bool) error { return nil }
func (nowhere) flush() error             { return nil }
func (nowhere) end([]byte) error         { return nil }

// keepable reports whether the response may be given again to who asked for it.
func (x *Exchange) keepable() bool {
	r := &x.response
	if r.Status != 200 && r.Status != 203 && r.Status != 204 && r.Status != 404 && r.Status != 410 {
		return false
	}
	if _, n := r.Lookup("set-cookie"); n > 0 {
		return false
	}
	for i := range r.Fields {
		name, value := r.Name(i), str(r.Value(i))
		switch {
		case equalFold(name, "cache-control"):
			if hasToken(value, "no-store") || hasToken(value, "private") && !x.tellsWho() {
				return false
			}
		case equalFold(name, "vary"):
			if !variesWithin(value) {
				return false
			}
		}
	}
	return true
}

// tellsWho reports whether the request says who asks in a header that is part of the
// key: a key of an API's own may be in any other.
func (x *Exchange) tellsWho() bool {
	_, authorized := x.head.Lookup("authorization")
	_, cookies := x.head.Lookup("cookie")
	return authorized+cookies > 0
}

func hasToken(list, token string) bool {
	for item := range strings.SplitSeq(list, ",") {
		if strings.EqualFold(strings.TrimSpace(item), token) {
			return true
		}
	}
	return false
}

// variesWithin reports whether Vary names nothing that a key does not hold.
func variesWithin(vary string) bool {
	for item := range strings.SplitSeq(vary, ",") {
		known := false
		for _, name := range varied {
			known = known || strings.EqualFold(strings.TrimSpace(item), name)
		}
		if !known {
			return false
		}
	}
	return true
}

// startKeeping reports whether the response's body is to be copied while it passes:
// for the client who repeats the request, or for the time when there is no answer.
func (x *Exchange) startKeeping(pl *plan) bool {
	c := &x.keep
	k := pl.guard.settings.Load().keeper
	last := x.isKept(pl, k)
	if c.settle != nil && !resilience.KeepsStatus(x.response.Status) {
		c.settle(false)
		c.settle = nil
	}
	if !last && c.settle == nil {
		return false
	}
	c.client, c.body, c.over, c.lost = x.client, nil, false, nil
	if last {
		c.most = max(c.most, k.spec.MaxBodyBytes)
	}
	if x.response.Framing == http1.FixedLength && x.response.Length > int64(c.most) {
		c.over = true
		return false
	}
	return true
}

func (x *Exchange) isRead() bool {
	m := string(x.head.Method)
	return m == "GET" || m == "HEAD"
}

// finishKeeping keeps a response that came to its end as the last good one.
func (x *Exchange) finishKeeping(pl *plan) {
	k := pl.guard.settings.Load().keeper
	if x.keep.over || !x.isKept(pl, k) || len(x.keep.body) > k.spec.MaxBodyBytes {
		return
	}
	key, ok := x.keeperKey()
	if !ok {
		return
	}
	r := &x.response
	a := &kept{key: key, at: time.Now(), status: r.Status, body: x.keep.body}
	for i := range r.Fields {
		switch f := &r.Fields[i]; {
		case equalFold(r.Name(i), "age"):
			seconds, _ := strconv.ParseUint(str(r.Value(i)), 10, 31)
			a.age, f.Drop = time.Duration(seconds)*time.Second, true
		case f.ID == http1.FieldXWeft: // it is about that exchange
			f.Drop = true
		}
	}
	a.lines = r.AppendFields(nil)
	k.put(a)
}

// isKept reports whether the response may become the last good one.
func (x *Exchange) isKept(pl *plan, k *keeper) bool {
	return k != nil && pl.instead == nil && string(x.head.Method) == "GET" && !x.failing(pl) && x.keepable()
}
