package registry

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"

	"github.com/weftmesh/weft"
)

// probed says whether the health of checks of this kind is learnt by probes.
func probed(k weft.CheckKind) bool {
	switch k {
	case weft.HTTPCheck, weft.TCPCheck, weft.GRPCCheck, weft.H2PingCheck, weft.UDPCheck, weft.ScriptCheck:
		return true
	}
	return false
}

// probe asks a check's target, and returns what it found with a text for people.
func probe(ctx context.Context, c *weft.Check) (weft.Health, string) {
	switch c.Kind {
	case weft.TCPCheck:
		return probeTCP(ctx, c)
	case weft.GRPCCheck:
		return probeGRPC(ctx, c)
	case weft.H2PingCheck:
		return probeH2Ping(ctx, c)
	case weft.UDPCheck:
		return probeUDP(ctx, c)
	case weft.ScriptCheck:
		return runScript(ctx, c)
	}
	return probeHTTP(ctx, c)
}

// probe is what the checker asks; a script that came from a server where they are
// on is not run where they are off.
func (r *Registry) probe(ctx context.Context, c *weft.Check) (weft.Health, string) {
	if c.Kind == weft.ScriptCheck && !r.scripts {
		return weft.Critical, scriptsAreOff
	}
	return probe(ctx, c)
}

func probeTCP(ctx context.Context, c *weft.Check) (weft.Health, string) {
	conn, err := dialProbe(ctx, c)
	if err != nil {
		return weft.Critical, err.Error()
	}
	conn.Close() // nothing was written but a handshake
	return weft.Passing, "TCP connect " + c.Target + ": Success"
}

// dialProbe connects to a check's target, by TLS when it says so.
func dialProbe(ctx context.Context, c *weft.Check, protocols ...string) (net.Conn, error) {
	if !c.TLS {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", c.Target)
	}
	d := tls.Dialer{Config: probeTLS(c, protocols...)}
	return d.DialContext(ctx, "tcp", c.Target)
}

// probeTLS says how a check's target is verified: by the system's authorities.
func probeTLS(c *weft.Check, protocols ...string) *tls.Config {
	return &tls.Config{ServerName: c.TLSServerName, InsecureSkipVerify: c.TLSSkipVerify, NextProtos: protocols}
}

// probeUDP finds a target critical that refuses a datagram, by ICMP. Silence is
// health, as most that listen on UDP do not answer what they do not understand.
func probeUDP(ctx context.Context, c *weft.Check) (weft.Health, string) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "udp", c.Target)
	if err != nil {
		return weft.Critical, err.Error()
	}
	defer conn.Close()
	if deadline, ok := ctx.Deadline(); ok {
		conn.SetDeadline(deadline) // fails on a closed connection only
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	if _, err := conn.Write([]byte(c.Body)); err != nil {
		return weft.Critical, err.Error()
	}
	n, err := conn.Read(make([]byte, maxOutput))
	switch {
	case err == nil:
		return weft.Passing, fmt.Sprintf("UDP %s: answered with %d bytes", c.Target, n)
	case ctx.Err() != nil || isTimeout(err):
		return weft.Passing, "UDP " + c.Target + ": sent, and not refused"
	}
	return weft.Critical, err.Error()
}

func isTimeout(err error) bool {
	timeout, ok := err.(net.Error)
	return ok && timeout.Timeout()
}

// Probes have clients of their own. A connection serves one probe: at intervals of
// seconds an idle one would only hide a listener that is gone. No proxy is asked,
// whatever the environment says: the target's own answer counts.
var (
	probeClient    = newProbeClient(&tls.Config{})
	insecureClient = newProbeClient(&tls.Config{InsecureSkipVerify: true})
)

func newProbeClient(config *tls.Config) *http.Client {
	return &http.Client{
		Transport: &http.Transport{
			DisableKeepAlives:      true,
			MaxResponseHeaderBytes: 64 << 10,
			TLSHandshakeTimeout:    defaultTimeout,
			TLSClientConfig:        config,
		},
	}
}

// clientOf returns a client of the caller's own.
func clientOf(c *weft.Check) http.Client {
	client := *probeClient
	switch {
	case c.TLSServerName != "":
		client = *newProbeClient(probeTLS(c)) // keeps no connection, so nothing stays behind
	case c.TLSSkipVerify:
		client = *insecureClient
	}
	if c.NoRedirects {
		client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	}
	return client
}

// probeHTTP finds 2xx passing, 429 warning, and everything else critical.
func probeHTTP(ctx context.Context, c *weft.Check) (weft.Health, string) {
	method := cmp.Or(c.Method, http.MethodGet)
	req, err := http.NewRequestWithContext(ctx, method, c.Target, strings.NewReader(c.Body))
	if err != nil {
		return weft.Critical, err.Error()
	}
	req.Header.Set("User-Agent", "weft-check/"+weft.Version)
	for name, values := range c.Header {
		req.Header[http.CanonicalHeaderKey(name)] = values
	}
	if host := req.Header.Get("Host"); host != "" {
		req.Host = host
	}
	client := clientOf(c)
	resp, err := client.Do(req)
	if err != nil {
		return weft.Critical, err.Error()
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxOutput))
	output := fmt.Sprintf("HTTP %s %s: %s Output: %s", method, c.Target, resp.Status, bytes.TrimSpace(body))
	switch {
	case err != nil:
		return weft.Critical, fmt.Sprintf("HTTP %s %s: %s, and then: %v", method, c.Target, resp.Status, err)
	case resp.StatusCode >= 200 && resp.StatusCode < 300:
		return weft.Passing, output
	case resp.StatusCode == http.StatusTooManyRequests:
		return weft.Warning, output
	}
	return weft.Critical, output
}

// firstLine is enough of an output for a log record.
func firstLine(s string) string {
	s, _, _ = strings.Cut(s, "\n")
	return s[:min(len(s), 200)]
}
