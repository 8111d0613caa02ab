package client

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"

	"github.com/weftmesh/weft"
)

// Server is one server of a cluster.
type Server struct {
	ID      string `json:"id"` // of its store, in hex
	Name    string `json:"name"`
	Peer    string `json:"peer,omitempty"`    // host:port where the others' stores reach it; empty: it is alone
	Learner bool   `json:"learner,omitempty"` // it has joined, and does not have everything yet
	Leader  bool   `json:"leader,omitempty"`  // it writes
	Self    bool   `json:"self,omitempty"`    // it answers
	Away    string `json:"away,omitempty"`    // why it does not answer the one that does; empty: it does
	Control string `json:"control,omitempty"`
	API     string `json:"api,omitempty"`
	Consul  string `json:"consul,omitempty"`
}

// Servers lists the servers of the cluster, sorted by name, as the one that answers
// knows them.
func (c *Client) Servers(ctx context.Context) ([]Server, error) {
	var out []Server
	err := c.call(ctx, request{op: "list", thing: "servers", path: "/api/servers"}, &out)
	return out, err
}

// RemoveServer takes a server out of the cluster for good. What would leave the
// others without a majority is weft.Conflict.
func (c *Client) RemoveServer(ctx context.Context, name string) error {
	return c.call(ctx, request{op: "remove", thing: "server " + name, method: http.MethodDelete, path: "/api/servers/" + url.PathEscape(name)}, nil)
}

// Backup writes the server's state to w: everything but the secrets in files of its
// data directory. joinToken, which is one of these, proves that the caller may have
// it. What was cut short is refused when it is restored.
func (c *Client) Backup(ctx context.Context, joinToken string, w io.Writer) error {
	r := request{op: "back up", thing: "server " + c.Addr(), path: "/api/backup"}
	hr, err := c.newRequest(ctx, c.servers.current(), r)
	if err != nil {
		return &weft.Error{Kind: weft.Invalid, Op: r.op, Thing: r.thing, Err: err}
	}
	hr.Header.Set("Authorization", "Bearer "+joinToken)
	resp, err := c.http.Do(hr)
	if err != nil {
		return &weft.Error{Kind: weft.Unavailable, Op: r.op, Thing: r.thing, Err: innermost(err)}
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return refused(resp, r)
	}
	if _, err := io.Copy(w, resp.Body); err != nil {
		return &weft.Error{Kind: weft.Unavailable, Op: r.op, Thing: r.thing, Err: fmt.Errorf("the state was cut short: %w", err)}
	}
	return nil
}
