package relay

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// Detector finds out who speaks first on a connection, and what. The zero value is
// ready.
type Detector struct {
	// Quiet is how long a client may be silent before the server is dialled.
	// Default 5 ms; negative is at once.
	//
	// A client that speaks first has its bytes on the way together with the last
	// packet of TCP's handshake, whatever the distance: when it is accepted they are
	// there, or next to arrive. Dialling at once would open one connection too many
	// for each of these, which are nearly all. What Quiet costs is felt once by a
	// client of a server that speaks first: after that, Memory knows.
	Quiet time.Duration
	// Patience bounds all of it. Default 10 s. When it is over, a client that has
	// begun something is Raw, and a silent one Unknown.
	Patience time.Duration
}

// Verdict is what a Detector found out. Nothing that was read is lost: give the
// bytes to relay.Side.Already, or to the engine that goes on.
type Verdict struct {
	Kind       Kind
	FromClient []byte // read from the client; the beginning of Detect's buf
	// Server was dialled because the client was silent; nil when it was not. It is
	// the caller's: close it when Kind makes it useless.
	Server     net.Conn
	FromServer []byte
	// Sure says that the kind was heard, and not concluded from somebody's silence
	// or end. Only then is it worth remembering.
	Sure bool
}

// Detect waits for the first bytes of client and, when it stays silent, dials and
// waits for those of the server, too. Who speaks first decides; a server that has
// spoken before the client's first bytes were understood is ServerFirst.
//
// buf[:len(buf)] was read from client before; what is read comes behind it, up to
// its capacity, of which 4 KiB always suffice. With dial nil, only the client is
// waited for. dial must return soon after its context ends.
//
// A client that ends without a word is Raw, and a server that does ServerFirst: a
// relay passes the end on, which can be read again. Detect fails when client or
// server fails, when dialling does (a client that waits for the server's word would
// wait for ever), and when ctx ends; then Server is closed, and the caller closes
// client. Otherwise neither has a deadline any more.
func (d Detector) Detect(ctx context.Context, client net.Conn, buf []byte, dial func(context.Context) (net.Conn, error)) (Verdict, error) {
	quiet, patience := d.Quiet, d.Patience
	if quiet == 0 {
		quiet = 5 * time.Millisecond
	}
	if patience <= 0 {
		patience = 10 * time.Second
	}
	now := time.Now()
	end := now.Add(patience)
	x := detection{client: client, buf: buf[:cap(buf)], have: len(buf)}
	defer context.AfterFunc(ctx, x.cut)()

	if dial == nil || quiet >= patience {
		x.listen(end)
		return x.verdict(ctx)
	}
	if quiet > 0 || x.have > 0 {
		x.listen(now.Add(max(quiet, 0)))
	}
	switch {
	case x.decided || x.err != nil || ctx.Err() != nil:
	case x.have > 0: // it speaks, slowly
		x.listen(end)
	default:
		x.race(ctx, end, dial)
	}
	return x.verdict(ctx)
}

// detection is one run of Detect.
type detection struct {
	client net.Conn

	// of the caller's goroutine
	buf     []byte
	have    int
	kind    Kind // of the client
	decided bool
	heard   bool  // decided by what it said
	err     error // of the client

	// of the server's goroutine, until it ends
	spoke      bool // the server spoke, or ended
	fromServer []byte
	serverErr  error

	mu     sync.Mutex
	server net.Conn
	over   bool // nobody waits any more
	wasCut bool // and if somebody does, not for longer
}

// cut ends the present wait for the client and all later ones.
func (x *detection) cut() {
	x.mu.Lock()
	defer x.mu.Unlock()
	if !x.over {
		x.wasCut = true
		_ = x.client.SetReadDeadline(past)
	}
}

// wait sets the client's deadline.
func (x *detection) wait(until time.Time) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if !x.wasCut {
		_ = x.client.SetReadDeadline(until)
	}
}

// listen reads from the client until it is decided what it speaks, it fails, or
// time is over.
func (x *detection) listen(until time.Time) {
	x.wait(until)
	for {
		if kind, more := Sniff(x.buf[:x.have]); !more {
			x.kind, x.decided, x.heard = kind, true, true
			return
		}
		if x.have == len(x.buf) {
			x.kind, x.decided = Raw, true
			return
		}
		n, err := x.client.Read(x.buf[x.have:])
		x.have += n
		switch {
		case n > 0 || err == nil:
		case errors.Is(err, os.ErrDeadlineExceeded):
			return
		case err == io.EOF:
			x.kind, x.decided = Raw, true
			return
		default:
			x.err = err
			return
		}
	}
}

// race listens to both sides.
func (x *detection) race(ctx context.Context, end time.Time, dial func(context.Context) (net.Conn, error)) {
	x.wait(end)
	ctx, cancel := context.WithDeadline(ctx, end)
	defer cancel()
	done := make(chan struct{})
	go func() {
		defer close(done)
		x.serve(ctx, end, dial)
	}()
	x.listen(end)

	x.mu.Lock()
	x.over = true
	if x.server != nil {
		_ = x.server.SetReadDeadline(past)
	}
	x.mu.Unlock()
	if x.err != nil || x.decided && x.kind != Raw {
		cancel() // for Raw, a connection that is nearly there is wanted
	}
	<-done
	if x.server != nil {
		_ = x.server.SetReadDeadline(time.Time{})
	}
}

// serve dials, and waits for the server's first bytes.
func (x *detection) serve(ctx context.Context, end time.Time, dial func(context.Context) (net.Conn, error)) {
	server, err := dial(ctx)
	if err != nil {
		x.serverErr = err
		x.cut()
		return
	}
	x.mu.Lock()
	x.server = server
	if x.over {
		x.mu.Unlock()
		return
	}
	_ = server.SetReadDeadline(end)
	x.mu.Unlock()
	buf := make([]byte, smallSize)
	n, err := server.Read(buf)
	switch {
	case n > 0 || err == io.EOF:
		x.spoke, x.fromServer = true, buf[:n]
	case errors.Is(err, os.ErrDeadlineExceeded):
		return
	default:
		x.serverErr = err
	}
	x.cut()
}

// verdict weighs what was heard, when all goroutines have ended.
func (x *detection) verdict(ctx context.Context) (Verdict, error) {
	x.mu.Lock()
	x.over = true
	_ = x.client.SetReadDeadline(time.Time{})
	x.mu.Unlock()
	v := Verdict{FromClient: x.buf[:x.have], Server: x.server, FromServer: x.fromServer}
	err := x.err
	switch {
	case err != nil:
	case len(x.fromServer) > 0:
		v.Kind, v.Sure = ServerFirst, true
	case x.decided:
		v.Kind, v.Sure = x.kind, x.heard
		if x.serverErr != nil && v.Server != nil { // of no use
			_ = v.Server.Close()
			v.Server = nil
		}
	case ctx.Err() != nil:
		err = ctx.Err()
	case x.serverErr != nil:
		err = x.serverErr
	case x.spoke:
		v.Kind = ServerFirst
	case x.have > 0:
		v.Kind = Raw
	}
	if err != nil && v.Server != nil {
		_ = v.Server.Close()
		v.Server = nil
	}
	return v, err
}
