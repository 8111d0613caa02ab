package proxy

import (
	"bytes"
	"strconv"
	"strings"
	"time"

	"github.com/weftmesh/weft/wire/http1"
)

// What the proxy knows of gRPC: an HTTP request with a content type, a deadline in
// a header, and a result that comes in a trailer.

// isGRPC tells gRPC from what is only named like it (gRPC-Web is ordinary HTTP).
func isGRPC(h *http1.Request) bool {
	i := h.Find(http1.FieldContentType)
	if i < 0 || string(h.Method) != "POST" {
		return false
	}
	const name = "application/grpc"
	v := h.Value(i)
	return len(v) >= len(name) && string(v[:len(name)]) == name &&
		(len(v) == len(name) || v[len(name)] == '+' || v[len(name)] == ';')
}

// Status codes of gRPC (grpc/doc/statuscodes.md) that the proxy makes or looks at.
const (
	grpcOK                = 0
	grpcCancelled         = 1
	grpcUnknown           = 2
	grpcDeadlineExceeded  = 4
	grpcPermissionDenied  = 7
	grpcResourceExhausted = 8
	grpcUnimplemented     = 12
	grpcInternal          = 13
	grpcUnavailable       = 14
	grpcUnauthenticated   = 16
)

// grpcStatusOf is the status that a response without a grpc-status means
// (grpc/doc/http-grpc-status-mapping.md), with two differences for what we answer
// ourselves: a timeout is one, and a malformed request is the caller's fault.
func grpcStatusOf(status int) int {
	switch status {
	case 400:
		return grpcInternal
	case 401:
		return grpcUnauthenticated
	case 403:
		return grpcPermissionDenied
	case 404:
		return grpcUnimplemented
	case 431:
		return grpcResourceExhausted
	case 499: // the client gave up
		return grpcCancelled
	case 504:
		return grpcDeadlineExceeded
	case 429, 502, 503:
		return grpcUnavailable
	}
	return grpcUnknown
}

// judgedAs is the HTTP status that a gRPC status counts as where endpoints are
// judged: only what the server has to answer for is a failure.
func judgedAs(status int) int {
	switch status {
	case grpcUnavailable:
		return 503
	case grpcInternal, grpcUnknown, 15: // data loss
		return 500
	}
	return 200
}

// callStatus is the HTTP status that the call's end counts as for a policy: other
// than in judgedAs, that there was too little time or room is a failure of the
// service, as it is for applications that put a policy in force by themselves.
func (x *Exchange) callStatus() int {
	if x.response.Status != 200 {
		return x.response.Status
	}
	switch x.record.GRPCStatus {
	case grpcDeadlineExceeded:
		return 504
	case grpcResourceExhausted:
		return 503
	}
	return judgedAs(x.record.GRPCStatus)
}

// appendGRPCTrailers appends a call's status and why.
func appendGRPCTrailers(lines []byte, status int, text string) []byte {
	lines = strconv.AppendInt(append(lines, "grpc-status: "...), int64(status), 10)
	lines = append(lines, "\r\n"...)
	if text == "" {
		return lines
	}
	lines = append(lines, "grpc-message: weft: "...)
	for i := range len(text) { // percent-encoded: PROTOCOL-HTTP2.md, "Status-Message"
		if c := text[i]; c >= ' ' && c <= '~' && c != '%' {
			lines = append(lines, c)
		} else {
			const hex = "0123456789ABCDEF"
			lines = append(lines, '%', hex[c>>4], hex[c&15])
		}
	}
	return append(lines, "\r\n"...)
}

// limitByClient takes the client's own deadline over: nobody waits for an answer
// after it.
func (x *Exchange) limitByClient(pl *plan) {
	if !x.grpc {
		return
	}
	v, n := x.head.Lookup("grpc-timeout")
	if n != 1 {
		return
	}
	d, ok := parseGRPCTimeout(v)
	if !ok {
		return
	}
	if t := x.record.Start.Add(d); pl.deadline.IsZero() || t.Before(pl.deadline) {
		pl.deadline, pl.hurried = t, true
	}
}

// parseGRPCTimeout reads at most eight digits and a unit (PROTOCOL-HTTP2.md).
func parseGRPCTimeout(v []byte) (time.Duration, bool) {
	if len(v) < 2 || len(v) > 9 {
		return 0, false
	}
	unit := strings.IndexByte("HMSmun", v[len(v)-1])
	if unit < 0 {
		return 0, false
	}
	var n int64
	for _, c := range v[:len(v)-1] {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + int64(c-'0')
	}
	units := [...]time.Duration{time.Hour, time.Minute, time.Second, time.Millisecond, time.Microsecond, time.Nanosecond}
	if n > int64(365*24*time.Hour/units[unit]) {
		return 365 * 24 * time.Hour, true // as good as none, and far from overflow
	}
	return time.Duration(n) * units[unit], true
}

// grpcStatusIn reads a grpc-status from header lines; -1 when there is none.
func grpcStatusIn(lines []byte) int {
	const name = "grpc-status:"
	for len(lines) > 0 {
		line, rest, _ := bytes.Cut(lines, []byte("\r\n"))
		lines = rest
		if len(line) > len(name) && equalFold(line[:len(name)], name) {
			return parseGRPCStatus(bytes.TrimSpace(line[len(name):]))
		}
	}
	return -1
}

func parseGRPCStatus(v []byte) int {
	if len(v) == 0 || len(v) > 3 {
		return grpcUnknown
	}
	n := 0
	for _, c := range v {
		if c < '0' || c > '9' {
			return grpcUnknown
		}
		n = n*10 + int(c-'0')
	}
	return n
}

// earlyGRPCStatus is what a response's head says of the call's end, as the HTTP
// status that it is judged as. early is false when the end is not known yet.
func (x *Exchange) earlyGRPCStatus() (status int, early bool) {
	r := &x.response
	if v, n := r.Lookup("grpc-status"); n > 0 {
		x.record.GRPCStatus = parseGRPCStatus(v)
		return judgedAs(x.record.GRPCStatus), true
	}
	if r.Status != 200 {
		x.record.GRPCStatus = grpcStatusOf(r.Status)
		return r.Status, true
	}
	x.record.GRPCStatus = -1
	return 0, false
}

// judgeLate judges a call by the status that came behind its messages.
func (x *Exchange) judgeLate(pl *plan) {
	if !x.grpc {
		return
	}
	if _, early := x.response.Lookup("grpc-status"); early > 0 || x.response.Status != 200 {
		return // it was judged by its head
	}
	if x.record.GRPCStatus < 0 {
		x.record.GRPCStatus = grpcUnknown
	}
	x.judge(pl, judgedAs(x.record.GRPCStatus))
}
