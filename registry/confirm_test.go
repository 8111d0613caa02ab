package registry

import (
	"context"
	"errors"
	"testing"

	"github.com/weftmesh/weft"
)

// TestAnswersAreConfirmed: a server that was stopped for a while, and does not know that
// another one writes, answers nothing by what it knew: neither that a plan is refused,
// nor that nothing has to be changed. One that still writes does.
func TestAnswersAreConfirmed(t *testing.T) {
	web := &weft.Instance{Node: "server-0", ID: "web", Service: weft.NewServiceName("", "web"), Port: 1}
	deregister := func(id string) func(*draft) error {
		return func(d *draft) error {
			key := weft.InstanceKey{Node: "server-0", ID: id}
			if d.instance(key) == nil {
				return noInstance("deregister", key)
			}
			d.deleteInstance(key)
			return nil
		}
	}
	same := func(d *draft) error {
		in := *web
		return d.putInstance(&in)
	}
	for _, c := range []struct {
		name     string
		replaced bool // another server writes
		plan     func(*draft) error
		want     error // as errors.Is has it; nil is success
		kind     weft.Kind
	}{
		{"a refusal of who writes", false, deregister("db"), nil, weft.NotFound},
		{"a refusal of who does not any more", true, deregister("db"), errNotWriter, weft.Unavailable},
		{"no change by who writes", false, same, nil, 0},
		{"no change by who does not any more", true, same, errNotWriter, weft.Unavailable},
		{"a change by who does not any more", true, deregister("web"), errNotWriter, weft.Unavailable},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFleet(t, 2)
			stopped := f.servers[0]
			if _, err := stopped.Register(t.Context(), *web); err != nil {
				t.Fatal(err)
			}
			if err := stopped.Close(); err != nil { // its loop is gone: the test plays it
				t.Fatal(err)
			}
			stopped.ctx, stopped.cancel = context.WithCancel(t.Context())
			defer stopped.cancel()
			if c.replaced {
				f.lead(1, false)
				waitFor(t, f.servers[1].Writes)
				db := *web
				db.ID = "db"
				if _, err := f.servers[1].Register(t.Context(), db); err != nil {
					t.Fatal(err)
				}
				if _, err := f.servers[1].Deregister(t.Context(), web.Key()); err != nil {
					t.Fatal(err)
				}
			}
			req := &request{ctx: t.Context(), plan: c.plan, done: make(chan error, 1)}
			if _, err := stopped.write(nil, []*request{req}); err != nil {
				t.Fatal(err)
			}
			err := <-req.done
			if c.want != nil && !errors.Is(err, c.want) || c.want == nil && (err == nil) != (c.kind == 0) || weft.KindOf(err) != c.kind && err != nil {
				t.Errorf("answered %v", err)
			}
			if stopped.Writes() == c.replaced {
				t.Errorf("it writes: %v", stopped.Writes())
			}
		})
	}
}
