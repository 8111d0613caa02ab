package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"

	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/coremain"
	_ "github.com/coredns/coredns/plugin/bind"
	_ "github.com/coredns/coredns/plugin/file"
	_ "github.com/coredns/coredns/plugin/loadbalance"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/registry"
	"github.com/weftmesh/weft/registry/dns"
	"github.com/weftmesh/weft/store"
)

func recordAddress(i int) string { return fmt.Sprintf("10.0.0.%d", i+1) }

// serveWeft serves a registry with ten instances until its standard input ends.
func serveWeft() error {
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "weft-bench-dns")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	st, err := store.Open(ctx, store.Config{Dir: dir})
	if err != nil {
		return err
	}
	defer st.Close()
	r, err := registry.Open(ctx, registry.Config{Store: st, Node: weft.Node{Name: "bench", Address: "127.0.0.1"}})
	if err != nil {
		return err
	}
	defer r.Close()
	for i := range records {
		in := weft.Instance{ID: fmt.Sprint(i), Service: weft.NewServiceName("", "web"), Address: recordAddress(i), Port: 80}
		if _, err := r.Register(ctx, in); err != nil {
			return err
		}
	}
	packet, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return err
	}
	s := dns.New(r, dns.Config{})
	served := make(chan error, 1)
	go func() { served <- s.Serve(packet, listener) }()
	fmt.Println("serving", packet.LocalAddr())
	io.Copy(io.Discard, os.Stdin)
	if err := s.Close(); err != nil {
		return err
	}
	return <-served
}

// serveCoreDNS serves a zone file with ten records until its standard input ends.
func serveCoreDNS() error {
	dir, err := os.MkdirTemp("", "coredns-bench-dns")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	free, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		return err
	}
	port := free.LocalAddr().(*net.UDPAddr).Port
	free.Close()
	var zone strings.Builder
	zone.WriteString("$TTL 0\n@ IN SOA ns.consul. postmaster.consul. 1 3600 600 86400 0\n@ IN NS ns.consul.\nns IN A 127.0.0.1\n")
	for i := range records {
		fmt.Fprintf(&zone, "%s IN A %s\n", name, recordAddress(i))
	}
	file := filepath.Join(dir, "zone")
	if err := os.WriteFile(file, []byte(zone.String()), 0o600); err != nil {
		return err
	}
	corefile := filepath.Join(dir, "Corefile")
	text := fmt.Sprintf("consul:%d {\n bind 127.0.0.1\n loadbalance\n file %s\n}\n", port, file)
	if err := os.WriteFile(corefile, []byte(text), 0o600); err != nil {
		return err
	}
	dnsserver.Directives = []string{"bind", "loadbalance", "file"}
	os.Args = []string{"coredns", "-conf", corefile, "-quiet"}
	go coremain.Run()
	if err := answering(port); err != nil {
		return err
	}
	fmt.Printf("serving 127.0.0.1:%d\n", port)
	io.Copy(io.Discard, os.Stdin)
	return nil
}
