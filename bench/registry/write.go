package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/registry"
	"github.com/weftmesh/weft/store"
)

func runWrites(ctx context.Context, o options) error {
	dir := o.dir
	for i := range o.rounds {
		for _, child := range []string{"register", "renew"} {
			o.dir = filepath.Join(dir, fmt.Sprintf("%s-%d", child, i))
			if err := self(ctx, o, child); err != nil {
				return err
			}
		}
		o.dir = filepath.Join(dir, fmt.Sprintf("etcd-%d", i))
		if err := measureEtcd(ctx, o); err != nil {
			return err
		}
	}
	return nil
}

// instance of a service, as an application registers it.
func instance(o options, i int) weft.Instance {
	return weft.Instance{
		ID: "instance-" + strconv.Itoa(i), Service: weft.NewServiceName("", "service-"+strconv.Itoa(i%o.services)),
		Node: nodeName(o, i), Address: fmt.Sprintf("10.%d.%d.%d", i>>16&255, i>>8&255, i&255), Port: 8080, Tags: []string{"http"},
		Labels: map[string]string{"version": "v1", "app": "service-" + strconv.Itoa(i%o.services)},
		Checks: []weft.Check{{Kind: weft.LeaseCheck, TTL: weft.Duration(time.Hour), Status: weft.Passing}},
	}
}

const nodes = 1000

func nodeName(_ options, i int) string { return "node-" + strconv.Itoa(i%nodes) }

// server is weft's registry in this process.
type server struct {
	store           *store.Store
	registry        *registry.Registry
	storeOpen, open time.Duration // of the store alone, and of both
}

func open(ctx context.Context, o options) (s server, err error) {
	began := time.Now()
	if s.store, err = store.Open(ctx, store.Config{Dir: filepath.Join(o.dir, "weft")}); err != nil {
		return s, err
	}
	s.storeOpen = time.Since(began)
	s.registry, err = registry.Open(ctx, registry.Config{Store: s.store, Node: weft.Node{Name: "server", Address: "127.0.0.1"}})
	s.open = time.Since(began)
	return s, err
}

func (s server) close() error { return errors.Join(s.registry.Close(), s.store.Close()) }

func (s server) addNodes(ctx context.Context, o options) error {
	_, err := repeat(o.clients, nodes, time.Hour, func(i int) error {
		_, err := s.registry.RegisterNode(ctx, weft.Node{Name: nodeName(o, i), Address: "10.0.0.1"})
		return err
	})
	return err
}

// repeat calls do with 0, 1, 2, … from so many goroutines until the time is over or
// there were most of them, and returns how many there were.
func repeat(clients, most int, length time.Duration, do func(i int) error) (int, error) {
	var next, done atomic.Int64
	var work sync.WaitGroup
	var failed error
	var once sync.Once
	end := time.Now().Add(length)
	for range clients {
		work.Go(func() {
			for time.Now().Before(end) {
				i := int(next.Add(1) - 1)
				if i >= most {
					return
				}
				if err := do(i); err != nil {
					once.Do(func() { failed = err })
					return
				}
				done.Add(1)
			}
		})
	}
	work.Wait()
	return int(done.Load()), failed
}

// measure prints the rate of do, and the processor time that each took.
func measure(o options, what string, pid int, do func(i int) error) error {
	used := func() (sum time.Duration, err error) {
		if sum, err = cpuTime(0); err == nil && pid != 0 {
			var more time.Duration
			more, err = cpuTime(pid)
			sum += more
		}
		return sum, err
	}
	before, err := used()
	if err != nil {
		return err
	}
	began := time.Now()
	n, err := repeat(o.clients, 1<<40, o.length, do)
	if err != nil {
		return err
	}
	took := time.Since(began)
	after, err := used()
	if err != nil {
		return err
	}
	cpu := after - before
	fmt.Printf("%-28s %9.0f /s, %6.1f µs of processor time each, %.2f cores used, %d clients\n",
		what, float64(n)/took.Seconds(), float64(cpu.Microseconds())/float64(n), cpu.Seconds()/took.Seconds(), o.clients)
	return nil
}

func measureRegistrations(ctx context.Context, o options) error {
	s, err := open(ctx, o)
	if err != nil {
		return err
	}
	defer s.close()
	if err := s.addNodes(ctx, o); err != nil {
		return err
	}
	return measure(o, "weft: registrations", 0, func(i int) error {
		_, err := s.registry.Register(ctx, instance(o, i))
		return err
	})
}

const leases = 20_000

func measureRenewals(ctx context.Context, o options) error {
	s, err := open(ctx, o)
	if err != nil {
		return err
	}
	defer s.close()
	if err := s.addNodes(ctx, o); err != nil {
		return err
	}
	var keys [leases]struct{ node, check string }
	_, err = repeat(o.clients, leases, time.Hour, func(i int) error {
		in := instance(o, i)
		keys[i].node, keys[i].check = in.Node, "service:"+in.ID
		_, err := s.registry.Register(ctx, in)
		return err
	})
	if err != nil {
		return err
	}
	return measure(o, "weft: renewals of leases", 0, func(i int) error {
		k := &keys[i%leases]
		return s.registry.Report(ctx, k.node, k.check, weft.Passing, "")
	})
}

// measureEtcd puts values of a registration's size into Debian's etcd.
func measureEtcd(ctx context.Context, o options) error {
	path, err := exec.LookPath("etcd")
	if err != nil {
		fmt.Println("etcd: not measured, as it is not installed (apt-get install etcd-server)")
		return nil
	}
	client, err := freeAddress()
	if err != nil {
		return err
	}
	peer, err := freeAddress()
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, path, "--data-dir", o.dir, "--listen-client-urls", client, "--advertise-client-urls", client,
		"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", "default="+peer,
		"--log-level", "error", "--quota-backend-bytes", strconv.Itoa(8<<30))
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	if err := cmd.Start(); err != nil {
		return err
	}
	defer func() {
		cmd.Process.Signal(syscall.SIGTERM)
		cmd.Wait()
		os.RemoveAll(o.dir)
	}()
	const connections = 16
	var conns [connections]*clientv3.Client
	for i := range conns {
		if conns[i], err = clientv3.New(clientv3.Config{Endpoints: []string{client}, DialTimeout: 10 * time.Second}); err != nil {
			return err
		}
		defer conns[i].Close()
	}
	ready, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if _, err := conns[0].Put(ready, "ready", ""); err != nil {
		return fmt.Errorf("etcd: %w", err)
	}
	return measure(o, "etcd: puts of the same size", cmd.Process.Pid, func(i int) error {
		value, err := json.Marshal(instance(o, i))
		if err != nil {
			return err
		}
		_, err = conns[i%connections].Put(ctx, "instances/"+strconv.Itoa(i), string(value))
		return err
	})
}

func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return "http://" + l.Addr().String(), l.Close()
}
