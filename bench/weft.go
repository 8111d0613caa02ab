package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"regexp"
	"strconv"
	"time"
)

// resources route what the gateway gets: two rules, of which the second fits.
const resources = `
apiVersion: networking.istio.io/v1beta1
kind: Gateway
metadata:
  name: bench
spec:
  servers:
    - port: {number: 80, name: http, protocol: HTTP}
      hosts: ["*"]
---
apiVersion: networking.istio.io/v1beta1
kind: VirtualService
metadata:
  name: bench
spec:
  hosts: ["*"]
  gateways: [bench]
  http:
    - match:
        - uri: {prefix: /elsewhere}
      route:
        - destination: {host: nobody}
    - match:
        - uri: {prefix: /api}
      route:
        - destination: {host: items}
`

// weftServer is the control plane that the proxies follow. It serves no request of
// the load, so it is not on their core.
type weftServer struct {
	api, consul, control string
	token                string // file
}

func (r *rig) startWeftServer(ctx context.Context) (*weftServer, error) {
	data := filepath.Join(r.dir, "data")
	args := []string{"server", "--data", data}
	for _, door := range []string{"api", "consul", "eureka", "dns", "control", "otlp-http", "otlp-grpc"} {
		args = append(args, "--"+door, "127.0.0.1:0")
	}
	p, err := r.start(r.cores.load, "weft-server", r.weft, args...)
	if err != nil {
		return nil, err
	}
	ready, err := p.ready(ctx)
	if err != nil {
		return nil, err
	}
	s := &weftServer{api: ready["api"], consul: ready["consul"], control: ready["control"], token: filepath.Join(data, "join-token")}
	file, err := r.write("resources.yaml", resources)
	if err != nil {
		return nil, err
	}
	_, err = r.output(ctx, r.cores.load, "weft-apply", r.weft, "apply", "--addr", s.api, "-f", file)
	return s, err
}

var readyLine = regexp.MustCompile(`(?m)^(\{.*"msg":"ready".*\})$`)

// ready waits for the log line by which a weft process says its addresses.
func (p *process) ready(ctx context.Context) (map[string]string, error) {
	m, err := p.printed(ctx, readyLine)
	if err != nil {
		return nil, err
	}
	var line map[string]any
	if err := json.Unmarshal([]byte(m[1]), &line); err != nil {
		return nil, fmt.Errorf("%s: ready line: %w", p.name, err)
	}
	addresses := map[string]string{}
	for key, value := range line {
		if text, ok := value.(string); ok {
			addresses[key] = text
		}
	}
	return addresses, nil
}

// proxyFlags are of every proxy: as by default, but for the access log, which the
// peers do not write either.
func (s *weftServer) proxyFlags() []string {
	return []string{"--control", s.control, "--token-file", s.token, "--access-log", "off"}
}

func (r *rig) startWeftGateway(ctx context.Context, s *weftServer) (*process, string, error) {
	p, err := r.start(r.cores.proxy, "weft-gateway", r.weft, append([]string{"gateway", "--name", "bench", "--http", "127.0.0.1:0", "--max-connections", "15000"}, s.proxyFlags()...)...)
	if err != nil {
		return nil, "", err
	}
	ready, err := p.ready(ctx)
	return p, ready["http"], err
}

// startWeft is the hop: a gateway before a plain instance that was registered
// through the Consul API.
func startWeft(ctx context.Context, r *rig, backend string) (*system, error) {
	return r.startWeftHop(ctx, backend, "http")
}

// startWeftH2 is the HTTP/2 hop.
func startWeftH2(ctx context.Context, r *rig, backend string) (*system, error) {
	return r.startWeftHop(ctx, backend, "http2")
}

func (r *rig) startWeftHop(ctx context.Context, backend, protocol string) (*system, error) {
	s, err := r.startWeftServer(ctx)
	if err != nil {
		return nil, err
	}
	if err := s.register(ctx, backend, protocol); err != nil {
		return nil, err
	}
	p, address, err := r.startWeftGateway(ctx, s)
	if err != nil {
		return nil, err
	}
	return &system{address: address, proxies: []*process{p}}, nil
}

// register says by the Consul API where the instance is and what it speaks, if that
// has to be said.
func (s *weftServer) register(ctx context.Context, backend, protocol string) error {
	host, port, err := net.SplitHostPort(backend)
	if err != nil {
		return err
	}
	number, err := strconv.Atoi(port)
	if err != nil {
		return err
	}
	service, err := json.Marshal(map[string]any{"ID": "items-1", "Name": "items", "Address": host, "Port": number,
		"Meta": map[string]string{"protocol": protocol}})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, "http://"+s.consul+"/v1/agent/service/register", bytes.NewReader(service))
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 4096)) // only to say why
		return fmt.Errorf("register the backend: %s: %s", resp.Status, text)
	}
	return nil
}

// startWeftPair is a gateway and, over mutual TLS, the sidecar of the same backend.
func startWeftPair(ctx context.Context, r *rig, backend string) (*system, error) {
	s, err := r.startWeftServer(ctx)
	if err != nil {
		return nil, err
	}
	_, port, err := net.SplitHostPort(backend)
	if err != nil {
		return nil, err
	}
	sidecar, err := r.start(r.cores.proxy, "weft-sidecar", r.weft, append([]string{"run", "--service", "items", "--port", port}, s.proxyFlags()...)...)
	if err != nil {
		return nil, err
	}
	ready, err := sidecar.ready(ctx)
	if err != nil {
		return nil, err
	}
	gateway, address, err := r.startWeftGateway(ctx, s)
	if err != nil {
		return nil, err
	}
	return &system{address: address, proxies: []*process{gateway, sidecar}, mtls: ready["inbound"]}, nil
}

// startWeftGRPCPair is two sidecars: the caller's, whose port stands for the
// service, and over mutual TLS the service's.
func startWeftGRPCPair(ctx context.Context, r *rig, backend string) (*system, error) {
	s, err := r.startWeftServer(ctx)
	if err != nil {
		return nil, err
	}
	_, port, err := net.SplitHostPort(backend)
	if err != nil {
		return nil, err
	}
	inner, err := r.start(r.cores.proxy, "weft-sidecar", r.weft, append([]string{"run", "--service", "items", "--port", port, "--protocol", "grpc"}, s.proxyFlags()...)...)
	if err != nil {
		return nil, err
	}
	ready, err := inner.ready(ctx)
	if err != nil {
		return nil, err
	}
	door, err := freePort()
	if err != nil {
		return nil, err
	}
	// The caller's application only has to be there: the backend is.
	outer, err := r.start(r.cores.proxy, "weft-caller", r.weft, append([]string{"run", "--service", "caller", "--port", port,
		"--upstream", fmt.Sprintf("items=%d", door)}, s.proxyFlags()...)...)
	if err != nil {
		return nil, err
	}
	if _, err := outer.ready(ctx); err != nil {
		return nil, err
	}
	return &system{address: fmt.Sprintf("127.0.0.1:%d", door), proxies: []*process{outer, inner}, mtls: ready["inbound"]}, nil
}
