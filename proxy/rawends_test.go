package proxy_test

import (
	"bufio"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"syscall"
	"testing"
	"time"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/ca"
	"github.com/weftmesh/weft/proxy"
)

// rawDoor is the outbound port of a caller for bytes to inventory-service at an
// endpoint.
func rawDoor(t *testing.T, a *ca.Authority, endpoint string) string {
	t.Helper()
	inventory := weft.NewServiceName("", "inventory-service")
	creds := credentials(t, a, "caller")
	p := proxy.New(proxy.Config{Self: weft.NewServiceName("", "caller"), ClientTLS: creds.DialTLS})
	table := &weft.RouteTable{Host: "inventory-service", TCP: []weft.RawRule{{Name: "default", Destinations: []weft.Destination{{Service: inventory}}}}}
	if err := table.Complete(); err != nil {
		t.Fatal(err)
	}
	p.Update(&weft.Snapshot{Hosts: map[string]*weft.RouteTable{"inventory-service": table},
		Services: map[weft.ServiceName]*weft.Service{inventory: {Name: inventory, Endpoints: []weft.Endpoint{{
			ID: "one", Address: endpoint, Weight: 1, Protocol: weft.TCP, Identity: weft.NewIdentity(a.TrustDomain(), "default", "inventory-service")}}}}})
	return serve(t, p, &proxy.Listener{Direction: proxy.Outbound, Host: "inventory-service"})
}

// accept serves every connection to a new port.
func accept(t *testing.T, handle func(*net.TCPConn)) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			_ = c.SetDeadline(time.Now().Add(10 * time.Second))
			handle(c.(*net.TCPConn))
			_ = c.Close()
		}
	}()
	t.Cleanup(func() { _ = ln.Close(); <-done })
	return ln.Addr().String()
}

// hearBytes says hello and reads to the end. A reset may come so early that it is
// seen by who connects, or writes.
func hearBytes(address string) (string, error) {
	c, err := net.Dial("tcp", address)
	if err != nil {
		return "", err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(c, "hello\n"); err != nil {
		return "", err
	}
	b, err := io.ReadAll(c)
	return string(b), err
}

// A sidecar that is killed ends its connections without a word: what it said was not
// all, and the caller must not take it for that.
func TestKilledSidecarIsNoEnd(t *testing.T) {
	a := authority(t, "cluster.local")
	config := credentials(t, a, "inventory-service").ServerTLS(proxy.Protocols...)
	for name, farewell := range map[string]bool{"killed": false, "ended": true} {
		address := rawDoor(t, a, accept(t, func(c *net.TCPConn) {
			secured := tls.Server(c, config)
			if _, err := bufio.NewReader(secured).ReadString('\n'); err != nil {
				return
			}
			_, _ = io.WriteString(secured, "half")
			if farewell {
				_ = secured.CloseWrite()
			}
			_ = c.CloseWrite()
			_, _ = io.Copy(io.Discard, c) // so that it is no reset that tells
		}))
		got, err := hearBytes(address)
		if got != "half" && (farewell || got != "") || farewell != (err == nil) || !farewell && !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%s: %q, then %v", name, got, err)
		}
	}
}

// An application that cannot be reached has not ended: the caller's connection is
// reset, through both sidecars.
func TestDeadApplicationResetsBytes(t *testing.T) {
	a := authority(t, "cluster.local")
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	dead := ln.Addr().String()
	_ = ln.Close()
	got, err := hearBytes(rawDoor(t, a, sidecar(t, a, dead, nil, nil)))
	if got != "" || !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
		t.Errorf("%q, then %v", got, err)
	}
}
