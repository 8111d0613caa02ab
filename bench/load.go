package main

import (
	"context"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"time"
)

// connections is how many clients ask at once, each over one kept connection.
const connections = 64

// path that is asked for. weft's VirtualService matches its first part.
const path = "/api/items/1"

// load is what a load generator saw.
type load struct {
	requests int64
	rate     float64 // a second
	p50, p99 time.Duration
}

// load asks address for some seconds.
func (r *rig) load(ctx context.Context, address string, seconds int) (load, error) {
	return r.wrk(ctx, address, connections, seconds)
}

// wrk asks with wrk where it is installed; more are arguments that only wrk knows.
func (r *rig) wrk(ctx context.Context, address string, clients, seconds int, more ...string) (load, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Duration(seconds)*time.Second+startTimeout)
	defer cancel()
	program, args := "wrk", []string{"-t1", "--latency"}
	if !installed(program) {
		self, err := os.Executable()
		if err != nil {
			return load{}, err
		}
		program, args = self, []string{"load"}
	}
	args = append(append(args, more...), fmt.Sprintf("-c%d", clients), fmt.Sprintf("-d%d", seconds), "http://"+address+path)
	text, err := r.output(ctx, r.cores.load, "load", program, args...)
	if err != nil {
		return load{}, err
	}
	return parseWrk(text)
}

var (
	wrkRequests = regexp.MustCompile(`(?m)^ +(\d+) requests in `)
	wrkRate     = regexp.MustCompile(`(?m)^Requests/sec: +([\d.]+)$`)
	wrkP50      = regexp.MustCompile(`(?m)^ +50% +([\d.]+[a-z]+) *$`)
	wrkP99      = regexp.MustCompile(`(?m)^ +99% +([\d.]+[a-z]+) *$`)
	wrkFailed   = regexp.MustCompile(`(?m)^ +(Socket errors: .*|Non-2xx or 3xx responses: .*)$`)
)

// parseWrk reads what wrk --latency prints. Any failed request makes the
// measurement worthless, and so an error.
func parseWrk(text string) (load, error) {
	if m := wrkFailed.FindStringSubmatch(text); m != nil {
		return load{}, fmt.Errorf("requests failed: %s", m[1])
	}
	var l load
	for _, f := range []struct {
		what *regexp.Regexp
		set  func(string) (err error)
	}{
		{wrkRequests, func(s string) (err error) { l.requests, err = strconv.ParseInt(s, 10, 64); return }},
		{wrkRate, func(s string) (err error) { l.rate, err = strconv.ParseFloat(s, 64); return }},
		{wrkP50, func(s string) (err error) { l.p50, err = time.ParseDuration(s); return }}, // its units are Go's
		{wrkP99, func(s string) (err error) { l.p99, err = time.ParseDuration(s); return }},
	} {
		m := f.what.FindStringSubmatch(text)
		if m == nil {
			return load{}, fmt.Errorf("wrk's output has no line %s:\n%s", f.what, text)
		}
		if err := f.set(m[1]); err != nil {
			return load{}, err
		}
	}
	if l.requests == 0 {
		return load{}, fmt.Errorf("no request was answered:\n%s", text)
	}
	return l, nil
}
