package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/weftmesh/weft/client"
)

// The lane of routes: hosts with rules each, and how often one is changed.
const (
	routedHosts = 500
	rulesEach   = 10
	changes     = 20
)

// manyRoutes is 5,000 rules, all before the ones that the load uses.
func manyRoutes() string {
	var b strings.Builder
	for host := range routedHosts {
		fmt.Fprintf(&b, "---\napiVersion: networking.istio.io/v1beta1\nkind: VirtualService\nmetadata: {name: host-%d}\n"+
			"spec:\n  hosts: [host-%[1]d.example]\n  gateways: [bench]\n  http:\n", host)
		for rule := range rulesEach {
			fmt.Fprintf(&b, "    - match: [{uri: {prefix: /api/%d}}]\n      route: [{destination: {host: items}}]\n", rule)
		}
	}
	return b.String()
}

// changing is a route that leads to the backend or, when it is away, elsewhere.
func changing(away bool) string {
	then := "route: [{destination: {host: items}}]"
	if away {
		then = "redirect: {uri: /away}"
	}
	return "apiVersion: networking.istio.io/v1beta1\nkind: VirtualService\nmetadata: {name: changing}\n" +
		"spec:\n  hosts: [changing.example]\n  gateways: [bench]\n  http:\n    - " + then + "\n"
}

// routes measures what a rule costs: a gateway that starts with them beside one
// that started without; and how long a change takes, from the call of the API until
// the gateway answers by it, while it is loaded.
func (l lane) routes(ctx context.Context, r *rig, peers []peer, o options) ([]row, error) {
	backend, err := l.job.backend(r, ctx)
	if err != nil {
		return nil, err
	}
	s, err := r.startWeftServer(ctx)
	if err != nil {
		return nil, err
	}
	if err := s.register(ctx, backend, ""); err != nil {
		return nil, err
	}
	without, err := r.gatewayMemory(ctx, s, l.job)
	if err != nil {
		return nil, err
	}
	if err := s.apply(ctx, manyRoutes(), changing(false)); err != nil {
		return nil, err
	}
	with, err := r.gatewayMemory(ctx, s, l.job)
	if err != nil {
		return nil, err
	}
	took, err := r.changeRoutes(ctx, s, with.system, o.seconds)
	if err != nil {
		return nil, err
	}
	slices.Sort(took)
	one := row{peer: peers[0].name, anon: with.anon, each: (with.anon - without.anon) / (routedHosts * rulesEach),
		p50: took[len(took)/2], p99: took[len(took)-1]}
	note("%s/%s: %d bytes a route, a change in %.2f ms", l.name, one.peer, one.each, micros(one.p50)/1000)
	return []row{one}, nil
}

// measuredGateway is a gateway and what it used after its first load.
type measuredGateway struct {
	*system
	usage
}

func (r *rig) gatewayMemory(ctx context.Context, s *weftServer, j job) (measuredGateway, error) {
	p, address, err := r.startWeftGateway(ctx, s)
	if err != nil {
		return measuredGateway{}, err
	}
	g := measuredGateway{system: &system{address: address, proxies: []*process{p}}}
	if err := g.check(ctx, j); err != nil {
		return g, err
	}
	if _, err := r.load(ctx, address, warmUp); err != nil {
		return g, err
	}
	g.usage, err = r.settled(ctx, g.system)
	return g, err
}

// changeRoutes changes one route to and fro under load, and returns how long each
// change took. A request of the load that fails is an error.
func (r *rig) changeRoutes(ctx context.Context, s *weftServer, to *system, seconds int) ([]time.Duration, error) {
	ended := make(chan error, 1)
	go func() {
		_, err := r.load(ctx, to.address, seconds)
		ended <- err
	}()
	web := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	defer web.CloseIdleConnections()
	var took []time.Duration
	var err error
	for n := range changes {
		var d time.Duration
		if d, err = changeRoute(ctx, s, web, to.address, n%2 == 0); err != nil {
			break
		}
		took = append(took, d)
	}
	return took, errors.Join(err, <-ended)
}

func changeRoute(ctx context.Context, s *weftServer, web *http.Client, address string, away bool) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	want := http.StatusOK
	if away {
		want = http.StatusMovedPermanently
	}
	began := time.Now()
	applied := make(chan error, 1)
	go func() { applied <- s.apply(ctx, changing(away)) }()
	for {
		status, err := statusOf(ctx, web, address)
		if err != nil {
			return 0, errors.Join(err, <-applied)
		}
		if status == want {
			return time.Since(began), <-applied
		}
		select {
		case <-ctx.Done():
			return 0, errors.Join(fmt.Errorf("still %d, want %d", status, want), <-applied)
		case <-time.After(200 * time.Microsecond):
		}
	}
}

func statusOf(ctx context.Context, web *http.Client, address string) (int, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+path, nil)
	if err != nil {
		return 0, err
	}
	req.Host = "changing.example"
	resp, err := web.Do(req)
	if err != nil {
		return 0, err
	}
	return resp.StatusCode, resp.Body.Close()
}

// apply gives documents to the server.
func (s *weftServer) apply(ctx context.Context, documents ...string) error {
	var files []client.File
	for i, d := range documents {
		files = append(files, client.File{Name: fmt.Sprintf("bench-%d.yaml", i), Data: d})
	}
	c, err := client.New(ctx, client.At(s.api))
	if err != nil {
		return err
	}
	_, err = c.Apply(ctx, files, client.ApplyOptions{})
	return err
}
