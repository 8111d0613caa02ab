package client

import (
	"context"
	"errors"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/weftmesh/weft"
)

// addresses are those of servers of one cluster, any of which answers everything. One
// of them is called until it fails.
type addresses struct {
	all []string     // constant: host:port, or a URL's base without a trailing slash
	at  atomic.Int32 // which is called
}

// parseAddresses reads "host:port,host:port".
func parseAddresses(list string) (*addresses, error) {
	a := new(addresses)
	for addr := range strings.SplitSeq(list, ",") {
		addr = strings.TrimSuffix(strings.TrimSpace(addr), "/")
		if _, err := http.NewRequest(http.MethodGet, base(addr), nil); err != nil || addr == "" {
			return nil, weft.Errorf(weft.Invalid, "find", "weft server", "address %q: want host:port, or several with commas between", list)
		}
		a.all = append(a.all, addr)
	}
	return a, nil
}

// current is the address that is called.
func (a *addresses) current() string { return a.all[a.at.Load()] }

// leave goes on to the next address, unless another call has done so.
func (a *addresses) leave(addr string) {
	i := int32(slices.Index(a.all, addr))
	a.at.CompareAndSwap(i, (i+1)%int32(len(a.all)))
}

// base is an address as a URL.
func base(addr string) string {
	if strings.Contains(addr, "://") {
		return addr
	}
	return "http://" + addr
}

// shown is an address as messages have it.
func shown(addr string) string { return strings.TrimPrefix(addr, "http://") }

// send asks one server after the other until one answers. What may have been done is
// not sent again.
func (c *Client) send(ctx context.Context, r request) (resp *http.Response, from string, err error) {
	for left := len(c.servers.all); ; left-- {
		addr := c.servers.current()
		from = shown(addr)
		hr, err := c.newRequest(ctx, addr, r)
		if err != nil {
			return nil, from, &weft.Error{Kind: weft.Invalid, Op: r.op, Thing: r.thing, Err: err}
		}
		resp, err = c.http.Do(hr)
		if err == nil && resp.StatusCode != http.StatusServiceUnavailable {
			return resp, from, nil
		}
		c.servers.leave(addr)
		var op *net.OpError
		unsent := errors.As(err, &op) && op.Op == "dial"
		if left <= 1 || ctx.Err() != nil || !unsent && hr.Method != http.MethodGet {
			return resp, from, err
		}
		if resp != nil {
			_ = resp.Body.Close()
		}
	}
}
