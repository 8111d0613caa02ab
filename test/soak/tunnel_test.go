package soak

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"time"

	"github.com/gorilla/websocket"
)

// socket opens a WebSocket, talks for a while, and closes it.
func socket(url string, roots *x509.CertPool) func(context.Context, *rand.Rand) error {
	return func(ctx context.Context, r *rand.Rand) error {
		dialer := websocket.Dialer{TLSClientConfig: &tls.Config{RootCAs: roots}}
		c, resp, err := dialer.DialContext(ctx, url+"/socket", nil)
		if resp != nil && err != nil {
			if resp.StatusCode < 502 || resp.StatusCode > 504 {
				return &wrongBytes{fmt.Sprintf("a WebSocket is refused with %s", resp.Status)}
			}
			b, _ := io.ReadAll(resp.Body)
			return fmt.Errorf("%s %s", resp.Status, b)
		}
		if err != nil {
			return err
		}
		defer c.Close()
		deadline, _ := ctx.Deadline()
		_, _ = c.SetReadDeadline(deadline), c.SetWriteDeadline(deadline)
		for range 1 + r.IntN(20) {
			id, n := r.Uint64(), size(r)
			if err := c.WriteMessage(websocket.BinaryMessage, message(id, n)); err != nil {
				return err
			}
			_, m, err := c.ReadMessage()
			if err != nil {
				return err
			}
			if err := replied(m, id, n); err != nil {
				return err
			}
			<-time.After(time.Duration(r.Int64N(int64(50 * time.Millisecond))))
		}
		if r.IntN(10) == 0 {
			return errCancelled
		}
		if err := c.WriteMessage(websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseNormalClosure, "")); err != nil {
			return err
		}
		if _, _, err := c.ReadMessage(); !websocket.IsCloseError(err, websocket.CloseNormalClosure) {
			return fmt.Errorf("after the close: %w", err)
		}
		return nil
	}
}

// raw calls a service of raw TCP. by is how: to a port of its own, or by CONNECT.
func raw(dial func(context.Context) (net.Conn, error), greets bool) func(context.Context, *rand.Rand) error {
	return func(ctx context.Context, r *rand.Rand) error {
		c, err := dial(ctx)
		if err != nil {
			return err
		}
		defer c.Close()
		deadline, _ := ctx.Deadline()
		_ = c.SetDeadline(deadline)
		if greets {
			b := make([]byte, len(greeting))
			if _, err := io.ReadFull(c, b); err != nil {
				return fmt.Errorf("instead of a greeting: %w", err)
			}
			if string(b) != greeting {
				return &wrongBytes{fmt.Sprintf("greeted by %q", b)}
			}
		}
		head := bytesHead{ID: r.Uint64(), Up: size(r), Down: size(r)}
		if r.IntN(15) == 0 {
			return giveUpRaw(c, head)
		}
		sent := make(chan error, 1)
		go func() { sent <- say(c, head) }()
		err = hear(c, head)
		if err != nil {
			_ = c.Close()
		}
		if failed := <-sent; err == nil {
			err = failed
		}
		return err
	}
}

// say sends all, and ends.
func say(c net.Conn, head bytesHead) error {
	if err := binary.Write(c, binary.LittleEndian, head); err != nil {
		return err
	}
	if _, err := io.Copy(c, struct{ io.Reader }{newBody(head.ID, head.Up)}); err != nil {
		return err
	}
	return c.(interface{ CloseWrite() error }).CloseWrite()
}

// errCut is an answer that ended too early without saying so. The kernel of a
// killed application says no more, so that nobody between can know: clients of raw
// TCP have to.
var errCut = errors.New("cut off by a clean end")

func hear(c net.Conn, head bytesHead) error {
	down := checker{id: head.ID + 1}
	n, err := io.Copy(struct{ io.Writer }{&down}, struct{ io.Reader }{c})
	switch {
	case err != nil:
		return err
	case n > head.Down:
		return &wrongBytes{fmt.Sprintf("%d bytes behind the answer to %x", n-head.Down, head.ID)}
	case n < head.Down && n == 0:
		return fmt.Errorf("before a byte: %w", errCut)
	case n < head.Down:
		return errCut
	}
	return nil
}

func giveUpRaw(c net.Conn, head bytesHead) error {
	var b bytes.Buffer
	_ = binary.Write(&b, binary.LittleEndian, head) // into memory
	_, _ = c.Write(b.Bytes())
	if tcp, ok := c.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	return errCancelled
}

// direct opens a connection to a port that stands for a service.
func direct(address string) func(context.Context) (net.Conn, error) {
	return func(ctx context.Context) (net.Conn, error) { return new(net.Dialer).DialContext(ctx, "tcp", address) }
}

// connect opens one through a forward proxy.
func connect(proxy, host string) func(context.Context) (net.Conn, error) {
	return func(ctx context.Context) (net.Conn, error) {
		c, err := direct(proxy)(ctx)
		if err != nil {
			return nil, err
		}
		deadline, _ := ctx.Deadline()
		_ = c.SetDeadline(deadline)
		if _, err := fmt.Fprintf(c, "CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\n", host, host); err != nil {
			return nil, errors.Join(err, c.Close())
		}
		resp, err := readHead(c)
		if err == nil && resp.StatusCode != 200 {
			b, _ := io.ReadAll(io.LimitReader(resp.Body, 1000))
			if err = fmt.Errorf("CONNECT: %s %s", resp.Status, b); resp.StatusCode < 502 {
				err = &wrongBytes{err.Error()}
			}
		}
		if err != nil {
			return nil, errors.Join(err, c.Close())
		}
		return c, nil
	}
}

// readHead reads a response's head byte by byte, to leave what is behind it.
func readHead(c net.Conn) (*http.Response, error) {
	var head bytes.Buffer
	b := make([]byte, 1)
	for !bytes.HasSuffix(head.Bytes(), []byte("\r\n\r\n")) {
		if _, err := io.ReadFull(c, b); err != nil {
			return nil, err
		}
		head.Write(b)
	}
	return http.ReadResponse(bufio.NewReader(&head), &http.Request{Method: "CONNECT"})
}
