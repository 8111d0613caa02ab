package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// The load of the HTTP/2 lanes: few connections with many requests on each.
const (
	connectionsH2 = 8
	streamsH2     = 16
)

// message is a gRPC message of 100 bytes behind its prefix (one byte flags, four
// bytes length), both in the call and in the answer.
var message = append([]byte{0, 0, 0, 0, byte(len(body))}, make([]byte, len(body))...)

// method is what the calls ask for; weft's VirtualService matches its first part.
const method = "/api.Items/Get"

// startBackendH2 is the backend of the HTTP/2 hop: nginx in plain text with prior
// knowledge.
func (r *rig) startBackendH2(ctx context.Context) (string, error) {
	if !installed("nginx") {
		return "", errors.New("its backend is nginx, which is not installed (Debian: apt-get install nginx)")
	}
	port, err := freePort()
	if err != nil {
		return "", err
	}
	address := fmt.Sprintf("127.0.0.1:%d", port)
	p, err := r.startNginxWith("backend", fmt.Sprintf(`
	server {
		listen %s http2 backlog=1024;
		default_type text/plain;
		location / { return 200 %q; }
	}`, address, body))
	if err != nil {
		return "", err
	}
	return address, p.eventually(ctx, func() error { return answersH2(ctx, address) })
}

// startBackendGRPC answers every call with the message and grpc-status 0, which is
// all that a proxy sees of a gRPC server.
func (r *rig) startBackendGRPC(ctx context.Context) (string, error) {
	address, err := r.startFile(ctx, "message", int64(len(message)), "listen %s http2 backlog=1024; default_type application/grpc; add_trailer grpc-status 0;",
		func(string) error { return nil })
	if err != nil {
		return "", err
	}
	// A file of zeros has no length in it.
	if err := os.WriteFile(filepath.Join(r.dir, "www", "message"), message, 0o600); err != nil {
		return "", err
	}
	last := r.children[len(r.children)-1]
	return address, last.eventually(ctx, func() error { return answersGRPC(ctx, address) })
}

// clientH2 speaks HTTP/2 in plain text.
func clientH2() *http.Client {
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	return &http.Client{Transport: &http.Transport{Protocols: protocols, DisableKeepAlives: true}}
}

// answersH2 is answers over HTTP/2.
func answersH2(ctx context.Context, address string) error {
	return answersWith(ctx, clientH2(), address)
}

// answersGRPC calls once and expects the message and the status behind it.
func answersGRPC(ctx context.Context, address string) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+address+method, bytes.NewReader(message))
	if err != nil {
		return err
	}
	req.Header = http.Header{"Content-Type": {"application/grpc"}, "Te": {"trailers"}}
	resp, err := clientH2().Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(io.LimitReader(resp.Body, 4096))
	if err != nil {
		return err
	}
	if status := resp.Trailer.Get("grpc-status"); resp.StatusCode != http.StatusOK || !bytes.Equal(got, message) || status != "0" {
		return fmt.Errorf("%s answers %s %q, grpc-status %q; want 200, the backend's message, and 0", address, resp.Status, got, status)
	}
	return nil
}

// loadH2 asks with h2load.
func (r *rig) loadH2(ctx context.Context, address string, seconds int) (load, error) {
	return r.h2load(ctx, seconds, "http://"+address+path)
}

// loadGRPC calls with h2load, which does not look at grpc-status.
func (r *rig) loadGRPC(ctx context.Context, address string, seconds int) (load, error) {
	file, err := r.write("call", string(message))
	if err != nil {
		return load{}, err
	}
	return r.h2load(ctx, seconds, "http://"+address+method, "-d", file, "-H", "content-type: application/grpc", "-H", "te: trailers")
}

func (r *rig) h2load(ctx context.Context, seconds int, url string, args ...string) (load, error) {
	if !installed("h2load") {
		return load{}, errors.New("its load generator is h2load, which is not installed (Debian: apt-get install nghttp2-client)")
	}
	ctx, cancel := context.WithTimeout(ctx, time.Duration(seconds)*time.Second+startTimeout)
	defer cancel()
	file := filepath.Join(r.dir, "h2load.tsv")
	if err := os.RemoveAll(file); err != nil {
		return load{}, err
	}
	args = append(args, fmt.Sprintf("-c%d", connectionsH2), fmt.Sprintf("-m%d", streamsH2), fmt.Sprintf("-D%d", seconds), "--log-file="+file, url)
	text, err := r.output(ctx, r.cores.load, "load", "h2load", args...)
	if err != nil {
		return load{}, err
	}
	l, err := parseH2load(text)
	if err != nil {
		return load{}, err
	}
	f, err := os.Open(file)
	if err != nil {
		return load{}, err
	}
	defer f.Close()
	l.p50, l.p99, err = percentiles(f)
	return l, err
}

var (
	h2loadRate     = regexp.MustCompile(`(?m)^finished in [^,]+, ([\d.]+) req/s,`)
	h2loadRequests = regexp.MustCompile(`(?m)^requests: \d+ total, \d+ started, (\d+) done, (\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout$`)
)

// parseH2load reads what h2load prints. Any failed request makes the measurement
// worthless, and so an error.
func parseH2load(text string) (load, error) {
	rate, requests := h2loadRate.FindStringSubmatch(text), h2loadRequests.FindStringSubmatch(text)
	if rate == nil || requests == nil {
		return load{}, fmt.Errorf("h2load's output has no rate or no requests:\n%s", text)
	}
	if requests[1] != requests[2] || slices.ContainsFunc(requests[3:], func(n string) bool { return n != "0" }) {
		return load{}, fmt.Errorf("requests failed: %s", requests[0])
	}
	var l load
	var err error
	if l.rate, err = strconv.ParseFloat(rate[1], 64); err != nil {
		return load{}, err
	}
	if l.requests, err = strconv.ParseInt(requests[1], 10, 64); err != nil {
		return load{}, err
	}
	if l.requests == 0 {
		return load{}, fmt.Errorf("no request was answered:\n%s", text)
	}
	return l, nil
}

// percentiles reads h2load's log: when, status, and how many microseconds it took,
// a line a request.
func percentiles(in io.Reader) (p50, p99 time.Duration, err error) {
	seen := &latencies{}
	n := int64(0)
	lines := bufio.NewScanner(in)
	for lines.Scan() {
		fields := strings.Split(lines.Text(), "\t")
		if len(fields) != 3 {
			return 0, 0, fmt.Errorf("h2load's log has a line %q", lines.Text())
		}
		us, err := strconv.Atoi(fields[2])
		if err != nil {
			return 0, 0, fmt.Errorf("h2load's log has a line %q", lines.Text())
		}
		seen[min(us, len(seen)-1)].Add(1)
		n++
	}
	return seen.share(0.50, n), seen.share(0.99, n), lines.Err()
}
