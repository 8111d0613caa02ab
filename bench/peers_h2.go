package main

import (
	"context"
	"fmt"
)

// startHAProxyH2 is the HTTP/2 hop, HTTP/2 on both sides.
func startHAProxyH2(_ context.Context, r *rig, backend string) (*system, error) {
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	p, err := r.startHAProxyWith("haproxy", fmt.Sprintf(`
listen hop
	bind 127.0.0.1:%d proto h2
	server backend %s proto h2
`, port, backend))
	if err != nil {
		return nil, err
	}
	return &system{address: fmt.Sprintf("127.0.0.1:%d", port), proxies: []*process{p}}, nil
}

// startHAProxyH2Pair is startHAProxyPair with HTTP/2 on all connections.
func startHAProxyH2Pair(_ context.Context, r *rig, backend string) (*system, error) {
	return r.startHAProxyPairWith(backend, "proto h2", "alpn h2")
}

// startNghttpx is the HTTP/2 hop.
func startNghttpx(_ context.Context, r *rig, backend string) (*system, error) {
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	p, err := r.startNghttpxWith("nghttpx", fmt.Sprintf("--frontend=127.0.0.1,%d;no-tls", port), "--backend="+nghttpxBackend(backend)+";proto=h2")
	if err != nil {
		return nil, err
	}
	return &system{address: fmt.Sprintf("127.0.0.1:%d", port), proxies: []*process{p}}, nil
}

// startNghttpxPair is two processes with mutual TLS between them.
func startNghttpxPair(_ context.Context, r *rig, backend string) (*system, error) {
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
	const tls13 = "--tls-min-proto-version=TLSv1.3"
	b, err := r.startNghttpxWith("nghttpx-b", fmt.Sprintf("--frontend=127.0.0.1,%d", inner), "--backend="+nghttpxBackend(backend)+";proto=h2",
		tls13, "--tls13-ciphers=TLS_AES_128_GCM_SHA256", "--verify-client", "--verify-client-cacert="+certs.ca, certs.server, certs.server)
	if err != nil {
		return nil, err
	}
	a, err := r.startNghttpxWith("nghttpx-a", fmt.Sprintf("--frontend=127.0.0.1,%d;no-tls", outer),
		fmt.Sprintf("--backend=127.0.0.1,%d;;proto=h2;tls;sni=%s", inner, serverName), tls13, "--tls13-client-ciphers=TLS_AES_128_GCM_SHA256",
		"--cacert="+certs.ca, "--client-cert-file="+certs.client, "--client-private-key-file="+certs.client)
	if err != nil {
		return nil, err
	}
	return &system{address: fmt.Sprintf("127.0.0.1:%d", outer), proxies: []*process{a, b}, mtls: fmt.Sprintf("127.0.0.1:%d", inner)}, nil
}

// nghttpxBackend is host,port; as nghttpx wants it.
func nghttpxBackend(address string) string {
	var port int
	// The address is one that we made.
	_, _ = fmt.Sscanf(address, "127.0.0.1:%d", &port)
	return fmt.Sprintf("127.0.0.1,%d;", port)
}

// startNghttpxWith runs nghttpx with one thread and no other configuration. Its
// windows are as by default.
func (r *rig) startNghttpxWith(name string, args ...string) (*process, error) {
	return r.start(r.cores.proxy, name, "nghttpx", append([]string{"--conf=/dev/null", "--workers=1", "--no-ocsp", "--errorlog-file=/dev/stderr",
		"--accesslog-file=/dev/null", "--single-process"}, args...)...)
}
