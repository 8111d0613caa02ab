package proxy

import (
	"errors"
	"io"
	"strings"
	"time"

	"github.com/weftmesh/weft/proxy/mux"
	"github.com/weftmesh/weft/wire/http1"
	"github.com/weftmesh/weft/wire/http2"
)

// An exchange has two sides: the client, who asked, and the upstream, who
// answers. Each speaks HTTP/1 on a connection of its own or HTTP/2 on a stream of
// a shared one; an exchange does not know which. Heads of both protocols are
// http1.Request and http1.Response; bodies are pumped from a source into a sink.

// source gives a body piece by piece.
type source interface {
	// next waits for more. data is valid until the following call. last says that
	// nothing follows, not even trailers; without that hint the end is io.EOF.
	next() (data []byte, last bool, err error)
	// more reports whether next has something without waiting.
	more() bool
	// trailers are the header lines that came behind the body, after next returned
	// io.EOF.
	trailers() []byte
}

// sink takes a body piece by piece.
type sink interface {
	write(data []byte, last bool) error
	// flush sends what write has kept back in the hope of more.
	flush() error
	// end says that the body is over, where write has not said so by last.
	end(trailers []byte) error
}

// client is the side that asked: the request's body comes from it, and it gets the
// response's.
type client interface {
	source
	sink
	// load makes the request's body whole in x.body if it is small enough to be
	// kept for another attempt.
	load() error
	// inform passes an informational response on.
	inform() error
	// begin starts the response of x.response; nothing is sent before the first
	// write, flush or end. It returns whether the connection may carry another
	// exchange if all goes well.
	begin(pl *plan) (keep bool)
	// answer sends a response that weft made. lines are header lines; last asks to
	// end the connection after it.
	answer(status int, last bool, lines, body []byte) (keep bool)
	// abort lets the client see that the response it got is not whole. status is
	// what would have said so.
	abort(status int, reason string)
	// stopReading makes a waiting next fail, from any goroutine; resumeReading
	// undoes it as far as the client can still be read.
	stopReading()
	resumeReading()
	// http2 reports the client's protocol.
	http2() bool
}

// upstream is the side that answers: one attempt's connection or stream.
type upstream interface {
	source
	sink
	// send sends the request's head, and its body if that is whole. unsent is true
	// if the application cannot have seen anything.
	send(x *Exchange, pl *plan) (unsent bool, err error)
	// await reads the next response head, informational ones too, into
	// x.response.
	await(x *Exchange) error
	// release gives the connection back, or ends it when it is not whole: the
	// response was not read to its end, or the request not sent to its end.
	release(x *Exchange, pl *plan, whole bool)
	// ready waits until await has something to read, but not beyond until (zero:
	// only its own deadline counts). It reports whether there is something; err is
	// what await would fail with.
	ready(until time.Time) (ok bool, err error)
	// interrupt makes whoever waits for this side fail; from any goroutine.
	interrupt()
	// reused reports that the connection has served before: its death says nothing
	// about the endpoint.
	reused() bool
}

// Errors of pump: which side failed.
var (
	errSource = errors.New("source")
	errSink   = errors.New("sink")
)

// pump moves a body from one side to the other, and counts its bytes.
func pump(to sink, from source, count *int64) error {
	for {
		data, last, err := from.next()
		if err == io.EOF {
			if err := to.end(from.trailers()); err != nil {
				return errors.Join(errSink, err)
			}
			return nil
		}
		if err != nil {
			return errors.Join(errSource, err)
		}
		*count += int64(len(data))
		if err := to.write(data, last); err != nil {
			return errors.Join(errSink, err)
		}
		if last {
			return nil
		}
		if !from.more() {
			if err := to.flush(); err != nil {
				return errors.Join(errSink, err)
			}
		}
	}
}

// protocolError is a message of a peer that cannot be understood.
type protocolError struct{ reason string }

func (e *protocolError) Error() string { return "malformed: " + e.reason }

// misbehaved reports whether an upstream's failure was that it said what cannot be
// understood, and what.
func misbehaved(err error, why **protocolError) bool {
	if errors.As(err, why) {
		return true
	}
	var broken *http2.ConnError
	if errors.As(err, &broken) {
		*why = &protocolError{broken.Reason}
		return true
	}
	var reset *mux.ResetError
	if errors.As(err, &reset) && !reset.Remote && reset.Code != http2.Cancel { // that is a stall
		*why = &protocolError{strings.ToLower(reset.Code.String())}
		return true
	}
	return false
}

// whyMalformed is one word for a parse error.
func whyMalformed(err error) string {
	var e *http1.Error
	if errors.As(err, &e) {
		return e.Reason
	}
	return "malformed"
}
