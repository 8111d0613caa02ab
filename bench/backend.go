package main

import (
	"context"
	"fmt"
	"os"
	"strings"
)

// body is what the backend answers: 100 bytes.
var body = strings.Repeat("0123456789", 10)

// startBackend starts what all peers of a lane forward to, and returns its
// address: nginx, or where that is not installed our own stand-in.
func (r *rig) startBackend(ctx context.Context) (string, error) {
	port, err := freePort()
	if err != nil {
		return "", err
	}
	address := fmt.Sprintf("127.0.0.1:%d", port)
	var p *process
	if installed("nginx") {
		p, err = r.startNginxWith("backend", fmt.Sprintf(`
	server {
		listen %s backlog=1024;
		default_type text/plain;
		location / { return 200 %q; }
	}`, address, body))
	} else {
		var self string
		if self, err = os.Executable(); err == nil {
			p, err = r.start(r.cores.load, "backend", self, "backend", address)
		}
	}
	if err != nil {
		return "", err
	}
	return address, p.eventually(ctx, func() error { return answers(ctx, address) })
}
