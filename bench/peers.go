package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
)

// The peers are set up as their manuals say for speed at this job: one thread,
// connections kept on both sides and shared between clients, no access log.

// startHAProxy is the hop.
func startHAProxy(_ context.Context, r *rig, backend string) (*system, error) {
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	p, err := r.startHAProxyWith("haproxy", fmt.Sprintf(`
listen hop
	bind 127.0.0.1:%d
	server backend %s
`, port, backend))
	if err != nil {
		return nil, err
	}
	return &system{address: fmt.Sprintf("127.0.0.1:%d", port), proxies: []*process{p}}, nil
}

// startHAProxyPair is two processes with mutual TLS between them. The cipher is the
// one that Go's TLS chooses on machines with AES instructions, so that both pairs
// encrypt alike.
func startHAProxyPair(_ context.Context, r *rig, backend string) (*system, error) {
	return r.startHAProxyPairWith(backend, "", "")
}

// startHAProxyPairWith has a protocol on the plain connections and one on those
// with TLS; HTTP/1 needs no word.
func (r *rig) startHAProxyPairWith(backend, plain, encrypted string) (*system, error) {
	certs, err := writeCertificates(r)
	if err != nil {
		return nil, err
	}
	outer, err := freePort()
	if err != nil {
		return nil, err
	}
	inner, err := freePort()
	if err != nil {
		return nil, err
	}
	tls13 := "ssl-min-ver TLSv1.3 ssl-max-ver TLSv1.3 ciphersuites TLS_AES_128_GCM_SHA256 " + encrypted
	b, err := r.startHAProxyWith("haproxy-b", fmt.Sprintf(`
listen b
	bind 127.0.0.1:%d ssl crt %s ca-file %s verify required %s
	server backend %s %s
`, inner, certs.server, certs.ca, tls13, backend, plain))
	if err != nil {
		return nil, err
	}
	a, err := r.startHAProxyWith("haproxy-a", fmt.Sprintf(`
listen a
	bind 127.0.0.1:%d %s
	server b 127.0.0.1:%d ssl crt %s ca-file %s verify required verifyhost %s sni str(%s) %s
`, outer, plain, inner, certs.client, certs.ca, serverName, serverName, tls13))
	if err != nil {
		return nil, err
	}
	return &system{address: fmt.Sprintf("127.0.0.1:%d", outer), proxies: []*process{a, b}, mtls: fmt.Sprintf("127.0.0.1:%d", inner)}, nil
}

func (r *rig) startHAProxyWith(name, config string) (*process, error) {
	// It wants two files for each connection that it may have, which not every
	// machine gives, and needs them only if no two requests share an upstream's.
	file, err := r.write(name+".cfg", `global
	no strict-limits
	nbthread 1
	maxconn 10500
defaults
	mode http
	timeout connect 5s
	timeout client 60s
	timeout server 60s
	http-reuse always
`+config)
	if err != nil {
		return nil, err
	}
	return r.start(r.cores.proxy, name, "haproxy", "-db", "-f", file)
}

// startNginx is the hop.
func startNginx(_ context.Context, r *rig, backend string) (*system, error) {
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	p, err := r.startNginxWith("nginx", fmt.Sprintf(`
	upstream backend {
		server %s;
		keepalive %d;
		keepalive_requests 1000000000;
	}
	server {
		listen 127.0.0.1:%d backlog=1024;
		location / {
			proxy_pass http://backend;
			proxy_http_version 1.1;
			proxy_set_header Connection "";
		}
	}`, backend, 2*connections, port))
	if err != nil {
		return nil, err
	}
	return &system{address: fmt.Sprintf("127.0.0.1:%d", port), proxies: []*process{p}}, nil
}

// startNginxWith runs nginx with one worker: the backend on the load's core, all
// else on the proxies'.
func (r *rig) startNginxWith(name, config string) (*process, error) {
	core := r.cores.proxy
	if name == "backend" {
		core = r.cores.load
	}
	user := ""
	if os.Geteuid() == 0 {
		user = "user root;" // the worker writes where only we may
	}
	dir := filepath.Join(r.dir, name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	file, err := r.write(name+".conf", user+`
daemon off;
worker_processes 1;
pid nginx.pid;
error_log stderr warn;
worker_rlimit_nofile 12000;
events { worker_connections 11000; }
http {
	access_log off;
	keepalive_requests 1000000000;
	client_body_temp_path body;
	proxy_temp_path proxy;
	fastcgi_temp_path fastcgi;
	uwsgi_temp_path uwsgi;
	scgi_temp_path scgi;
`+config+"\n}\n")
	if err != nil {
		return nil, err
	}
	return r.start(core, name, "nginx", "-p", dir, "-e", "stderr", "-c", file)
}
