// Package mux carries HTTP/2 connections over sockets (RFC 9113). Streams are
// blocking readers and writers, so that whoever forwards a request writes plain
// sequential code; wire/http2 is the protocol, this package is everything around
// it: the socket, who waits for what, buffers, time.
//
// # A server
//
//	c := mux.NewServer(sock, mux.Config{Serve: serve})
//	err := c.Run(nil) // returns when the connection and all its streams are over
//
//	func serve(s *mux.Stream) {
//		r := s.Request()            // valid until serve returns
//		for { b, err := s.Next() … } // the body, when it is wanted
//		s.SendResponse(200, lines, body, true)
//	}
//
// A stream whose serve returns early is reset: with NO_ERROR when the response is
// complete, with INTERNAL_ERROR when it is not.
//
// # A client
//
//	c := mux.NewClient(sock, mux.Config{})
//	s, err := c.Open()
//	err = s.SendRequest(&head, lines, body, true)
//	err = s.AwaitHead() // again while Response().Status is 1xx
//	for { b, err := s.Next() … }
//	s.Close()
//
// The owner of a connection calls Expire about ten times a second. Nothing else
// looks at the clock, but for SetDeadline, which is exact.
//
// # How bytes move
//
// A connection has one goroutine that reads. What one read brings is processed
// under one lock, then the streams that waited for it are woken. Nobody writes to
// the socket under the lock: frames are queued, and a goroutine that exists only
// while there is something to write takes all that is queued at once. It lets
// everybody else run first, so that the answers to a batch of requests leave in
// one write.
//
// Received bytes wait in the stream, at most its window of them, in buffers that
// all connections share; a stream that is read slowly stops itself and nobody
// else. Bytes to send do not wait anywhere: Write returns when they are in the
// connection's queue, which takes 256 KiB from the waiting streams in turns.
package mux

import (
	"errors"
	"fmt"
	"time"

	"github.com/weftmesh/weft/wire/http2"
)

// Config is how a connection behaves. All functions may be called by several
// goroutines at once.
type Config struct {
	Protocol http2.Config

	// Serve answers a request, in a goroutine of its own. The stream is reused when
	// it returns. Servers need it, clients do not.
	Serve func(*Stream)
	// Go runs its first argument on the second in a goroutine (Workers.Go); nil: a
	// new one each time.
	Go func(func(*Stream), *Stream)
	// Refused is told the reason whenever the connection or a stream is ended
	// because of what the peer does. It must not call the connection. May be nil.
	Refused func(reason string)

	// Idle is how long a connection without streams stays open; 0: 75 s.
	Idle time.Duration
	// Stall is how long a stream may neither receive nor send a byte, and how long
	// the peer may take no bytes from the socket; 0: 5 min.
	Stall time.Duration
	// Grace, for servers whose clients nobody knows: a response may wait for the
	// client's window for so long, and is given a second back for every minRate bytes
	// that are sent; so is a body after Stream.BoundBody. A byte now and then does not
	// hold a stream for ever. 0: no such limit.
	Grace time.Duration
	// Hurry reports that memory is short: a peer that takes no bytes, or opens no
	// window for those that wait, then has hurriedStall, and no window grows. May
	// be nil.
	Hurry func() bool
}

const (
	defaultIdle  = 75 * time.Second
	defaultStall = 5 * time.Minute
	hurriedStall = 5 * time.Second
	minRate      = 500 // bytes a second
)

var (
	// ErrBusy: the peer allows no more streams at the moment.
	ErrBusy = errors.New("mux: the peer's limit of streams is reached")
	// ErrGone: the connection has ended or is about to.
	ErrGone = errors.New("mux: the connection is gone")
	// ErrInterrupted: Stream.Interrupt was called.
	ErrInterrupted = errors.New("mux: interrupted")
)

// ResetError says that one of the two sides gave a stream up.
type ResetError struct {
	Code   http2.Code
	Remote bool // the peer did
}

func (e *ResetError) Error() string {
	side := "here"
	if e.Remote {
		side = "by the peer"
	}
	return fmt.Sprintf("mux: stream reset %s: %v", side, e.Code)
}

// Interrupter is what Stream.Watch interrupts.
type Interrupter interface{ Interrupt() }
