package node

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/weftmesh/weft/node/express"
	"github.com/weftmesh/weft/wire/http1"
)

// How an HTTP server ends.
const (
	partingTime   = 100 * time.Millisecond // answers tell clients that the connection ends
	quickRequests = 50 * time.Millisecond  // then for requests, before those that block have to answer
	lastRequests  = 2 * time.Second        // then for all
)

// serveHTTP runs an HTTP server until ctx ends. It then finishes what it has begun:
// a short request takes its time, one that blocks (a watch) answers what it has.
//
// http.Server's own Shutdown would not do: what it reads after its beginning it
// drops, and connections that are kept it closes while a request may be on its way.
func serveHTTP(ln net.Listener, h http.Handler, logger *slog.Logger) func(context.Context) error {
	return func(ctx context.Context) error {
		requests, endRequests := context.WithCancel(context.WithoutCancel(ctx))
		defer endRequests()
		b := busy{conns: map[net.Conn]struct{}{}, changed: make(chan struct{}, 1)}
		s := &http.Server{
			Handler:           &parting{h: h, over: ctx},
			ReadHeaderTimeout: 10 * time.Second,
			IdleTimeout:       2 * time.Minute,
			MaxHeaderBytes:    64 << 10,
			BaseContext:       func(net.Listener) context.Context { return requests },
			ConnState:         b.note,
			ErrorLog:          slog.NewLogLogger(logger.Handler(), slog.LevelDebug),
		}
		ended := make(chan error, 1)
		go func() { ended <- s.Serve(ln) }()
		select {
		case err := <-ended:
			return err
		case <-ctx.Done():
		}
		b.wait(partingTime, false)
		_ = ln.Close()
		if err := <-ended; !errors.Is(err, net.ErrClosed) {
			logger.Debug("accepting ended", "error", err)
		}
		b.wait(quickRequests, true)
		endRequests()
		b.wait(lastRequests, true)
		_ = s.Close()
		return nil
	}
}

// serveReady is serveHTTP for a handler whose answers partly lie ready.
func serveReady(ln net.Listener, h http.Handler, ready express.Answer, logger *slog.Logger) func(context.Context) error {
	return func(ctx context.Context) error {
		front := express.Listen(ln, func(dst []byte, r *http1.Request) ([]byte, bool) {
			if ctx.Err() != nil { // parting tells the client to go
				return dst, false
			}
			return ready(dst, r)
		})
		defer front.Close()
		return serveHTTP(front, h, logger)(ctx)
	}
}

// parting tells clients to go when over has ended.
type parting struct {
	h    http.Handler
	over context.Context
}

func (p *parting) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if p.over.Err() != nil {
		w.Header().Set("Connection", "close")
	}
	p.h.ServeHTTP(w, r)
}

// busy knows which connections of a server have a request, or have just come.
type busy struct {
	changed chan struct{} // holds one: a connection is done

	mu    sync.Mutex
	conns map[net.Conn]struct{} // New and Active ones
}

func (b *busy) note(c net.Conn, state http.ConnState) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if state == http.StateNew || state == http.StateActive {
		b.conns[c] = struct{}{}
		return
	}
	delete(b.conns, c)
	select {
	case b.changed <- struct{}{}:
	default:
	}
}

func (b *busy) count() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.conns)
}

// wait for a time, with early only until no connection is busy.
func (b *busy) wait(d time.Duration, early bool) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	for !early || b.count() > 0 {
		select {
		case <-timer.C:
			return
		case <-b.changed:
		}
	}
}
