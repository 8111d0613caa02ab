package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// loader asks a system for some seconds.
type loader func(r *rig, ctx context.Context, address string, seconds int) (load, error)

// job is what a lane is about, the same for all of its peers.
type job struct {
	backend func(r *rig, ctx context.Context) (string, error) // starts it and returns its address
	answers func(ctx context.Context, address string) error   // one right answer
	load    loader
	size    int64  // bytes of a body
	how     string // the load, for people
}

// Bodies are of 100 bytes where nothing else is said.
var (
	small = job{(*rig).startBackend, answers, (*rig).load, int64(len(body)),
		fmt.Sprintf("%d connections, %d-byte bodies", connections, len(body))}
	smallH2 = job{(*rig).startBackendH2, answersH2, (*rig).loadH2, int64(len(body)),
		fmt.Sprintf("%d connections × %d streams, %d-byte bodies", connectionsH2, streamsH2, len(body))}
	unary = job{(*rig).startBackendGRPC, answersGRPC, (*rig).loadGRPC, int64(len(message)),
		fmt.Sprintf("%d connections × %d streams, calls with messages of %d bytes", connectionsH2, streamsH2, len(body))}
)

// told is the job with other words for its load.
func (j job) told(how string) job {
	j.how = how
	return j
}

// large is a job with bodies that do not fit into buffers.
func large(size int64, clients int) job {
	return job{
		backend: func(r *rig, ctx context.Context) (string, error) { return r.startBackendOf(ctx, size) },
		answers: func(ctx context.Context, address string) error { return answersBytes(ctx, address, size) },
		load: func(r *rig, ctx context.Context, address string, seconds int) (load, error) {
			if !installed("wrk") {
				return load{}, errors.New("its load generator is wrk, which is not installed (Debian: apt-get install wrk)")
			}
			// Many bodies have to come through whole, on a slow machine, too.
			return r.wrk(ctx, address, clients, max(seconds, int(size>>20)/20), "-T60s")
		},
		size: size,
		how:  fmt.Sprintf("%d connections, bodies of %d MB", clients, size>>20),
	}
}

// startBackendOf serves a file of zeros under every path. It needs nginx: a
// stand-in would be what is measured.
func (r *rig) startBackendOf(ctx context.Context, size int64) (string, error) {
	return r.startFile(ctx, "body", size, "listen %s backlog=1024; sendfile on;", func(address string) error { return answersBytes(ctx, address, size) })
}

// startFile serves one file of zeros as the answer to everything.
func (r *rig) startFile(ctx context.Context, name string, size int64, server string, answers func(address string) error) (string, error) {
	if !installed("nginx") {
		return "", errors.New("its backend is nginx, which is not installed (Debian: apt-get install nginx)")
	}
	root := filepath.Join(r.dir, "www")
	if err := os.MkdirAll(root, 0o700); err != nil {
		return "", err
	}
	file := filepath.Join(root, name)
	f, err := os.OpenFile(file, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return "", err
	}
	if err := f.Truncate(size); err != nil {
		return "", err
	}
	if err := f.Close(); err != nil {
		return "", err
	}
	port, err := freePort()
	if err != nil {
		return "", err
	}
	address := fmt.Sprintf("127.0.0.1:%d", port)
	p, err := r.startNginxWith("backend", fmt.Sprintf(`
	open_file_cache max=10;
	server {
		%s
		root %s;
		location / { error_page 405 =200 /%[3]s; try_files /%[3]s =404; } # a POST is answered by the file, too
		location = /%[3]s { }
	}`, strings.Replace(server, "%s", address, 1), root, name))
	if err != nil {
		return "", err
	}
	return address, p.eventually(ctx, func() error { return answers(address) })
}
