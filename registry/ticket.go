package registry

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/store"
)

// ticket makes a write safe to ask for again when its answer was lost: it is good once.
// The transaction of a write also puts its ticket, so whoever writes later knows from
// the store that this very write was made, and does not make it again over what others
// have written since. What changed nothing, or was refused, leaves the ticket good: to
// do that later is as right as it was before.
//
// A writer remembers the newest used tickets. Of older ones it asks the history of the
// record that they are put in, from a revision at which a ticket was good for certain.
type ticket struct {
	ID   string `json:"id"`
	Good int64  `json:"good"` // a revision up to which it was not used
}

const (
	// ticketsRecord has the ids of the tickets that its last transaction used.
	ticketsRecord = root + "tickets"
	// ticketSize is the length of an id, 12 random bytes in base64.
	ticketSize = 16
	// maxTickets bounds the memory, to some 8 MB: seconds of writes.
	maxTickets = 1 << 16
)

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

// ticketBook remembers the used tickets of all transactions after revision since.
type ticketBook struct {
	limit int
	since int64
	used  map[string]int64 // revision, by id
	order []string         // oldest first, from first on
	first int
}

// add takes what a transaction used.
func (b *ticketBook) add(record []byte, rev int64) {
	if b.used == nil {
		b.used = make(map[string]int64)
	}
	for ; len(record) >= ticketSize; record = record[ticketSize:] {
		id := string(record[:ticketSize])
		b.used[id] = rev
		b.order = append(b.order, id)
	}
	for len(b.order)-b.first > b.limit {
		id := b.order[b.first]
		b.first++
		b.since = max(b.since, b.used[id])
		delete(b.used, id)
	}
	if b.first > b.limit {
		b.order = append([]string(nil), b.order[b.first:]...)
		b.first = 0
	}
}

// errForgotten: the ticket may have been used before what the book has.
var errForgotten = errors.New("the ticket is older than what is remembered")

// admit decides about a request before it is planned: done is true when its ticket is
// used already, in the catalogue or in this draft.
func (d *draft) admit(req *request) (done bool, err error) {
	t := req.ticket
	if t == nil {
		return false, nil
	}
	b := &d.view.tickets
	if rev, used := b.used[t.ID]; used {
		req.used = rev
		return true, nil
	}
	if d.tickets[t.ID] {
		req.usedIn = d
		return true, nil
	}
	if t.Good < b.since {
		return false, errForgotten
	}
	return false, nil
}

// use notes the ticket of a request that was planned.
func (d *draft) use(req *request) {
	still := d.stillGood
	d.stillGood = false
	if req.ticket == nil || still {
		return
	}
	if d.tickets == nil {
		d.tickets = make(map[string]bool)
	}
	d.tickets[req.ticket.ID] = true
	d.size += ticketSize
}

// ticketTxn adds the used tickets to a transaction that changes something.
func (d *draft) ticketTxn(t *store.Txn) {
	if len(d.tickets) == 0 || len(t.Put)+len(t.Delete) == 0 {
		return
	}
	record := make([]byte, 0, len(d.tickets)*ticketSize)
	for id := range d.tickets {
		record = append(record, id...)
	}
	t.Put = append(t.Put, store.KV{Key: ticketsRecord, Value: record})
}

// once is do for a write that may be asked for several times by one ticket. used is 0
// when plan was done now; else it is the revision at which it was done before, which
// this server's view has, and plan was not called.
func (r *Registry) once(ctx context.Context, op, thing string, plan func(*draft) error) (used int64, err error) {
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
			if used, err := r.recall(ctx, t); used != 0 || err != nil {
				return used, err
			}
			continue
		case err != nil:
			return 0, err
		case req.usedIn != nil:
			// With a draft that changed nothing there is no revision of its own.
			return max(req.usedIn.rev, r.view.revision()), nil
		}
		return req.used, nil
	}
}

// recall asks the history for a ticket that is older than what the view remembers. It
// returns the revision at which it was used, or 0: then it was good up to now.
func (r *Registry) recall(ctx context.Context, t *ticket) (used int64, err error) {
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
				for record := b.Events[i].Value; len(record) >= ticketSize; record = record[ticketSize:] {
					if string(record[:ticketSize]) == t.ID {
						return b.Rev, nil
					}
				}
			}
		}
		t.Good = end
	}
	return 0, nil
}
