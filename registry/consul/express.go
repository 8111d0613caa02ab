package consul

import (
	"bytes"
	"context"
	"log/slog"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/weftmesh/weft/registry"
	"github.com/weftmesh/weft/wire/http1"
)

// maxExpress is the longest body that Express gives: it is copied, and what is longer
// is better sent from where it lies.
const maxExpress = 64 << 10

// Express appends the whole response to a plain read of health/service whose answer is
// kept: what ServeHTTP says, too. It returns false, without having done anything, for
// all others. The handler that New returns has it; it is an express.Answer.
func (a *api) Express(dst []byte, r *http1.Request) ([]byte, bool) {
	if string(r.Method) != http.MethodGet || bytes.IndexByte(r.Path, '%') >= 0 || a.logger.Enabled(context.Background(), slog.LevelDebug) {
		return dst, false
	}
	e, service, p, ok := a.quickly(string(r.Path), string(r.Query))
	if !ok {
		return dst, false
	}
	f := a.registry.Stale()
	if !p.stale {
		if f, ok = a.registry.FreshNow(); !ok {
			return dst, false
		}
	}
	answer := a.current(e, service, p)
	if answer == nil || len(answer.body) > maxExpress {
		return dst, false
	}
	return appendKept(dst, r, p, f, answer), true
}

// appendKept is writeKept and what quick says before it, in bytes.
func appendKept(dst []byte, r *http1.Request, p plain, f registry.Freshness, answer *keptAnswer) []byte {
	dst = append(dst, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nX-Consul-Default-Acl-Policy: allow\r\nX-Consul-Query-Backend: blocking-query\r\nDate: "...)
	dst = append(dst, date()...)
	dst = appendField(dst, "X-Consul-Index", answer.header[0])
	consistency := leaderRead
	if p.stale || !f.KnownLeader {
		consistency = staleRead
	}
	dst = appendField(dst, "X-Consul-Effective-Consistency", consistency[0])
	dst = appendField(dst, "X-Consul-Knownleader", strconv.FormatBool(f.KnownLeader))
	dst = append(dst, "\r\nX-Consul-Lastcontact: "...)
	dst = strconv.AppendInt(dst, f.LastContact.Milliseconds(), 10)
	if answer.guard != nil {
		dst = appendField(dst, "X-Weft-Guard", answer.guard[0])
	}
	body, length := answer.body, answer.length
	if len(body) >= minKeptCompressed && takesGzip(r) {
		body, length = answer.compressed()
		dst = append(dst, "\r\nContent-Encoding: gzip\r\nVary: Accept-Encoding"...)
	}
	dst = appendField(dst, "Content-Length", length[0])
	dst = append(dst, "\r\n\r\n"...)
	return append(dst, body...)
}

// appendField begins with the end of the line before.
func appendField(dst []byte, name, value string) []byte {
	dst = append(dst, "\r\n"...)
	dst = append(dst, name...)
	dst = append(dst, ": "...)
	return append(dst, value...)
}

// takesGzip is accepted for a request that net/http has not read.
func takesGzip(r *http1.Request) bool {
	for i := range r.Fields {
		if bytes.EqualFold(r.Name(i), acceptEncoding) && acceptsGzip(string(r.Value(i))) {
			return true
		}
	}
	return false
}

var acceptEncoding = []byte("Accept-Encoding")

// dated is a second as Date has it.
type dated struct {
	second int64
	text   []byte
}

var lastDate atomic.Pointer[dated]

// date is the time as the header Date has it, made once a second.
func date() []byte {
	now := time.Now()
	d := lastDate.Load()
	if d == nil || d.second != now.Unix() {
		d = &dated{now.Unix(), now.UTC().AppendFormat(nil, http.TimeFormat)}
		lastDate.Store(d)
	}
	return d.text
}
