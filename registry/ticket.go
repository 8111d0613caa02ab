package registry

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/store"
)

// ticket makes a write safe to ask for again when its answer was lost: it is good once.
// The transaction of a write also puts the punched ticket, so whoever writes later knows
// from the store that this very write was made, and does not make it again over what
// others have written since. What was refused, or changed nothing, leaves the ticket
// good: to do that later is as right as it was before. But of who asks again an earlier
// attempt may still be on its way; so what comes of a later attempt is put in any case,
// and the earlier ones come to nothing from then on.
//
// A writer remembers the newest tickets that were punched. For older ones it asks the
// history of the record that they are put in, from a revision before they were made.
type ticket struct {
	ID      string `json:"id"`
	Good    int64  `json:"good"`              // a revision up to which it was not punched
	Earlier uint8  `json:"earlier,omitempty"` // attempts that may have arrived, or may yet
}

const (
	// ticketsRecord has what its last transaction says of tickets: of each a byte, its
	// punch, and the id.
	ticketsRecord = root + "tickets"
	// ticketSize is the length of an id, 12 random bytes in base64.
	ticketSize = 16
	punchSize  = 1 + ticketSize
	// maxTickets bounds the memory, to some 8 MB: seconds of writes.
	maxTickets = 1 << 16
)

// punch is used, or how many attempts are void.
type punch uint8

const used punch = 0

const maxAttempts = 255 // more than there is time for

// admits reports whether an attempt may be made after the punch.
func (p punch) admits(t *ticket) bool { return p != used && t.Earlier >= uint8(p) }

type ticketKey struct{}

// withTicket lets the write that is made with the context be made once. It is for one
// goroutine at a time.
func withTicket(ctx context.Context, t *ticket) context.Context {
	return context.WithValue(ctx, ticketKey{}, t)
}

// ticketOf returns the ticket of a write, nil when it has none.
func ticketOf(ctx context.Context) *ticket {
	t, _ := ctx.Value(ticketKey{}).(*ticket)
	return t
}

// newTicket returns a ticket that is good now. Its id is made when it is needed.
func (r *Registry) newTicket() *ticket { return &ticket{Good: r.view.revision()} }

func (t *ticket) id() string {
	if t.ID == "" {
		var b [ticketSize / 4 * 3]byte
		rand.Read(b[:]) // never fails
		t.ID = base64.RawURLEncoding.EncodeToString(b[:])
	}
	return t.ID
}

// check refuses what no server sends.
func (t *ticket) check() error {
	if t != nil && (len(t.ID) != ticketSize || t.Good < 0) {
		return weft.Errorf(weft.Invalid, "write", "forwarded write", "its ticket is malformed")
	}
	return nil
}

// punches yields what a record says of tickets.
func punches(record []byte) func(yield func(id string, p punch) bool) {
	return func(yield func(string, punch) bool) {
		for ; len(record) >= punchSize; record = record[punchSize:] {
			if !yield(string(record[1:punchSize]), punch(record[0])) {
				return
			}
		}
	}
}

// ticketBook remembers the tickets that were punched after revision since.
type ticketBook struct {
	limit  int
	since  int64
	byID   map[string]punched
	oldest []punched // from first on; of a ticket that was punched again also its older punch
	first  int
}

// punched is a ticket that the store has.
type punched struct {
	id  string
	rev int64
	punch
}

// add takes what a transaction put.
func (b *ticketBook) add(record []byte, rev int64) {
	if b.byID == nil {
		b.byID = make(map[string]punched)
	}
	for id, p := range punches(record) {
		b.byID[id] = punched{id, rev, p}
		b.oldest = append(b.oldest, b.byID[id])
	}
	for len(b.oldest)-b.first > b.limit {
		old := b.oldest[b.first]
		b.first++
		b.since = old.rev
		if b.byID[old.id].rev == old.rev {
			delete(b.byID, old.id)
		}
	}
	if b.first > b.limit {
		b.oldest = slices.Clone(b.oldest[b.first:])
		b.first = 0
	}
}

var (
	// errForgotten: the ticket may have been punched before what the book has.
	errForgotten = errors.New("the ticket is older than what is remembered")
	// errVoid answers an attempt that nobody waits for any more.
	errVoid = weft.Errorf(weft.Conflict, "write", "registry", "it was asked for again, and that was answered")
)

// admit decides about a request before it is planned: done is true when its ticket was
// used already, in the catalogue or in this draft.
func (d *draft) admit(req *request) (done bool, err error) {
	t, b := req.ticket, &d.view.tickets
	if t == nil {
		return false, nil
	}
	was, known := b.byID[t.ID]
	if now, here := d.tickets[t.ID]; here {
		was.punch, was.rev, known = now, 0, true
		req.usedIn = d
	}
	switch {
	case known && was.punch == used:
		req.used = was.rev
		return true, nil
	case known && !was.admits(t):
		return false, errVoid
	case !known && t.Good < b.since:
		return false, errForgotten
	}
	req.usedIn = nil
	return false, nil
}

// outcome is what a plan says of its ticket.
type outcome uint8

const (
	whole   outcome = iota
	part            // it has to be made again, for the rest
	nothing         // it did nothing, and the caller is told so
)

// settleTicket notes what came of a request.
func (d *draft) settleTicket(req *request, refused bool) {
	came := d.outcome
	d.outcome = whole
	t := req.ticket
	if t == nil || came == part && !refused {
		return
	}
	p := used
	if refused || came == nothing {
		if t.Earlier == 0 {
			return
		}
		p = punch(t.Earlier)
	}
	if d.tickets == nil {
		d.tickets = make(map[string]punch)
	}
	d.tickets[t.ID] = p
	d.repeated = d.repeated || t.Earlier > 0
	d.size += punchSize
}

// ticketTxn adds the punched tickets to a transaction. One that changes nothing needs
// none, but for those of repeated attempts.
func (d *draft) ticketTxn(t *store.Txn) {
	if len(d.tickets) == 0 || len(t.Put)+len(t.Delete) == 0 && !d.repeated {
		return
	}
	record := make([]byte, 0, len(d.tickets)*punchSize)
	for id, p := range d.tickets {
		record = append(record, byte(p))
		record = append(record, id...)
	}
	t.Put = append(t.Put, store.KV{Key: ticketsRecord, Value: record})
}

// once is do for a write that may be asked for several times by one ticket. before is 0
// when plan was done now; else it is the revision at which it was done before, which
// this server's view has, and plan was not called.
func (r *Registry) once(ctx context.Context, op, thing string, plan func(*draft) error) (before int64, err error) {
	t := ticketOf(ctx)
	if t == nil {
		return 0, r.do(ctx, op, thing, plan)
	}
	t.id()
	for {
		req := &request{ctx: ctx, plan: plan, ticket: t, done: make(chan error, 1)}
		err := r.ask(req, op, thing)
		switch {
		case errors.Is(err, errForgotten):
			if before, err := r.recall(ctx, t); before != 0 || err != nil {
				return before, err
			}
			continue
		case err != nil:
			return 0, err
		case req.usedIn != nil:
			// A draft that changed nothing has no revision of its own.
			return max(req.usedIn.rev, r.view.revision()), nil
		}
		return req.used, nil
	}
}

// recall asks the history for a ticket that is older than what the view remembers. It
// returns the revision at which it was used, or 0: then it was good up to now.
func (r *Registry) recall(ctx context.Context, t *ticket) (before int64, err error) {
	r.view.mu.RLock()
	to := r.view.tickets.since
	r.view.mu.RUnlock()
	for t.Good < to {
		end := min(t.Good+historyPage, to)
		batches, err := r.store.History(ctx, ticketsRecord, t.Good+1, end)
		if err != nil {
			return 0, &weft.Error{Kind: weft.Unavailable, Op: "write", Thing: "registry",
				Err: fmt.Errorf("%w, and its history cannot be read: %w", errMayHaveHappened, err)}
		}
		for _, b := range batches {
			for i := range b.Events {
				for id, p := range punches(b.Events[i].Value) {
					switch {
					case id != t.ID:
					case p == used:
						return b.Rev, nil
					case !p.admits(t):
						err = errVoid
					}
				}
			}
		}
		if err != nil {
			return 0, err
		}
		t.Good = end
	}
	return 0, nil
}
