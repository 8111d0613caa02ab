package proxy

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/weftmesh/weft"
)

// Whose failure it is: what the circuit is told.

// touchy is a circuit that opens with the first failure.
const touchy = `"circuitBreaker":{"consecutiveFailures":1,"waitDurationInOpenState":"1h"}`

func (m *mesh) wantState(what, want string) {
	m.t.Helper()
	settled(m.t, m.proxy)
	if got := m.state(); got != want {
		m.t.Errorf("%s: the circuit is %s; want %s", what, got, want)
	}
}

// What a client does wrong, or too slowly, opens nobody's circuit.
func TestClientsOpenNoCircuits(t *testing.T) {
	m := newMesh(t, h2server(t, func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) }).URL)
	for _, p := range []weft.Protocol{weft.HTTP, weft.HTTP2} {
		m.policy(`{"attemptTimeout":"100ms",` + touchy + `}`)
		m.speak(p)
		_, r := m.raw("POST / HTTP/1.1\r\nHost: shop\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nnonsense")
		if resp, _ := m.read(r, "POST"); resp.StatusCode != 400 {
			t.Errorf("a malformed body: %d", resp.StatusCode)
		}
		m.wantState("a malformed body, "+string(p), "closed")
		_, r = m.raw("POST / HTTP/1.1\r\nHost: shop\r\nContent-Length: 100000\r\n\r\nhello")
		if resp, _ := m.read(r, "POST"); resp.StatusCode != 504 {
			t.Errorf("a slow body: %d", resp.StatusCode)
		}
		m.wantState("a slow body, "+string(p), "closed")
		c, _ := m.raw("POST / HTTP/1.1\r\nHost: shop\r\nContent-Length: 100000\r\n\r\nhello")
		_ = c.Close()
		m.wantState("half a body, "+string(p), "closed")
	}
	m.endpoints(peers(t, func(c net.Conn, r *bufio.Reader) { _, _ = io.Copy(io.Discard, r) }))
	_, r := m.raw("POST / HTTP/1.1\r\nHost: shop\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n")
	if resp, _ := m.read(r, "POST"); resp.StatusCode != 504 {
		t.Errorf("a slow service: %d", resp.StatusCode)
	}
	m.wantState("a slow service", "open")
}

// A call's outcome is its status, wherever that comes.
func TestOutcomeOfCalls(t *testing.T) {
	head := func(f *framer, id uint32) error {
		return f.head(id, false, ":status", "200", "content-type", "application/grpc")
	}
	message := []byte("\x00\x00\x00\x00\x05hello")
	behind := func(code string) func(f *framer, id uint32) error {
		return func(f *framer, id uint32) error {
			_ = head(f, id)
			_ = f.WriteData(id, false, message)
			return f.head(id, true, "grpc-status", code)
		}
	}
	for name, tt := range map[string]struct {
		answer func(f *framer, id uint32) error
		want   string
	}{
		"well":                           {behind("0"), "closed"},
		"alone: not found":               {status("5"), "closed"},
		"alone: unavailable":             {status("14"), "open"},
		"behind: unavailable":            {behind("14"), "open"},
		"behind: not found":              {behind("5"), "closed"},
		"the server had too little time": {status("4"), "open"},
		"and too little room":            {status("8"), "open"},
		"no status": {func(f *framer, id uint32) error {
			_ = head(f, id)
			return f.WriteData(id, true, message)
		}, "open"},
		"not gRPC": {func(f *framer, id uint32) error { return f.head(id, true, ":status", "504") }, "open"},
		"broken":   {func(f *framer, id uint32) error { return f.WriteRSTStream(id, http2.ErrCodeInternal) }, "open"},
		"broken in the middle": {func(f *framer, id uint32) error {
			_ = head(f, id)
			_ = f.WriteData(id, false, message)
			return f.WriteRSTStream(id, http2.ErrCodeInternal)
		}, "open"},
		"no answer in the client's time": {func(f *framer, id uint32) error { return nil }, "closed"},
		"no message in that time":        {head, "closed"},
		"a stream that outlives it": {func(f *framer, id uint32) error {
			_ = head(f, id)
			return f.WriteData(id, false, message)
		}, "closed"},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMesh(t, speaks(t, tt.answer))
			m.rule.Retry = weft.Retry{}
			m.policy(`{` + touchy + `}`)
			m.speak(weft.GRPC)
			m.call("grpc-timeout", "200m")
			m.wantState(name, tt.want)
		})
	}
}

// What a client's own deadline says depends on how long the policy would have waited.
func TestImpatientClients(t *testing.T) {
	for name, tt := range map[string]struct{ spec, want string }{
		"less than an attempt may take": {`"attemptTimeout":"5s","circuitBreaker":{"consecutiveFailures":1}`, "closed"},
		"less than a call may take":     {`"timeout":"5s","circuitBreaker":{"consecutiveFailures":1}`, "closed"},
		"less than what is slow":        {`"circuitBreaker":{"consecutiveFailures":1,"slowCallDurationThreshold":"5s"}`, "closed"},
		"more than what is slow":        {`"circuitBreaker":{"consecutiveFailures":1,"slowCallDurationThreshold":"10ms"}`, "open"},
		"an attempt may take less":      {`"attemptTimeout":"10ms","circuitBreaker":{"consecutiveFailures":1}`, "open"},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMesh(t, speaks(t, func(f *framer, id uint32) error { return nil }))
			m.rule.Retry = weft.Retry{}
			m.policy(`{` + tt.spec + `}`)
			m.speak(weft.GRPC)
			m.call("grpc-timeout", "50m")
			m.wantState(name, tt.want)
		})
	}
}

// Who gives a call up says nothing of the service.
func TestCancelledCalls(t *testing.T) {
	for name, first := range map[string]func(f *framer, id uint32) error{
		"before the answer": func(f *framer, id uint32) error { return nil },
		"in the middle": func(f *framer, id uint32) error {
			_ = f.head(id, false, ":status", "200", "content-type", "application/grpc")
			return f.WriteData(id, false, []byte("\x00\x00\x00\x00\x05hello"))
		},
	} {
		came := make(chan struct{}, 1)
		m := newMesh(t, speaks(t, func(f *framer, id uint32) error {
			defer func() { came <- struct{}{} }()
			return first(f, id)
		}))
		m.policy(`{` + touchy + `}`)
		m.speak(weft.GRPC)
		f := dialFrames(t, m.addr)
		_ = f.ask(1, true, "POST", "/shop.Words/Unary", "content-type", "application/grpc", "te", "trailers")
		<-came
		_ = f.WriteRSTStream(1, http2.ErrCodeCancel)
		m.wantState(name, "closed")
	}
}

// A stream that lives long closes a circuit that is half open with its beginning.
func TestLongStreamIsNoProbeThatHangs(t *testing.T) {
	var calls atomic.Int32
	m := newMesh(t, speaks(t, func(f *framer, id uint32) error {
		if calls.Add(1) == 1 {
			return status("14")(f, id)
		}
		_ = f.head(id, false, ":status", "200", "content-type", "application/grpc")
		return f.WriteData(id, false, []byte("\x00\x00\x00\x00\x05hello"))
	}))
	m.rule.Retry = weft.Retry{}
	m.policy(`{"circuitBreaker":{"consecutiveFailures":1,"waitDurationInOpenState":"1ms","permittedCallsInHalfOpenState":1}}`)
	m.speak(weft.GRPC)
	m.call()
	m.wantState("a call that failed", "open")
	<-time.After(5 * time.Millisecond)
	f := dialFrames(t, m.addr)
	_ = f.ask(1, true, "POST", "/shop.Words/Stream", "content-type", "application/grpc", "te", "trailers")
	until(t, "the circuit is ", func() string {
		if s := m.state(); s != "closed" {
			return s
		}
		return ""
	})
}

// gRPC's servers say themselves whether a call may be made again.
func TestPushBack(t *testing.T) {
	for name, tt := range map[string]struct {
		says []string
		want int32
	}{
		"nothing":  {nil, 1}, // a call may have done something
		"at once":  {[]string{"0"}, 2},
		"soon":     {[]string{"5"}, 2},
		"never":    {[]string{"-1"}, 1},
		"nonsense": {[]string{"soon"}, 1},
		"twice":    {[]string{"5", "5"}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			var calls atomic.Int32
			m := newMesh(t, speaks(t, func(f *framer, id uint32) error {
				if calls.Add(1) > 1 {
					return status("0")(f, id)
				}
				fields := []string{":status", "200", "content-type", "application/grpc", "grpc-status", "14"}
				for _, v := range tt.says {
					fields = append(fields, "grpc-retry-pushback-ms", v)
				}
				return f.head(id, true, fields...)
			}))
			m.policy(`{"retry":{"backoff":{"initial":"1m","jitter":"none"}}}`)
			m.speak(weft.GRPC)
			want := fmt.Sprint((2 - tt.want) * 14)
			if r := m.call(); r.fields["grpc-status"] != want || calls.Load() != tt.want {
				t.Errorf("%v %v after %d attempts; want status %s after %d", r, r.fields, calls.Load(), want, tt.want)
			}
		})
	}
}
