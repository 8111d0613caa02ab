package soak

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// web calls the service by net/http, in HTTP/1 or HTTP/2.
type web struct {
	base      string // URL
	transport *http.Transport
}

func newWeb(address string, http2, keep bool) *web {
	t := &http.Transport{DisableKeepAlives: !keep, DisableCompression: true, MaxIdleConnsPerHost: 20, Protocols: new(http.Protocols)}
	t.Protocols.SetHTTP1(!http2)
	t.Protocols.SetUnencryptedHTTP2(http2)
	return &web{"http://" + address, t}
}

// newWebTLS is newWeb over TLS.
func newWebTLS(address string, http2 bool, roots *x509.CertPool) *web {
	w := newWeb(address, false, true)
	w.base = "https://" + address
	w.transport.TLSClientConfig = &tls.Config{RootCAs: roots}
	w.transport.Protocols.SetHTTP1(!http2)
	w.transport.Protocols.SetHTTP2(http2)
	return w
}

func (w *web) close() { w.transport.CloseIdleConnections() }

// call asks once, in one of many manners.
func (w *web) call(ctx context.Context, r *rand.Rand) error {
	id, n := r.Uint64(), size(r)
	switch r.IntN(10) {
	case 0, 1:
		return w.put(ctx, r, id, n, size(r), false)
	case 2:
		return w.put(ctx, r, id, n, r.Int64N(1000), true)
	case 3:
		return w.giveUp(ctx, r, id, n)
	case 4:
		return w.head(ctx, id, n)
	case 5:
		return w.get(ctx, id, n, "&slow=1", false)
	case 6:
		return w.get(ctx, id, n, "&how=chunked", true)
	case 7:
		return w.get(ctx, id, n, "&how=chunked&slow=1", false)
	}
	return w.get(ctx, id, n, "", false)
}

func (w *web) request(ctx context.Context, method string, body io.Reader, path string, id uint64, n int64, more string) (*http.Response, error) {
	url := fmt.Sprintf("%s%s?id=%d&n=%d%s", w.base, path, id, n, more)
	req, err := http.NewRequestWithContext(ctx, method, url, body)
	if err != nil {
		return nil, err
	}
	if body != nil {
		req.ContentLength = n
		if strings.Contains(more, "length=no") {
			req.ContentLength = -1
		}
	}
	req.Header.Set(idHeader, strconv.FormatUint(id, 10))
	return w.transport.RoundTrip(req)
}

// answered judges an answer's head. What weft says instead of an answer is an error
// that a client can tell from one.
func answered(resp *http.Response, id uint64) error {
	switch {
	case resp.StatusCode == http.StatusOK && resp.Header.Get(idHeader) == strconv.FormatUint(id, 10):
		return nil
	case resp.StatusCode >= 502 && resp.StatusCode <= 504 && resp.Header.Get(idHeader) == "":
		b, err := io.ReadAll(io.LimitReader(resp.Body, 1000))
		return fmt.Errorf("%d %s %w", resp.StatusCode, b, errors.Join(err, errRefused))
	}
	b, _ := io.ReadAll(io.LimitReader(resp.Body, 200))
	return &wrongBytes{fmt.Sprintf("the answer to %d: %s %v %q", id, resp.Status, resp.Header, b)}
}

// errRefused is an answer of weft's own.
var errRefused = errors.New("from weft")

func (w *web) get(ctx context.Context, id uint64, n int64, more string, slowReader bool) error {
	resp, err := w.request(ctx, "GET", nil, "/get", id, n, more)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if err := answered(resp, id); err != nil {
		return err
	}
	in := io.Reader(resp.Body)
	if slowReader {
		in = slow(in, n)
	}
	if err := check(in, id, n); err != nil {
		return err
	}
	if end := resp.Trailer.Get(idHeader + "-End"); strings.Contains(more, "chunked") && end != strconv.FormatUint(id, 10) {
		return &wrongBytes{fmt.Sprintf("the trailer of %d is %q", id, end)}
	}
	return nil
}

func (w *web) head(ctx context.Context, id uint64, n int64) error {
	resp, err := w.request(ctx, "HEAD", nil, "/get", id, n, "")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if err := answered(resp, id); err != nil {
		return err
	}
	if resp.ContentLength != n {
		return &wrongBytes{fmt.Sprintf("HEAD of %d says %d bytes, want %d", id, resp.ContentLength, n)}
	}
	return check(resp.Body, id, 0)
}

func (w *web) put(ctx context.Context, r *rand.Rand, id uint64, n, m int64, slowWriter bool) error {
	up, more := io.Reader(newBody(id, n)), "&m="+strconv.FormatInt(m, 10)
	if slowWriter {
		up = slow(up, n)
	}
	if r.IntN(2) == 0 {
		more += "&length=no"
	}
	resp, err := w.request(ctx, "POST", struct{ io.Reader }{up}, "/put", id, n, more)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if err := answered(resp, id); err != nil {
		return err
	}
	return check(resp.Body, id+1, m)
}

// giveUp reads a part, which has to be right, and goes.
func (w *web) giveUp(ctx context.Context, r *rand.Rand, id uint64, n int64) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if r.IntN(2) == 0 {
		defer time.AfterFunc(time.Duration(r.Int64N(int64(50*time.Millisecond))), cancel).Stop()
	}
	resp, err := w.request(ctx, "GET", nil, "/get", id, n, "&slow=1")
	if err == nil {
		defer resp.Body.Close()
		if err = answered(resp, id); err == nil {
			_, err = io.CopyN(&checker{id: id}, resp.Body, n/2)
		}
	}
	cancel()
	if err == nil || ctx.Err() != nil && !errors.As(err, new(*wrongBytes)) && !errors.Is(err, errRefused) {
		return errCancelled
	}
	return err
}

// pipeline sends several requests in one write, and reads the answers in their order.
func pipeline(address string) func(context.Context, *rand.Rand) error {
	return func(ctx context.Context, r *rand.Rand) error {
		var dialer net.Dialer
		c, err := dialer.DialContext(ctx, "tcp", address)
		if err != nil {
			return err
		}
		defer c.Close()
		deadline, _ := ctx.Deadline()
		_ = c.SetDeadline(deadline)
		var out strings.Builder
		asked := make([]*asked, 2+r.IntN(7))
		for i := range asked {
			asked[i] = ask(&out, r)
		}
		sent := make(chan error, 1)
		go func() { _, err := io.WriteString(c, out.String()); sent <- err }()
		in := bufio.NewReader(c)
		for _, a := range asked {
			var last bool
			if last, err = a.answer(in); err != nil {
				break
			}
			if last { // the rest is not refused, but was not looked at (RFC 9112 §9.3.2)
				err = errCancelled
				break
			}
		}
		_ = c.Close()
		<-sent // its error is the reader's, too
		return err
	}
}

// asked is a request of a pipeline.
type asked struct {
	id     uint64
	n      int64 // bytes of the answer
	bodyID uint64
	method string
}

func ask(out *strings.Builder, r *rand.Rand) *asked {
	a := &asked{id: r.Uint64(), n: r.Int64N(20 << 10)}
	a.bodyID, a.method = a.id, "GET"
	line := func(path, fields string) {
		fmt.Fprintf(out, "%s %s HTTP/1.1\r\nHost: soak\r\n%s: %d\r\n%s\r\n", a.method, path, idHeader, a.id, fields)
	}
	up := r.Int64N(20 << 10)
	put := fmt.Sprintf("/put?id=%d&n=%d&m=%d", a.id, up, a.n)
	switch r.IntN(5) {
	case 0:
		a.method, a.bodyID = "POST", a.id+1
		line(put, fmt.Sprintf("Content-Length: %d\r\n", up))
		out.Write(newBody(a.id, up).bytes())
	case 1:
		a.method, a.bodyID = "PUT", a.id+1
		line(put, "Transfer-Encoding: chunked\r\n")
		for b := newBody(a.id, up).bytes(); len(b) > 0; {
			n := min(len(b), 1+r.IntN(5000))
			fmt.Fprintf(out, "%x\r\n%s\r\n", n, b[:n])
			b = b[n:]
		}
		out.WriteString("0\r\n\r\n")
	case 2:
		a.method = "HEAD"
		line(fmt.Sprintf("/get?id=%d&n=%d", a.id, a.n), "")
	case 3:
		line(fmt.Sprintf("/get?id=%d&n=%d&how=chunked", a.id, a.n), "")
	default:
		line(fmt.Sprintf("/get?id=%d&n=%d", a.id, a.n), "")
	}
	return a
}

// answer reads the answer. last says that the connection ends behind it.
func (a *asked) answer(in *bufio.Reader) (last bool, err error) {
	resp, err := http.ReadResponse(in, &http.Request{Method: a.method})
	if err != nil {
		return false, err
	}
	defer resp.Body.Close()
	if err := answered(resp, a.id); err != nil {
		return resp.Close, err
	}
	if a.method == "HEAD" {
		a.n = 0
	}
	return resp.Close, check(resp.Body, a.bodyID, a.n)
}
