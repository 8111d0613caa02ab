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
	return []lane{
		{"hop", "HTTP/1 hop", []peer{
			{"haproxy", "haproxy", startHAProxy}, {"nginx", "nginx", startNginx}, {"weft", "", startWeft}}},
		{"pair", "mTLS pair", []peer{
			{"haproxy", "haproxy", startHAProxyPair}, {"weft", "", startWeftPair}}},
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
	others float64 // share of the proxies' core that others took; the worst round
}

// warmUp is not measured: it fills pools, shakes hands and lets a runtime's heap
// find its size.
const warmUp = 1 // second

// measure starts all peers of a lane and takes rounds of turns. Who has no turn is
// idle: its connections are closed.
func (l lane) measure(ctx context.Context, r *rig, peers []peer, o options) ([]row, error) {
	backend, err := r.startBackend(ctx)
	if err != nil {
		return nil, err
	}
	systems := make([]*system, len(peers))
	for i, p := range peers {
		if systems[i], err = p.start(ctx, r, backend); err == nil {
			err = systems[i].check(ctx)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", p.name, err)
		}
	}
	rounds := make([][]row, len(peers))
	for n := range o.rounds {
		for i, p := range peers {
			if _, err := r.load(ctx, systems[i].address, warmUp); err != nil {
				return nil, fmt.Errorf("%s: %w", p.name, err)
			}
			one, err := r.turn(ctx, systems[i], o.seconds)
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
func (r *rig) turn(ctx context.Context, s *system, seconds int) (row, error) {
	began := time.Now()
	core, err := busy(r.cores.proxy)
	if err != nil {
		return row{}, err
	}
	before, err := usageOf(s.proxies)
	if err != nil {
		return row{}, err
	}
	l, err := r.load(ctx, s.address, seconds)
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
	cpu := after.cpu - before.cpu
	return row{
		cpu: cpu / time.Duration(l.requests), rate: l.rate, p50: l.p50, p99: l.p99, rss: after.rss, anon: after.anon,
		others: max(0, float64(coreAfter-core-cpu)/float64(time.Since(began))),
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
		others: slices.MaxFunc(rounds, func(a, b row) int { return cmp.Compare(a.others, b.others) }).others,
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
