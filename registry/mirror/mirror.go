// Package mirror keeps a part of the catalogue as an outside source says that it
// is: all instances of one dialect on one node. Files, etcd and ZooKeeper are such
// sources; each reads, and says here what it read.
//
//	m := mirror.New(registry, mirror.Config{Node: "etcd", Dialect: "etcd", Source: "etcd at 10.0.0.1:2379"})
//	m.Away(err)                     // cannot be read: what it said last stands
//	m.Apply(ctx, claims, problems)  // it says this, and nothing else
//
// Apply writes the difference: what is new or different first, then what is gone
// is taken out, so that a service whose instances are all replaced is never empty.
// What belongs to a mirror is known by its dialect and node, in the registry itself:
// what a source stopped to say while nobody looked is taken out by the first Apply.
// An id that another dialect has on the node is left to it.
package mirror

import (
	"context"
	"fmt"
	"log/slog"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/weftmesh/weft"
)

// Catalogue is what a mirror writes to: a registry.
type Catalogue interface {
	Register(context.Context, weft.Instance) (uint64, error)
	Deregister(context.Context, weft.InstanceKey) (uint64, error)
	RegisterNode(context.Context, weft.Node) (uint64, error)
	// Node returns a node and what is on it; the instances are not changed.
	Node(name string) (*weft.Node, []*weft.Instance, uint64)
}

// Config of a Mirror. Node, Dialect and Source must be given.
type Config struct {
	Node    string // on which the instances are; only this mirror has the dialect there
	Address string // of the node, which is registered when it is not there; "": it is somebody else's
	Dialect string // "file", "etcd", "zookeeper"
	Source  string // as people call it: "etcd at 10.0.0.1:2379/services"
	// Writes says whether this process is the one that writes, when several follow
	// one source: each would undo what another one, a moment ahead, has done. nil is
	// always. Who does not write follows, and is asked at each Apply.
	Writes func() bool
	Logger *slog.Logger
}

// Claim is one instance as a source says it. Node and Dialect are filled in.
type Claim struct {
	weft.Instance
	Origin string // where it is said: "web.yaml:3:5", "etcd key services/web/1"
}

// Status is how things are with a source.
type Status struct {
	Source    string    `json:"source"`
	Dialect   string    `json:"dialect"`
	Node      string    `json:"node"`
	Instances int       `json:"instances"`
	Synced    time.Time `json:"synced,omitzero"`   // when the catalogue last said what the source says
	Standby   bool      `json:"standby,omitempty"` // another server writes
	// Away is why the source cannot be read, and AwaySince when that began. The
	// catalogue keeps what it said last.
	Away      string    `json:"away,omitempty"`
	AwaySince time.Time `json:"awaySince,omitzero"`
	Problems  []string  `json:"problems,omitempty"` // with what it says, each with its place and mend
}

// Mirror is made by New. Away and Apply are for one goroutine, Status for any.
type Mirror struct {
	// constant
	catalogue Catalogue
	config    Config

	applied map[string]weft.Instance // what was written, by id; of Apply's goroutine

	mu     sync.Mutex
	status Status
}

// New returns a mirror that has written nothing yet.
func New(c Catalogue, config Config) *Mirror {
	if config.Logger == nil {
		config.Logger = slog.New(slog.DiscardHandler)
	}
	config.Logger = config.Logger.With("source", config.Source)
	return &Mirror{
		catalogue: c, config: config, applied: make(map[string]weft.Instance),
		status: Status{Source: config.Source, Dialect: config.Dialect, Node: config.Node},
	}
}

// Status tells how things are.
func (m *Mirror) Status() Status {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.status
	s.Problems = slices.Clone(s.Problems)
	return s
}

// Owned returns what the catalogue has of this source, sorted by id.
func (m *Mirror) Owned() []*weft.Instance {
	_, all, _ := m.catalogue.Node(m.config.Node)
	var own []*weft.Instance
	for _, in := range all {
		if in.Dialect == m.config.Dialect {
			own = append(own, in)
		}
	}
	return own
}

// Away notes that the source cannot be read. The next Apply ends that.
func (m *Mirror) Away(err error) {
	own := len(m.Owned())
	m.mu.Lock()
	known := m.status.Away
	m.status.Away, m.status.Instances = err.Error(), own
	if known == "" {
		m.status.AwaySince = time.Now()
	}
	m.mu.Unlock()
	if known == "" {
		m.config.Logger.Warn("a source of instances is away; what it said last stands", "instances", own, "error", err)
	}
}

// writers is how many writes are under way at a time: the registry puts what comes
// together into one transaction.
const writers = 64

// Apply makes the catalogue say what claims say. No two claims have one id.
// problems are what the source itself found wrong; what the registry refuses for
// good is added to them. The error is of what may work later: call Apply again.
func (m *Mirror) Apply(ctx context.Context, claims []Claim, problems []string) error {
	if m.config.Writes != nil && !m.config.Writes() {
		clear(m.applied)
		m.note(problems, false)
		return nil
	}
	node, there, _ := m.catalogue.Node(m.config.Node)
	if node == nil && m.config.Address != "" {
		if _, err := m.catalogue.RegisterNode(ctx, weft.Node{Name: m.config.Node, Address: m.config.Address}); err != nil {
			m.note(append(problems, unwritten(err)), false)
			return err
		}
	}
	have := make(map[string]*weft.Instance, len(there))
	for _, in := range there {
		have[in.ID] = in
	}
	wanted := make(map[string]bool, len(claims))
	var fresh []Claim
	for _, c := range claims {
		c.Node, c.Dialect = m.config.Node, m.config.Dialect
		wanted[c.ID] = true
		old := have[c.ID]
		switch {
		case old != nil && old.Dialect != m.config.Dialect:
			problems = append(problems, taken(c, old))
		case old == nil || !reflect.DeepEqual(m.applied[c.ID], c.Instance):
			fresh = append(fresh, c)
		}
	}
	refused, err := m.write(ctx, fresh)
	problems = append(problems, refused...)
	if err == nil {
		err = m.sweep(ctx, have, wanted)
	}
	if err != nil {
		problems = append(problems, unwritten(err))
	}
	m.note(problems, err == nil)
	return err
}

func unwritten(err error) string { return "the registry cannot be written now: " + err.Error() }

func taken(c Claim, by *weft.Instance) string {
	who := by.Dialect
	if who == "" {
		who = "another API"
	}
	return fmt.Sprintf("%s: instance %q: node %s has an instance of this id already, registered by %s; choose another id, or deregister that one",
		c.Origin, c.ID, c.Node, who)
}

// write registers claims, and returns what the registry refuses for good.
func (m *Mirror) write(ctx context.Context, claims []Claim) (refused []string, err error) {
	errs := make([]error, len(claims))
	each(len(claims), func(i int) { _, errs[i] = m.catalogue.Register(ctx, claims[i].Instance) })
	for i, e := range errs {
		c := &claims[i]
		switch weft.KindOf(e) {
		case weft.Invalid, weft.TooLarge, weft.Conflict, weft.Denied:
			delete(m.applied, c.ID)
			refused = append(refused, c.Origin+": "+e.Error())
			continue
		}
		if e != nil {
			delete(m.applied, c.ID)
			err = e
			continue
		}
		m.applied[c.ID] = c.Instance
	}
	return refused, err
}

// sweep takes out what is the source's and not wanted.
func (m *Mirror) sweep(ctx context.Context, have map[string]*weft.Instance, wanted map[string]bool) error {
	var gone []weft.InstanceKey
	for id, in := range have {
		if in.Dialect == m.config.Dialect && !wanted[id] {
			gone = append(gone, in.Key())
		}
	}
	errs := make([]error, len(gone))
	each(len(gone), func(i int) { _, errs[i] = m.catalogue.Deregister(ctx, gone[i]) })
	for i, err := range errs {
		if err != nil && weft.KindOf(err) != weft.NotFound {
			return err
		}
		delete(m.applied, gone[i].ID)
	}
	return nil
}

// each calls fn with 0 … n-1, some at a time.
func each(n int, fn func(int)) {
	var work sync.WaitGroup
	step := max(1, (n+writers-1)/writers)
	for from := 0; from < n; from += step {
		work.Go(func() {
			for i := from; i < min(from+step, n); i++ {
				fn(i)
			}
		})
	}
	work.Wait()
}

// note keeps what was found, and logs what was not known before.
func (m *Mirror) note(problems []string, synced bool) {
	own := len(m.Owned())
	m.mu.Lock()
	before := m.status
	m.status.Problems, m.status.Instances = problems, own
	m.status.Away, m.status.AwaySince = "", time.Time{}
	m.status.Standby = m.config.Writes != nil && !m.config.Writes()
	if synced {
		m.status.Synced = time.Now()
	}
	m.mu.Unlock()
	for _, p := range problems {
		if !slices.Contains(before.Problems, p) {
			m.config.Logger.Warn("a source of instances has a problem", "problem", p)
		}
	}
	switch {
	case before.Away != "":
		m.config.Logger.Info("a source of instances is back", "instances", own, "away", time.Since(before.AwaySince).Round(time.Millisecond).String())
	case len(before.Problems) > 0 && len(problems) == 0:
		m.config.Logger.Info("a source of instances has no problem any more", "instances", own)
	}
}
