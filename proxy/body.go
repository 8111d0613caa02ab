package proxy

import (
	"errors"
	"sync/atomic"
	"time"

	"github.com/weftmesh/weft/wire/http1"
)

// bodySender streams a request's body upstream in a goroutine of its own, while
// the exchange's waits for the response. It owns the client's reading side until
// it is joined.
type bodySender struct {
	// made once
	done chan struct{} // has a token when the goroutine is over
	run  func()        // send

	x     *Exchange
	up    upstream
	err   error // nil: the whole body was sent
	bytes int64
	lost  atomic.Bool // the client's side failed, and with it the upstream's
	asks  atomic.Bool // it waits for the client
}

// next, more and trailers make the sender the source of the body: the client's, and
// it shows who is waited for.
func (s *bodySender) next() (data []byte, last bool, err error) {
	s.asks.Store(true)
	data, last, err = s.x.client.next()
	s.asks.Store(false)
	return data, last, err
}

func (s *bodySender) more() bool       { return s.x.client.more() }
func (s *bodySender) trailers() []byte { return s.x.client.trailers() }

func (s *bodySender) start(x *Exchange, up upstream) {
	if s.done == nil {
		s.done, s.run = make(chan struct{}, 1), s.send
	}
	s.x, s.up, s.err, s.bytes = x, up, nil, 0
	x.streamed = true
	go s.run()
}

func (s *bodySender) send() {
	s.err = pump(s.up, s, &s.bytes)
	if s.err != nil && errors.Is(s.err, errSource) {
		// Without its client the request will never be whole: make the upstream
		// forget it, and wake who waits for the answer.
		s.lost.Store(true)
		s.up.interrupt()
	}
	s.done <- struct{}{}
}

// senderGrace is how long a sender may still need when the response is over
// already. A server that answers without reading the body does not get the rest.
const senderGrace = 100 * time.Millisecond

// join waits for the sender and says what its end means for both sides.
func (s *bodySender) join(x *Exchange, up upstream, o *outcome) {
	hurried := false
	select {
	case <-s.done:
	default:
		hurried = s.hurry(x, up)
	}
	s.up = nil
	x.record.BytesIn = s.bytes
	if hurried {
		o.whole = false // its end was broken off
	}
	if s.err == nil {
		return
	}
	o.keep, o.whole = false, false
	if o.done || hurried || x.wasExpired() || !errors.Is(s.err, errSource) {
		return
	}
	o.again = false
	var malformed *http1.Error
	if errors.As(s.err, &malformed) {
		x.conn.p.refused.count(malformed.Reason)
		o.fault = Answer{Status: malformed.Status, Reason: malformed.Reason, Text: "malformed body: " + malformed.Reason, Close: true}
		return
	}
	o.fault = Answer{Status: 400, Reason: "client_body", Text: "the request's body ended early", Close: true}
}

// hurry ends a sender, and reports whether it has not ended by itself soon after
// the response.
func (s *bodySender) hurry(x *Exchange, up upstream) bool {
	timer := time.NewTimer(senderGrace)
	defer timer.Stop()
	select {
	case <-s.done:
		return false
	case <-timer.C:
		up.interrupt()
		x.client.stopReading()
		<-s.done
		x.client.resumeReading()
		return true
	}
}
