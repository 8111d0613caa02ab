package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"regexp"
	"time"
)

// idleConnections is how many are open at once in the lane of idle ones.
const idleConnections = 10_000

// settle is how long a proxy has after a burst to give back what it does not need
// any more.
const settle = 3 * time.Second

// idle measures what a connection costs that has been served and is kept.
func (l lane) idle(ctx context.Context, r *rig, peers []peer, _ options) ([]row, error) {
	systems, err := l.start(ctx, r, peers)
	if err != nil {
		return nil, err
	}
	var rows []row
	for i, p := range peers {
		one, err := r.idleTurn(ctx, systems[i])
		if err != nil {
			return nil, fmt.Errorf("%s: %w", p.name, err)
		}
		one.peer = p.name
		note("%s/%s: %d bytes a connection", l.name, p.name, one.each)
		rows = append(rows, one)
	}
	return rows, nil
}

var allIdle = regexp.MustCompile(`(?m)^(\d+) idle$`)

// idleTurn loads the proxy first, so that its pools and its heap are there, and
// counts what is added then.
func (r *rig) idleTurn(ctx context.Context, s *system) (row, error) {
	if _, err := r.load(ctx, s.address, warmUp); err != nil {
		return row{}, err
	}
	before, err := r.settled(ctx, s)
	if err != nil {
		return row{}, err
	}
	self, err := os.Executable()
	if err != nil {
		return row{}, err
	}
	clients, err := r.start(r.cores.load, "idle", self, "idle", fmt.Sprintf("-c%d", idleConnections), s.address)
	if err != nil {
		return row{}, err
	}
	defer clients.stop()
	if _, err := clients.printed(ctx, allIdle); err != nil {
		return row{}, err
	}
	after, err := r.settled(ctx, s)
	if err != nil {
		return row{}, err
	}
	if err := answers(ctx, s.address); err != nil {
		return row{}, fmt.Errorf("beside %d idle connections: %w", idleConnections, err)
	}
	return row{rss: after.rss, anon: after.anon, each: (after.anon - before.anon) / idleConnections}, nil
}

// settled is the usage after a pause.
func (r *rig) settled(ctx context.Context, s *system) (usage, error) {
	select {
	case <-ctx.Done():
		return usage{}, context.Cause(ctx)
	case <-time.After(settle):
	}
	return usageOf(s.proxies)
}

// holdIdle opens connections, asks once on each, says so, and holds them until ctx
// ends.
func holdIdle(ctx context.Context, out io.Writer, address string, clients int) (err error) {
	var open []net.Conn
	defer func() {
		for _, c := range open {
			err = errors.Join(err, c.Close())
		}
	}()
	request := fmt.Appendf(nil, "GET %s HTTP/1.1\r\nHost: %s\r\n\r\n", path, address)
	in := bufio.NewReader(nil)
	for range clients {
		c, err := net.DialTimeout("tcp", address, startTimeout)
		if err != nil {
			return err
		}
		open = append(open, c)
		if err := c.SetDeadline(time.Now().Add(startTimeout)); err != nil {
			return err
		}
		if _, err := c.Write(request); err != nil {
			return err
		}
		in.Reset(c)
		if err := readAnswer(in); err != nil {
			return err
		}
	}
	if _, err := fmt.Fprintf(out, "%d idle\n", len(open)); err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}
