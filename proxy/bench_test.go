package proxy

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"testing"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/telemetry/trace"
)

// What a request costs with everything around it, client and application included:
// the profile for the compiler is taken from these (make pgo). Against other
// proxies it is measured by bench/.

func benchMesh(b *testing.B, p weft.Protocol, address string) *mesh {
	m := &mesh{t: nil, proxy: New(Config{Self: weft.NewServiceName("", "caller"), Spans: trace.NewRecorder(64), Sample: trace.NewSampler(0.01)})}
	b.Cleanup(m.proxy.Close)
	table := &weft.RouteTable{Host: "shop", Rules: []weft.Rule{{Name: "http[0]", Destinations: []weft.Destination{{Service: shop}}, Retry: weft.DefaultRetry}}}
	if err := table.Complete(); err != nil {
		b.Fatal(err)
	}
	svc := weft.Service{Name: shop, Endpoints: []weft.Endpoint{{ID: "a", Address: address, Weight: 1, Protocol: p}}}
	m.proxy.Update(&weft.Snapshot{Version: 1, Hosts: map[string]*weft.RouteTable{"shop": table},
		Services: map[weft.ServiceName]*weft.Service{shop: &svc}})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	go func() { _ = m.proxy.Serve(ln, &Listener{Direction: Outbound, Host: "shop"}) }()
	m.addr = ln.Addr().String()
	return m
}

func BenchmarkHopHTTP1(b *testing.B) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { ln.Close() })
	go func() {
		answer := []byte("HTTP/1.1 200 OK\r\nServer: x\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\r\nhello")
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				var in [4096]byte
				for {
					if _, err := c.Read(in[:]); err != nil {
						return
					}
					if _, err := c.Write(answer); err != nil {
						return
					}
				}
			}()
		}
	}()
	m := benchMesh(b, weft.HTTP, ln.Addr().String())
	b.SetParallelism(16)
	b.RunParallel(func(pb *testing.PB) {
		c, err := net.Dial("tcp", m.addr)
		if err != nil {
			b.Error(err)
			return
		}
		defer c.Close()
		r := bufio.NewReaderSize(c, 4096)
		request := []byte("GET /api/orders/1?x=y HTTP/1.1\r\nHost: shop\r\nUser-Agent: bench\r\nAccept: */*\r\n\r\n")
		for pb.Next() {
			if _, err := c.Write(request); err != nil {
				b.Error(err)
				return
			}
			skipHead(r)
			if _, err := r.Discard(5); err != nil {
				b.Error(err)
				return
			}
		}
	})
}

func BenchmarkHopHTTP2(b *testing.B) {
	var p http.Protocols
	p.SetUnencryptedHTTP2(true)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	app := &http.Server{Protocols: &p, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, "hello") })}
	go func() { _ = app.Serve(ln) }()
	b.Cleanup(func() { app.Close() })
	m := benchMesh(b, weft.HTTP2, ln.Addr().String())
	tr := &http.Transport{Protocols: &p}
	b.Cleanup(tr.CloseIdleConnections)
	client := &http.Client{Transport: tr}
	b.SetParallelism(16)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			resp, err := client.Get("http://" + m.addr + "/api/orders/1")
			if err != nil {
				b.Error(err)
				return
			}
			_, _ = io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
		}
	})
}
