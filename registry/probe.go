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

// probe asks a check's target, and returns what it found with a text for people.
func probe(ctx context.Context, c *weft.Check) (weft.Health, string) {
	if c.Kind == weft.TCPCheck {
		return probeTCP(ctx, c.Target)
	}
	return probeHTTP(ctx, c)
}

func probeTCP(ctx context.Context, target string) (weft.Health, string) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", target)
	if err != nil {
		return weft.Critical, err.Error()
	}
	conn.Close() // nothing was written
	return weft.Passing, "TCP connect " + target + ": Success"
}

// Probes have clients of their own. A connection serves one probe: at intervals of
// seconds an idle one would only hide a listener that is gone. No proxy is asked,
// whatever the environment says: the target's own answer counts.
var (
	probeClient    = newProbeClient(false)
	insecureClient = newProbeClient(true)
)

func newProbeClient(skipVerify bool) *http.Client {
	return &http.Client{
		Transport: &http.Transport{
			DisableKeepAlives:      true,
			MaxResponseHeaderBytes: 64 << 10,
			TLSHandshakeTimeout:    defaultTimeout,
			TLSClientConfig:        &tls.Config{InsecureSkipVerify: skipVerify},
		},
	}
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
	client := *probeClient
	if c.TLSSkipVerify {
		client = *insecureClient
	}
	if c.NoRedirects {
		client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	}
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
