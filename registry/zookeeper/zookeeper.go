// Package zookeeper brings what is registered in a running ZooKeeper into the
// catalogue, and follows it: for services that register there, until they register
// here.
//
//	c, err := zookeeper.Parse("zk://10.0.0.1:2181,10.0.0.2:2181/services")
//	s, err := zookeeper.New(registry, c)
//	err = s.Run(ctx)
//
// Everything under the path is read, whichever of these forms it has:
//
//	order-service/6fb2…             Curator's x-discovery, as Spring and Dubbo 3 use it
//	com.acme.Orders/providers/…     Dubbo's URLs, in the names of nodes
//	order-service/member_0000000001 a serverset, as Aurora and Finagle write it
//	order-service/i-0042            nerve's {"host": …, "port": …}
//
// The service is Curator's name, Dubbo's interface, else the folder under the path,
// further slashes written as "-". What an application put beside its address are
// labels, as far as it is texts, numbers or truth values; "zone" is the zone.
//
// The instances have Dialect "zookeeper" and are on a node of their own, which stands
// for the ZooKeeper. One lives as long as its node there: the session that the service
// keeps ends it here. While ZooKeeper is away, or the path is not there, what it said
// last stands, and Status says since when; when it is back the difference is written.
// Data that cannot be read leave what their node said.
//
// Of several servers that follow one ZooKeeper the one that writes the registry
// writes.
package zookeeper

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/go-zookeeper/zk"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/registry"
	"github.com/weftmesh/weft/registry/mirror"
)

// Dialect of the instances that come from ZooKeeper.
const Dialect = "zookeeper"

const (
	// sessionTimeout is asked for. A server that is silent for two thirds of it is
	// given up.
	sessionTimeout = 9 * time.Second
	// lookEvery is how soon it is noticed what somebody else took out of the
	// registry, and that this server has to write now.
	lookEvery  = 2 * time.Second
	firstRetry = 500 * time.Millisecond
	lastRetry  = 10 * time.Second
	maxAnswer  = 16 << 20 // bytes of one answer
)

// Config of a Source. Servers must be given.
type Config struct {
	Servers        []string // host:port, of one ensemble
	Path           string   // "/services"; "/" when empty
	User, Password string   // of the digest scheme; none when empty
	Node           string   // name of the node in the catalogue; "zookeeper" when empty; each import has its own
	Logger         *slog.Logger
}

// Parse reads a Config from an address: zk, any number of host:port, the path. Options
// are node, and password-file.
func Parse(address string) (Config, error) {
	a, err := mirror.ParseAddress(address, map[string]string{"zk": "2181", "zookeeper": "2181"}, "node", "password-file")
	if err != nil {
		return Config{}, err
	}
	c := Config{Servers: a.Hosts, Path: a.Path, User: a.User, Password: a.Password, Node: a.Options.Get("node")}
	if file := a.Options.Get("password-file"); file != "" {
		b, err := os.ReadFile(file)
		if err != nil {
			return Config{}, &weft.Error{Kind: weft.Invalid, Op: "read", Thing: "password of " + a.String(), Err: err}
		}
		c.Password = strings.TrimSpace(string(b))
	}
	return c, nil
}

// Source follows one ZooKeeper.
type Source struct {
	// constant
	config Config // Path has a slash before it and none at its end
	mirror *mirror.Mirror

	entries *mirror.Entries // of Run's goroutine
}

// New makes a Source, which has not called anybody yet.
func New(r *registry.Registry, c Config) (*Source, error) {
	if len(c.Servers) == 0 {
		return nil, weft.Errorf(weft.Invalid, "follow", "zookeeper", "no server is given")
	}
	address, _, err := net.SplitHostPort(c.Servers[0])
	if err != nil {
		return nil, &weft.Error{Kind: weft.Invalid, Op: "follow", Thing: "zookeeper " + c.Servers[0], Err: err}
	}
	c.Path = "/" + strings.Trim(c.Path, "/")
	s := &Source{config: c}
	s.mirror = mirror.New(r, mirror.Config{
		Node: cmp.Or(c.Node, Dialect), Address: address, Dialect: Dialect,
		Source: "ZooKeeper at " + strings.Join(c.Servers, ",") + c.Path, Writes: r.Writes, Logger: c.Logger,
	})
	s.entries = mirror.NewEntries(s.mirror)
	return s, nil
}

// Status tells what was imported, and whether ZooKeeper is there.
func (s *Source) Status() mirror.Status { return s.mirror.Status() }

// Run follows ZooKeeper until ctx ends. What was imported stays then.
func (s *Source) Run(ctx context.Context) error {
	ctx = registry.WithActor(ctx, "import from "+s.Status().Source)
	wait := firstRetry
	for ctx.Err() == nil {
		began := time.Now()
		err := s.session(ctx)
		if ctx.Err() != nil {
			break
		}
		s.mirror.Away(err)
		if time.Since(began) > lastRetry {
			wait = firstRetry
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
		wait = min(2*wait, lastRetry)
	}
	return nil
}

// inbox takes what the library tells, in its own goroutine, until we come to it.
type inbox struct {
	kick chan struct{} // holds one

	mu     sync.Mutex
	events []zk.Event
	dialed error    // of the last attempt
	conn   net.Conn // of the last attempt
}

func (b *inbox) put(e zk.Event) {
	b.mu.Lock()
	b.events = append(b.events, e)
	b.mu.Unlock()
	select {
	case b.kick <- struct{}{}:
	default:
	}
}

func (b *inbox) take() []zk.Event {
	b.mu.Lock()
	defer b.mu.Unlock()
	events := b.events
	b.events = nil
	return events
}

func (b *inbox) dial(network, address string, timeout time.Duration) (net.Conn, error) {
	conn, err := net.DialTimeout(network, address, timeout)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.dialed, b.conn = err, conn
	return conn, err
}

// hangUp ends the connection under the library.
func (b *inbox) hangUp() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.conn != nil {
		_ = b.conn.Close()
	}
}

func (b *inbox) why() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.dialed
}

// silent keeps the library from writing to stderr.
type silent struct{}

func (silent) Printf(string, ...any) {}

// session reads everything, and follows until that fails. It is a session of its own
// each time: the library keeps watches over a lost connection, but does not tell what
// they missed.
func (s *Source) session(ctx context.Context) error {
	box := &inbox{kick: make(chan struct{}, 1)}
	conn, events, err := zk.Connect(s.config.Servers, sessionTimeout, zk.WithLogger(silent{}), zk.WithLogInfo(false),
		zk.WithEventCallback(box.put), zk.WithDialer(box.dial), zk.WithMaxBufferSize(maxAnswer))
	if err != nil {
		return err
	}
	defer func() {
		conn.Close()
		box.hangUp()
		for range events { // it is closed when the library's goroutines have ended
		}
	}()
	defer context.AfterFunc(ctx, box.hangUp)() // ends a question that waits for its answer
	if err := s.greet(ctx, conn, box); err != nil {
		return err
	}
	t := newTree(conn, s.config.Path, s.entries)
	if err := t.read(); err != nil {
		return err
	}
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		claims, problems := s.entries.Claims()
		_ = s.mirror.Apply(ctx, claims, problems) // what fails is tried again, and is in Status
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		case <-box.kick:
			for _, e := range box.take() {
				if lost(e) {
					return fmt.Errorf("the connection to %s was lost", conn.Server())
				}
				if err := t.changed(e); err != nil {
					return err
				}
			}
		}
	}
}

// greet waits for the session to begin.
func (s *Source) greet(ctx context.Context, conn *zk.Conn, box *inbox) error {
	if s.config.User != "" {
		if err := conn.AddAuth("digest", []byte(s.config.User+":"+s.config.Password)); err != nil {
			return err
		}
	}
	patience := time.NewTimer(sessionTimeout / 2)
	defer patience.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-patience.C:
			if err := box.why(); err != nil {
				return err
			}
			return errors.New("no server began a session")
		case <-box.kick:
			for _, e := range box.take() {
				if e.State == zk.StateHasSession {
					return nil
				}
			}
		}
	}
}

// lost says whether an event ends the session, as far as we rely on it.
func lost(e zk.Event) bool {
	return e.Type == zk.EventSession && e.State != zk.StateHasSession && e.State != zk.StateConnected && e.State != zk.StateSaslAuthenticated
}
