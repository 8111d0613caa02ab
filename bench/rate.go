package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// loadAt asks at a constant rate.
func (r *rig) loadAt(ctx context.Context, rate float64, address string, seconds int) (load, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Duration(seconds)*time.Second+startTimeout)
	defer cancel()
	self, err := os.Executable()
	if err != nil {
		return load{}, err
	}
	text, err := r.output(ctx, r.cores.load, "rate", self, "rate", fmt.Sprintf("-c%d", connections), fmt.Sprintf("-d%d", seconds),
		fmt.Sprintf("-r%.0f", rate), "http://"+address+path)
	if err != nil {
		return load{}, err
	}
	return parseWrk(text)
}

// openLoop asks at a constant rate, come what may: each request has a time at which
// it is due, and its latency counts from then. One that finds all connections
// waiting for answers is late already when it is sent, and that counts, as it does
// for a user (closed loops leave it out: "coordinated omission").
//
// It is one thread with epoll: Go's own timers are in milliseconds while a process
// sleeps, which is as long as what is to be measured.
type openLoop struct {
	request  []byte
	rate     float64 // a second
	poll     int     // epoll
	timer    int     // timerfd: when the next request is due
	conns    []*rateConn
	idle     []*rateConn
	began    time.Time
	sent     int64 // requests
	answered int64
	failed   int64
	broken   int // connections
	seen     *latencies
}

// rateConn is one connection with at most one request on its way.
type rateConn struct {
	fd           int
	due          time.Duration // of the request, from the begin
	in           []byte        // the answer so far
	got          int           // bytes of it
	asks, broken bool
}

// generateAt loads target and prints what wrk would print of it.
func generateAt(ctx context.Context, out io.Writer, target string, clients int, rate float64, duration time.Duration) (err error) {
	u, err := url.Parse(target)
	if err != nil {
		return err
	}
	l := &openLoop{request: fmt.Appendf(nil, "GET %s HTTP/1.1\r\nHost: %s\r\n\r\n", u.RequestURI(), u.Host), rate: rate, seen: &latencies{}}
	defer func() { err = errors.Join(err, l.close()) }()
	if err := l.open(u.Host, clients); err != nil {
		return err
	}
	if err := l.run(ctx, duration); err != nil {
		return err
	}
	took := time.Since(l.began)
	fmt.Fprintf(out, "  50%% %s\n  99%% %s\n", inMillis(l.seen.share(0.50, l.answered)), inMillis(l.seen.share(0.99, l.answered)))
	fmt.Fprintf(out, "  %d requests in %.2fs\n", l.answered, took.Seconds())
	if l.failed > 0 {
		fmt.Fprintf(out, "  Socket errors: %d\n", l.failed)
	}
	_, err = fmt.Fprintf(out, "Requests/sec: %.2f\n", float64(l.answered)/took.Seconds())
	return err
}

// open connects all clients.
func (l *openLoop) open(address string, clients int) (err error) {
	host, text, err := net.SplitHostPort(address)
	if err != nil {
		return err
	}
	port, err := strconv.Atoi(text)
	if err != nil {
		return err
	}
	to := &unix.SockaddrInet4{Port: port}
	copy(to.Addr[:], net.ParseIP(host).To4())
	if l.poll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return err
	}
	if l.timer, err = unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC); err != nil {
		return err
	}
	if err := l.watch(l.timer, -1); err != nil {
		return err
	}
	for i := range clients {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		c := &rateConn{fd: fd, in: make([]byte, 4096)}
		l.conns = append(l.conns, c)
		l.idle = append(l.idle, c)
		err = errors.Join(unix.Connect(fd, to), unix.SetNonblock(fd, true), unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1), l.watch(fd, int32(i)))
		if err != nil {
			return err
		}
	}
	return nil
}

func (l *openLoop) watch(fd int, index int32) error {
	return unix.EpollCtl(l.poll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: index})
}

func (l *openLoop) close() (err error) {
	for _, c := range l.conns {
		err = errors.Join(err, unix.Close(c.fd))
	}
	return errors.Join(err, unix.Close(l.poll), unix.Close(l.timer))
}

// due is when request number n is to be sent.
func (l *openLoop) due(n int64) time.Duration {
	return time.Duration(float64(n) / l.rate * float64(time.Second))
}

// lateAnswers is how long answers are awaited after the last request.
const lateAnswers = 5 * time.Second

// run sends for a duration, and then awaits what is on its way.
func (l *openLoop) run(ctx context.Context, duration time.Duration) error {
	total := int64(duration.Seconds() * l.rate)
	l.began = time.Now()
	events := make([]unix.EpollEvent, len(l.conns)+1)
	for l.answered+l.failed < total {
		now := time.Since(l.began)
		if err := ctx.Err(); err != nil {
			return err
		}
		if now > duration+lateAnswers || l.broken == len(l.conns) {
			l.failed += total - l.answered - l.failed
			return nil
		}
		if err := l.send(now, total); err != nil {
			return err
		}
		n, err := unix.EpollWait(l.poll, events, 1000)
		if err != nil && err != unix.EINTR {
			return err
		}
		for _, e := range events[:max(n, 0)] {
			if e.Fd >= 0 {
				l.receive(l.conns[e.Fd])
			}
		}
	}
	return nil
}

// send sends what is due on the connections that are idle, and sets the timer for
// what comes next.
func (l *openLoop) send(now time.Duration, total int64) error {
	for l.sent < total && len(l.idle) > 0 && l.due(l.sent) <= now {
		c := l.idle[len(l.idle)-1]
		l.idle = l.idle[:len(l.idle)-1]
		if c.broken {
			continue
		}
		c.due, c.got, c.asks = l.due(l.sent), 0, true
		l.sent++
		// A request fits into an empty socket.
		if _, err := unix.Write(c.fd, l.request); err != nil {
			l.drop(c)
		}
	}
	var next unix.ItimerSpec // zero: no timer, an answer comes first
	if l.sent < total && len(l.idle) > 0 {
		next.Value = unix.NsecToTimespec(int64(max(l.due(l.sent)-time.Since(l.began), 1)))
	}
	return unix.TimerfdSettime(l.timer, 0, &next, nil)
}

// drop gives up a connection that failed or answered wrongly, and its request.
func (l *openLoop) drop(c *rateConn) {
	// It stays open until the end, or its number could be another's.
	_ = unix.EpollCtl(l.poll, unix.EPOLL_CTL_DEL, c.fd, nil)
	c.broken = true
	l.broken++
	if c.asks {
		l.failed++
	}
}

// receive reads what came.
func (l *openLoop) receive(c *rateConn) {
	n, err := unix.Read(c.fd, c.in[c.got:])
	if err == unix.EAGAIN || err == unix.EINTR {
		return
	}
	if n <= 0 || !c.asks {
		l.drop(c)
		return
	}
	c.got += n
	switch whole, right := answer(c.in[:c.got]); {
	case !whole && c.got < len(c.in):
	case !right:
		l.drop(c)
	default:
		c.asks = false
		late := time.Since(l.began) - c.due
		l.seen[min(int(late.Microseconds()), len(l.seen)-1)].Add(1)
		l.answered++
		l.idle = append(l.idle, c)
	}
}

// answer looks whether b is the backend's answer, whole and right.
func answer(b []byte) (whole, right bool) {
	head, rest, found := bytes.Cut(b, []byte("\r\n\r\n"))
	if !found || len(rest) < len(body) {
		return false, false
	}
	return true, bytes.HasPrefix(head, []byte("HTTP/1.1 200")) && string(rest) == body
}
