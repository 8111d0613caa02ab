// Command bench measures weft beside the proxies that people would run instead,
// in one run on one machine, and prints what a request costs each of them.
//
//	go run ./bench                  # every lane, about eight minutes
//	go run ./bench -markdown        # the same, to paste into README.md
//	go run ./bench -run pair/weft -seconds 60
//
// A lane is one job that every peer does in turn: the same backend behind it, the
// same load before it, the proxies alone on one core, backend and load on another.
// Everything under test is a real process with its ordinary configuration; weft is
// built from this tree and started, registered and configured by its command line
// and its Consul API, as a user would. What a peer answers is checked before it is
// measured. Rounds are interleaved (A B C, A B C), so that a machine that slows
// down slows all of them, and the median of the rounds is printed.
//
// Nothing here is a test: nothing fails because it is slow. A lane fails when a
// request does.
//
// Linux only: cores are pinned and CPU time is read in Linux's ways. Peers that are
// not installed are left out, and how to install them is said.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"syscall"
)

// options of a run.
type options struct {
	seconds  int
	rounds   int
	only     *regexp.Regexp // of "lane/peer"
	markdown bool
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	o, err := parseOptions()
	switch {
	case err != nil:
	case flag.Arg(0) != "":
		err = runStandIn(ctx, flag.Args())
	default:
		err = run(ctx, o)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		stop()
		os.Exit(1)
	}
}

func parseOptions() (options, error) {
	var o options
	var only string
	flag.IntVar(&o.seconds, "seconds", 5, "how long each peer is measured in each round")
	flag.IntVar(&o.rounds, "rounds", 2, "how often each peer is measured; the median is printed")
	flag.StringVar(&only, "run", "", "only what fits this `regexp` of lane/peer, as in hop/(haproxy|weft)")
	flag.BoolVar(&o.markdown, "markdown", false, "print the tables and the machine in Markdown")
	flag.Parse()
	if o.seconds < 1 || o.rounds < 1 {
		return o, errors.New("-seconds and -rounds must be 1 or more")
	}
	var err error
	o.only, err = regexp.Compile(only)
	return o, err
}

// run measures every lane and prints.
func run(ctx context.Context, o options) (err error) {
	cores, err := twoCores()
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "weft-bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	weft := filepath.Join(dir, "weft")
	note("building weft")
	build := exec.CommandContext(ctx, "go", "build", "-o", weft, "github.com/weftmesh/weft/cmd/weft")
	build.Stderr = os.Stderr
	if err := build.Run(); err != nil {
		return fmt.Errorf("build weft: %w", err)
	}
	var results []laneResult
	for _, l := range lanes() {
		peers := l.chosen(o.only)
		if len(peers) == 0 {
			continue
		}
		r := &rig{dir: filepath.Join(dir, l.name), weft: weft, cores: cores}
		rows, err := l.measure(l, ctx, r, peers, o)
		if err = errors.Join(err, r.stop()); err != nil {
			return fmt.Errorf("lane %s: %w", l.name, err)
		}
		results = append(results, laneResult{l, rows})
	}
	printResults(os.Stdout, results, o, describeMachine(ctx, weft))
	return nil
}

// note tells whoever waits what is going on. Results alone go to stdout.
func note(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }
