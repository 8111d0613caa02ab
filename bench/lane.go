package main

import (
	"cmp"
	"context"
	"fmt"
	"os/exec"
	"regexp"
	"slices"
	"time"
)

// lane is one job that peers do in turn.
type lane struct {
	name  string
	title string
	peers []peer

	job     job   // what the load asks for and the backend answers
	table   table // how the results are shown
	measure func(l lane, ctx context.Context, r *rig, peers []peer, o options) ([]row, error)
}

// peer is one way to do a lane's job.
type peer struct {
	name    string
	program string // that must be installed; "" is weft
	start   func(ctx context.Context, r *rig, backend string) (*system, error)
}

// system is a peer that runs.
type system struct {
	address string     // where the load goes, host:port
	proxies []*process // whose CPU and memory count
	mtls    string     // of a pair: the inner door, which must refuse strangers
}

func lanes() []lane {
	hop := []peer{{"haproxy", "haproxy", startHAProxy}, {"nginx", "nginx", startNginx}, {"weft", "", startWeft}}
	return []lane{
		{"hop", "HTTP/1 hop", hop, small, requestsTable, lane.turns},
		{"half", "HTTP/1 hop at half load", hop, small, requestsTable, paced(2)},
		{"quarter", "HTTP/1 hop at quarter load", hop, small, requestsTable, paced(4)},
		{"pair", "mTLS pair", []peer{
			{"haproxy", "haproxy", startHAProxyPair}, {"weft", "", startWeftPair}}, small, requestsTable, lane.turns},
		{"h2", "HTTP/2 hop", []peer{
			{"haproxy", "haproxy", startHAProxyH2}, {"nghttpx", "nghttpx", startNghttpx}, {"weft", "", startWeftH2}}, smallH2, requestsTable, lane.turns},
		{"grpc", "gRPC pair", []peer{
			{"haproxy", "haproxy", startHAProxyH2Pair}, {"nghttpx", "nghttpx", startNghttpxPair}, {"weft", "", startWeftGRPCPair}}, unary, requestsTable, lane.turns},
		{"1mb", "1 MB bodies", hop, large(1<<20, 16), bodiesTable, lane.turns},
		{"100mb", "100 MB bodies", hop, large(100<<20, 4), bodiesTable, lane.turns},
		{"idle", "10,000 idle connections", hop, small.told("each has been served once"), idleTable, lane.idle},
		{"routes", "5,000 routes", []peer{{"weft", "", startWeft}}, small.told(fmt.Sprintf("%d hosts with %d rules each; %d changes under load", routedHosts, rulesEach, changes)), routesTable, lane.routes},
	}
}

// chosen are the peers that are asked for and installed.
func (l lane) chosen(only *regexp.Regexp) []peer {
	var peers []peer
	for _, p := range l.peers {
		if !only.MatchString(l.name + "/" + p.name) {
			continue
		}
		if p.program != "" && !installed(p.program) {
			note("%s/%s is left out: %s is not installed (Debian: apt-get install %s)", l.name, p.name, p.program, p.program)
			continue
		}
		peers = append(peers, p)
	}
	return peers
}

func installed(program string) bool {
	_, err := exec.LookPath(program)
	return err == nil
}

// row is a peer's result: the median of its rounds, number by number.
type row struct {
	peer   string
	cpu    time.Duration // of the proxies, a request
	rate   float64       // requests a second
	p50    time.Duration
	p99    time.Duration
	rss    int64
	anon   int64   // of rss
	peak   int64   // the most that rss was since the proxies started
	others float64 // share of the proxies' core that others took; the worst round
	loader float64 // share of the load's core that was busy; the worst round
	paced  bool    // at a constant rate: what the load's core cannot do in time is not the proxy's
	each   int64   // bytes of anon for each connection or route
}

// warmUp is not measured: it fills pools, shakes hands and lets a runtime's heap
// find its size.
const warmUp = 1 // second

// start starts the backend and all peers of a lane, and checks what they answer.
func (l lane) start(ctx context.Context, r *rig, peers []peer) ([]*system, error) {
	backend, err := l.job.backend(r, ctx)
	if err != nil {
		return nil, err
	}
	systems := make([]*system, len(peers))
	for i, p := range peers {
		if systems[i], err = p.start(ctx, r, backend); err == nil {
			err = systems[i].check(ctx, l.job)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", p.name, err)
		}
	}
	return systems, nil
}

// turns has every peer loaded as much as it bears, in rounds. Who has no turn is
// idle: its connections are closed.
func (l lane) turns(ctx context.Context, r *rig, peers []peer, o options) ([]row, error) {
	systems, err := l.start(ctx, r, peers)
	if err != nil {
		return nil, err
	}
	return l.rounds(ctx, r, peers, systems, o, l.job.load)
}

// paced first finds how much the weakest of the peers bears, and then gives that
// part of it to each, at a constant rate, whether it answers in time or not.
func paced(part float64) func(lane, context.Context, *rig, []peer, options) ([]row, error) {
	return func(l lane, ctx context.Context, r *rig, peers []peer, o options) ([]row, error) {
		systems, err := l.start(ctx, r, peers)
		if err != nil {
			return nil, err
		}
		rate, err := l.bearable(ctx, r, peers, systems, o)
		if err != nil {
			return nil, err
		}
		rows, err := l.rounds(ctx, r, peers, systems, o, func(r *rig, ctx context.Context, address string, seconds int) (load, error) {
			return r.loadAt(ctx, rate/part, address, seconds)
		})
		for i := range rows {
			rows[i].paced = true
		}
		return rows, err
	}
}

// bearable is how many requests a second the weakest of the peers bears.
func (l lane) bearable(ctx context.Context, r *rig, peers []peer, systems []*system, o options) (float64, error) {
	rate := 0.0
	for i, p := range peers {
		found, err := l.job.load(r, ctx, systems[i].address, warmUp)
		if err == nil {
			found, err = l.job.load(r, ctx, systems[i].address, o.seconds)
		}
		if err != nil {
			return 0, fmt.Errorf("%s: %w", p.name, err)
		}
		if rate == 0 || found.rate < rate {
			rate = found.rate
		}
	}
	return rate, nil
}

// rounds takes the peers in turn, again and again.
func (l lane) rounds(ctx context.Context, r *rig, peers []peer, systems []*system, o options, give loader) ([]row, error) {
	rounds := make([][]row, len(peers))
	for n := range o.rounds {
		for i, p := range peers {
			if _, err := give(r, ctx, systems[i].address, warmUp); err != nil {
				return nil, fmt.Errorf("%s: %w", p.name, err)
			}
			one, err := r.turn(ctx, systems[i], give, o.seconds)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", p.name, err)
			}
			note("%s/%s, round %d of %d: %.2f µs CPU, %.0f requests/s", l.name, p.name, n+1, o.rounds, micros(one.cpu), one.rate)
			rounds[i] = append(rounds[i], one)
		}
	}
	rows := make([]row, len(peers))
	for i, p := range peers {
		rows[i] = summary(p.name, rounds[i])
	}
	return rows, nil
}

// turn measures a system once.
func (r *rig) turn(ctx context.Context, s *system, give loader, seconds int) (row, error) {
	began := time.Now()
	core, err := busy(r.cores.proxy)
	if err != nil {
		return row{}, err
	}
	loader, err := busy(r.cores.load)
	if err != nil {
		return row{}, err
	}
	before, err := usageOf(s.proxies)
	if err != nil {
		return row{}, err
	}
	l, err := give(r, ctx, s.address, seconds)
	if err != nil {
		return row{}, err
	}
	after, err := usageOf(s.proxies)
	if err != nil {
		return row{}, err
	}
	coreAfter, err := busy(r.cores.proxy)
	if err != nil {
		return row{}, err
	}
	loaderAfter, err := busy(r.cores.load)
	if err != nil {
		return row{}, err
	}
	took := float64(time.Since(began))
	cpu := after.cpu - before.cpu
	return row{
		cpu: cpu / time.Duration(l.requests), rate: l.rate, p50: l.p50, p99: l.p99, rss: after.rss, anon: after.anon, peak: after.peak,
		others: max(0, float64(coreAfter-core-cpu)/took), loader: float64(loaderAfter-loader) / took,
	}, nil
}

func summary(peer string, rounds []row) row {
	return row{
		peer:   peer,
		cpu:    median(rounds, func(r row) time.Duration { return r.cpu }),
		rate:   median(rounds, func(r row) float64 { return r.rate }),
		p50:    median(rounds, func(r row) time.Duration { return r.p50 }),
		p99:    median(rounds, func(r row) time.Duration { return r.p99 }),
		rss:    median(rounds, func(r row) int64 { return r.rss }),
		anon:   median(rounds, func(r row) int64 { return r.anon }),
		peak:   median(rounds, func(r row) int64 { return r.peak }),
		each:   median(rounds, func(r row) int64 { return r.each }),
		others: slices.MaxFunc(rounds, func(a, b row) int { return cmp.Compare(a.others, b.others) }).others,
		loader: slices.MaxFunc(rounds, func(a, b row) int { return cmp.Compare(a.loader, b.loader) }).loader,
	}
}

// median of an even number of rounds is the mean of the two in the middle.
func median[T time.Duration | float64 | int64](rounds []row, of func(row) T) T {
	var all []T
	for _, r := range rounds {
		all = append(all, of(r))
	}
	slices.Sort(all)
	n := len(all)
	return (all[(n-1)/2] + all[n/2]) / 2
}

func micros(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }
