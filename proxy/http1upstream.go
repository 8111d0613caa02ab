package proxy

import (
	"bytes"
	"errors"
	"io"
	"os"
	"strconv"
	"syscall"
	"time"

	"github.com/weftmesh/weft/wire/http1"
)

// The methods of link that make it an exchange's upstream: HTTP/1 on a connection
// of its own.

// send writes the request's head, and its body when that was read whole.
func (u *link) send(x *Exchange, pl *plan) (unsent bool, err error) {
	u.x, u.over, u.out = x, false, nil
	u.chunks = http1.ChunkDecoder{}
	h := &x.head
	path, authority := x.decision.Onward(&x.request)
	out := append(append(x.takeOut()[:0], h.Method...), ' ')
	out = append(out, path...)
	if h.HasQuery {
		out = append(append(out, '?'), h.Query...)
	}
	out = append(out, " HTTP/1.1\r\n"...)
	out = x.appendHost(out, authority)
	out = x.appendRequest(out, pl)
	if x.upgrade {
		out = x.appendUpgrade(out)
	}
	switch {
	case h.Framing == http1.Chunked && x.whole: // an HTTP/2 client need not say how much comes
		out = http1.AppendFraming(out, http1.FixedLength, int64(len(x.body)))
	case h.Framing != http1.NoBody:
		out = http1.AppendFraming(out, h.Framing, h.Length)
	}
	out = append(out, "\r\n"...)
	fits := len(x.body) <= cap(out)-len(out)
	if fits {
		out = append(out, x.body...)
	}
	if fits && u.pass != nil && x.whole && !x.client.http2() && !x.hedged {
		return u.sendAndWait(x, out)
	}
	n, err := u.sock.Write(out)
	if err == nil && !fits {
		_, err = u.sock.Write(x.body)
	}
	return n == 0, err
}

// sendAndWait writes a whole request and reads the beginning of the answer in one
// go with the poller: after the write it waits without asking the socket first,
// which would nearly always say "nothing yet". Like conn.serveInPlace it relies on
// a nudge for the rare end of stream that came before the wait began.
func (u *link) sendAndWait(x *Exchange, request []byte) (unsent bool, err error) {
	u.request, u.wrote, u.passErr = request, -1, nil
	x.parked.Store(true)
	err = u.raw.Read(u.pass)
	u.request = nil
	if !x.parked.CompareAndSwap(true, false) && x.woken(u) {
		err = nil // a nudge, or one that came too late and is undone before others read
	}
	switch {
	case u.wrote < 0 && err == nil:
		err = u.passErr
	case err != nil && u.wrote == len(request):
		u.passErr, err = err, nil // of reading: await will tell
	}
	if err != nil || u.wrote == len(request) {
		return u.wrote <= 0, err
	}
	n := max(u.wrote, 0)
	m, err := u.sock.Write(request[n:]) // the socket's buffer was full
	return n+m == 0, err
}

// step is called by the runtime's poller: false means "wait until readable and
// call again".
func (u *link) step(fd uintptr) bool {
	for u.wrote < 0 {
		n, err := syscall.Write(int(fd), u.request)
		switch {
		case err == syscall.EINTR:
			continue
		case err == syscall.EAGAIN:
			u.wrote = 0
			return true
		case err != nil:
			u.passErr = os.NewSyscallError("write", err)
			return true
		}
		u.wrote = n
		return n < len(u.request)
	}
	if u.in == nil {
		u.in = takeBuffer()
	}
	for {
		n, err := syscall.Read(int(fd), u.in[u.w:])
		switch {
		case err == syscall.EINTR:
			continue
		case err == syscall.EAGAIN:
			return false
		case err != nil:
			u.passErr = os.NewSyscallError("read", err)
		case n == 0:
			u.passErr = io.EOF
		default:
			u.w += n
		}
		return true
	}
}

// write sends more of the request's body. The sender's goroutine has a buffer of
// its own for it: the exchange's may be in use for the response.
func (u *link) write(data []byte, last bool) (err error) {
	if u.x.head.Framing != http1.Chunked {
		_, err = u.sock.Write(data)
		return err
	}
	if u.spill == nil {
		u.spill = takeBuffer()
	}
	if u.out == nil {
		u.out = u.spill[:0]
	}
	if u.out, err = writeChunks(u.sock, u.out, data); err == nil && last {
		err = u.end(nil)
	}
	return err
}

func (u *link) flush() error {
	if len(u.out) == 0 {
		return nil
	}
	_, err := u.sock.Write(u.out)
	u.out = u.out[:0]
	return err
}

func (u *link) end(trailers []byte) error {
	if u.x.head.Framing == http1.Chunked {
		u.out = http1.AppendLastChunk(u.out, trailers)
	}
	return u.flush()
}

// await reads one response head.
func (u *link) await(x *Exchange) error {
	r := &x.response
	if u.in == nil {
		u.in = takeBuffer()
	}
	for {
		if u.r < u.w {
			n, err := r.Parse(u.in[u.r:u.w], x.head.Method, &limits)
			if err == nil {
				u.r += n
				u.left = r.Length
				return nil
			}
			if !errors.Is(err, http1.ErrIncomplete) {
				return &protocolError{whyMalformed(err)}
			}
			if u.r > 0 {
				u.w = copy(u.in[:], u.in[u.r:u.w])
				u.r = 0
			}
		}
		if err := u.fill(); err != nil {
			if u.w > u.r && errors.Is(err, io.EOF) {
				return io.ErrUnexpectedEOF
			}
			return err
		}
		x.conn.progress()
	}
}

// ready implements upstream.
func (u *link) ready(until time.Time) (ok bool, err error) {
	if u.r < u.w || u.passErr != nil {
		return true, u.passErr
	}
	if u.in == nil {
		u.in = takeBuffer()
	}
	ours := !until.IsZero() && (u.until.IsZero() || until.Before(u.until))
	if ours {
		_ = u.sock.SetReadDeadline(until)
	}
	err = u.fill()
	if ours {
		_ = u.sock.SetReadDeadline(u.until)
		if u.x.wasExpired() {
			u.interrupt() // again, if it was undone here
		} else if errors.Is(err, os.ErrDeadlineExceeded) {
			return false, nil
		}
	}
	u.passErr = err
	return true, err
}

// next gives more of the response's body.
func (u *link) next() (data []byte, last bool, err error) {
	framing := u.x.response.Framing
	if u.over || framing == http1.FixedLength && u.left == 0 {
		return nil, false, io.EOF
	}
	if u.r == u.w {
		u.r, u.w = 0, 0
		if err := u.fill(); err != nil {
			if err == io.EOF && framing == http1.UntilClose {
				u.over = true
				return nil, false, io.EOF
			}
			if err == io.EOF { // pump takes that for the end of the body
				err = io.ErrUnexpectedEOF
			}
			return nil, false, err
		}
		u.x.conn.progress()
	}
	switch framing {
	case http1.FixedLength:
		n := int(min(u.left, int64(u.w-u.r)))
		data = u.in[u.r : u.r+n]
		u.r += n
		u.left -= int64(n)
		return data, u.left == 0, nil
	case http1.UntilClose:
		data = u.in[u.r:u.w]
		u.r = u.w
		return data, false, nil
	}
	for u.r < u.w && !u.over {
		n, data, over, err := u.chunks.Next(u.in[u.r:u.w])
		u.r += n
		if err != nil {
			return nil, false, &protocolError{whyMalformed(err)}
		}
		u.over = over
		if len(data) > 0 {
			return data, false, nil
		}
	}
	if u.over {
		return nil, false, io.EOF
	}
	return nil, false, nil // only part of a chunk's framing: let the sink flush before we wait
}

func (u *link) more() bool { return u.r < u.w || u.over }

func (u *link) trailers() []byte { return u.chunks.Trailers() }

func (u *link) reused() bool { return u.served > 0 }

// interrupt implements upstream.
func (u *link) interrupt() { _ = u.sock.SetDeadline(time.Unix(1, 0)) }

// release puts the connection back into its pool, if it can serve another
// exchange.
func (u *link) release(x *Exchange, pl *plan, whole bool) {
	r := &x.response
	if u.spill != nil {
		u.spill.free()
		u.spill = nil
	}
	u.x, u.out = nil, nil
	u.served++
	most := pl.group.policy.MaxRequestsPerConn
	if !whole || !r.KeepAlive || r.Framing == http1.UntilClose || u.r != u.w || most != 0 && u.served >= most {
		u.close()
		return
	}
	u.setDeadline(time.Time{})
	u.endpoint.pool.put(u, time.Now().UnixNano(), upstreamPatience(pl, r))
}

// skip makes the connection reusable after a response that is not passed on, if
// its body is here already.
func (u *link) skip(x *Exchange) bool {
	r := &x.response
	if r.Framing == http1.FixedLength && r.Length == int64(u.w-u.r) {
		u.r = u.w
	}
	return u.r == u.w && (r.Framing == http1.NoBody || r.Framing == http1.FixedLength)
}

// upstreamPatience is how long the connection may idle: the policy's limit, ours,
// or a second less than the server announces (Keep-Alive: timeout=5), so that we
// close before it does.
func upstreamPatience(pl *plan, r *http1.Response) time.Duration {
	patience := idleUpstream
	if t := pl.group.policy.IdleTimeout; t > 0 {
		patience = min(patience, t)
	}
	i := r.Find(http1.FieldKeepAlive)
	if i < 0 {
		return patience
	}
	_, after, found := bytes.Cut(r.Value(i), []byte("timeout="))
	if !found {
		return patience
	}
	digits := 0
	for digits < len(after) && after[digits] >= '0' && after[digits] <= '9' {
		digits++
	}
	seconds, err := strconv.Atoi(string(after[:digits]))
	if err != nil || seconds > 3600 {
		return patience
	}
	return min(patience, max(time.Duration(seconds)*time.Second-time.Second, 0))
}
