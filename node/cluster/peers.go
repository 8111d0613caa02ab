package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/control/weftpb"
	"github.com/weftmesh/weft/store"
)

// reconnect: a server that comes back is to be found soon, and there are few who
// ask for it.
var reconnect = grpc.ConnectParams{
	Backoff:           backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second},
	MinConnectTimeout: 2 * time.Second,
}

const (
	// bookDir holds the addresses of each server, as JSON, by its id.
	bookDir = "servers/"
	// forwardTimeout bounds a forwarded write: a commit, and an election in between.
	forwardTimeout = 5 * time.Second
	again          = 500 * time.Millisecond
	// maxForwarded bounds an answer: a transaction may read much. It is JSON of what
	// the store takes in one transaction (8 MB), with room for base64.
	maxForwarded = 32 << 20
)

// alive finds out that a server cannot be reached any more, though no connection
// broke: within the timeout when something was sent, else 10 s later.
var alive = keepalive.ClientParameters{Time: 10 * time.Second, Timeout: 2 * time.Second, PermitWithoutStream: true}

// Run keeps the cluster's addresses until ctx ends: it tells the others this
// server's.
func (c *Cluster) Run(ctx context.Context) error {
	c.announce(ctx)
	<-ctx.Done()
	return nil
}

// Follow reads the addresses of the servers, and keeps them until ctx ends. It
// returns when they are known, and a function that waits for its end.
func (c *Cluster) Follow(ctx context.Context) (wait func(), err error) {
	kvs, rev, err := c.store.List(ctx, bookDir)
	if err != nil {
		return nil, err
	}
	for _, kv := range kvs {
		c.note(store.Event{KV: kv})
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for b := range c.store.Watch(ctx, bookDir, rev) {
			for _, e := range b.Events {
				c.note(e)
			}
		}
	}()
	return func() { <-done }, nil
}

func (c *Cluster) note(e store.Event) {
	id, err := strconv.ParseUint(strings.TrimPrefix(e.Key, bookDir), 16, 64)
	if err != nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if e.Deleted {
		delete(c.book, id)
		return
	}
	var s Server
	if err := json.Unmarshal(e.Value, &s); err != nil {
		c.log.Error("cluster: the addresses of a server cannot be read", "key", e.Key, "error", err)
		return
	}
	c.book[id] = s
}

// announce writes this server's addresses, and tries until it has.
func (c *Cluster) announce(ctx context.Context) {
	own := Server{ID: c.store.ID(), Name: c.config.Name, Peer: c.config.Peer, Addresses: c.config.Addresses}
	b, err := json.Marshal(own)
	if err != nil {
		c.log.Error("cluster: own addresses", "error", err)
		return
	}
	kv := store.KV{Key: bookDir + strconv.FormatUint(own.ID, 16), Value: b}
	c.insist(ctx, "tell the others of this server", func(ctx context.Context) error {
		_, err := c.store.Commit(ctx, store.Txn{Put: []store.KV{kv}})
		return err
	})
}

// insist tries until do succeeds or ctx ends, and says once that it has to.
func (c *Cluster) insist(ctx context.Context, what string, do func(context.Context) error) {
	for first := true; ; first = false {
		one, cancel := context.WithTimeout(ctx, forwardTimeout)
		err := do(one)
		cancel()
		if err == nil || ctx.Err() != nil {
			return
		}
		if first {
			c.log.Info("cluster: waiting to "+what, "reason", err)
		}
		timer := time.NewTimer(again)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return
		}
	}
}

// Forward implements registry.Peers.
func (c *Cluster) Forward(ctx context.Context, command []byte) (answer []byte, sent bool, err error) {
	moved := c.store.LeaderChanged()
	leader := c.store.Leader()
	if leader == 0 || leader == c.store.ID() {
		return nil, false, errors.New("no other server leads")
	}
	conn, err := c.connection(leader)
	if err != nil {
		return nil, false, err
	}
	ctx, cancel := context.WithTimeout(ctx, forwardTimeout)
	defer cancel()
	go func() { // a leader that hangs is waited for until there is another one
		select {
		case <-moved:
			cancel()
		case <-ctx.Done():
		}
	}()
	var served peer.Peer // known once there was a connection to send on
	r, err := weftpb.NewServersClient(conn).Forward(ctx, &weftpb.ForwardRequest{Token: c.raw, Command: command},
		grpc.Peer(&served), grpc.MaxCallRecvMsgSize(maxForwarded))
	if err != nil {
		return nil, served.Addr != nil && !refused(err), rpcFailure("forward", "write", err)
	}
	return r.GetAnswer(), true, nil
}

// refused reports whether the other server said that it did nothing. What a broken
// connection is reported as tells nothing: it may have broken before or after.
func refused(err error) bool {
	c := status.Code(err)
	return c == codes.Unimplemented || c == codes.PermissionDenied
}

// connection returns the connection to a server, which is made once.
func (c *Cluster) connection(id uint64) (*grpc.ClientConn, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s, known := c.book[id]
	if !known {
		return nil, fmt.Errorf("the address of server %x is not known yet", id)
	}
	if conn := c.conns[s.Control]; conn != nil {
		return conn, nil
	}
	conn, err := dial(s.Control, *c.token.Load())
	if err == nil {
		c.conns[s.Control] = conn
	}
	return conn, err
}

// Servers are the members of the cluster, as this server knows them.
func (c *Cluster) Servers() []Server {
	c.mu.Lock()
	defer c.mu.Unlock()
	var list []Server
	for _, m := range c.store.Members() {
		s := c.book[m.ID]
		s.ID, s.Peer, s.Learner, s.Leader, s.Self = m.ID, m.Peer, m.Learner, m.Leader, m.ID == c.store.ID()
		if m.Name != "" {
			s.Name = m.Name
		}
		list = append(list, s)
	}
	return list
}

// forget removes the addresses of a server that was taken out. When that one led,
// the others elect meanwhile.
func (c *Cluster) forget(ctx context.Context, id uint64) (err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*forwardTimeout)
	defer cancel()
	c.insist(ctx, "forget a server that was taken out", func(ctx context.Context) error {
		_, err = c.store.Commit(ctx, store.Txn{Delete: []string{bookDir + strconv.FormatUint(id, 16)}})
		return err
	})
	return err
}

// warnOfEven: one server less would stand as many failures, with less to fail.
func (c *Cluster) warnOfEven() {
	if n := len(c.store.Members()); n > 0 && n%2 == 0 {
		c.log.Warn("cluster: an even number of servers; add one, or take one out: this many stand no more failures than one less", "servers", n)
	}
}

// Remove takes a server out of the cluster, by its name.
func (c *Cluster) Remove(ctx context.Context, name string) error {
	for _, s := range c.Servers() {
		if s.Name != name {
			continue
		}
		if err := c.store.RemoveMember(ctx, s.ID); err != nil {
			return err
		}
		c.warnOfEven()
		if s.ID == c.store.ID() {
			return nil // it cannot write any more
		}
		return c.forget(ctx, s.ID)
	}
	return weft.Errorf(weft.NotFound, "remove", "server "+name, `there is no such server; "weft members" lists them`)
}
