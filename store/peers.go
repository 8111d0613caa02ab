package store

import (
	"context"
	"net/http"
	"sync"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
)

// probeTimeout bounds how long a member may take to show that it is there.
const probeTimeout = time.Second

// peerClient asks other members whether they are there.
type peerClient struct {
	http *http.Client
	self uint64
}

func newPeerClient(info transport.TLSInfo, self uint64) (*peerClient, error) {
	tr, err := transport.NewTransport(info, probeTimeout)
	if err != nil {
		return nil, err
	}
	tr.DisableKeepAlives = true // a probe by an old connection proves nothing
	return &peerClient{http: &http.Client{Transport: tr, Timeout: probeTimeout}, self: self}, nil
}

func (p *peerClient) close() { p.http.CloseIdleConnections() }

// reach asks all at once.
func (p *peerClient) reach(ctx context.Context, members []Member) map[uint64]bool {
	var (
		mu    sync.Mutex
		there = map[uint64]bool{p.self: true}
		wg    sync.WaitGroup
	)
	for _, m := range members {
		if m.ID == p.self {
			continue
		}
		wg.Go(func() {
			if p.isThere(ctx, m.Peer) {
				mu.Lock()
				there[m.ID] = true
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return there
}

func (p *peerClient) isThere(ctx context.Context, peer string) bool {
	u := peerURL(peer)
	u.Path = "/version"
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return false
	}
	resp, err := p.http.Do(req)
	if err != nil {
		return false
	}
	_ = resp.Body.Close() // what it says does not matter
	return resp.StatusCode == http.StatusOK
}
