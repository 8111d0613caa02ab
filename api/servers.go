package api

import (
	"context"
	"io"
	"net/http"
	"strings"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/client"
)

// Cluster is what the API needs of the servers' cluster; one that is alone is one
// of one.
type Cluster interface {
	Servers(ctx context.Context) []client.Server
	Remove(ctx context.Context, name string) error
	// Backup writes the state, if the token proves that the caller may have it.
	Backup(ctx context.Context, token string, w io.Writer) error
}

func (a *api) servers(r *http.Request) (any, error) { return a.Cluster.Servers(r.Context()), nil }

func (a *api) removeServer(r *http.Request) (any, error) {
	return nil, a.Cluster.Remove(r.Context(), r.PathValue("name"))
}

func (a *api) backup(w http.ResponseWriter, r *http.Request) {
	token, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	out := &begun{ResponseWriter: w}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Cache-Control", "no-store")
	err := a.Cluster.Backup(r.Context(), token, out)
	switch {
	case err == nil:
	case out.any: // too late for a status: the client sees the answer break off
		a.Logger.Warn("a backup broke off", "error", err)
		panic(http.ErrAbortHandler)
	default:
		if weft.KindOf(err) == weft.Denied {
			a.Logger.Warn("a backup was refused", "address", r.RemoteAddr)
		}
		a.fail(w, r, err)
	}
}

// begun notes whether anything was written.
type begun struct {
	http.ResponseWriter
	any bool
}

func (b *begun) Write(p []byte) (int, error) {
	b.any = true
	return b.ResponseWriter.Write(p)
}
