package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"runtime/pprof"
	"strings"
	"syscall"
	"time"
)

// options of a run.
type options struct {
	dir       string        // for data; removed afterwards
	length    time.Duration // of one measurement
	rounds    int
	clients   int
	services  int
	instances int
	watchers  int
	profile   string // of the processor, of a child
}

func main() {
	var o options
	var only, child string
	var seconds float64
	flag.StringVar(&only, "run", "", "`lane` to run: read, write or scale; all when empty")
	flag.Float64Var(&seconds, "seconds", 3, "`duration` of one measurement, in seconds")
	flag.IntVar(&o.rounds, "rounds", 3, "`number` of rounds, each of which is printed")
	flag.IntVar(&o.clients, "clients", 1024, "`number` of clients that write at a time")
	flag.IntVar(&o.services, "services", 1000, "`number` of services")
	flag.IntVar(&o.instances, "instances", 172_000, "`number` of instances")
	flag.IntVar(&o.watchers, "watchers", 10_000, "`number` of blocked watchers")
	flag.StringVar(&o.profile, "cpuprofile", "", "`file` for a processor profile of weft")
	flag.StringVar(&o.dir, "dir", "", "`directory` for the data; a temporary one when empty")
	flag.StringVar(&child, "child", "", "what to be; for children")
	flag.Parse()
	o.length = time.Duration(seconds * float64(time.Second))
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := run(ctx, o, only, child)
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench/registry:", err)
		stop()
		os.Exit(1)
	}
}

// children are the processes that this program starts of itself.
var children = map[string]func(context.Context, options) error{
	"register": measureRegistrations, "renew": measureRenewals,
	"fill": fill, "serve": measureScale,
}

func run(ctx context.Context, o options, only, child string) (err error) {
	if child != "" {
		return profiled(ctx, o, children[child])
	}
	if o.dir == "" {
		if o.dir, err = os.MkdirTemp("", "weft-bench-registry-"); err != nil {
			return err
		}
		defer os.RemoveAll(o.dir)
	}
	load, _ := os.ReadFile("/proc/loadavg")
	fmt.Printf("%d cores, %s, load average %s\n", runtime.NumCPU(), runtime.Version(), strings.TrimSpace(string(load)))
	if only == "" || only == "read" {
		if err := runReads(ctx, o); err != nil {
			return err
		}
	}
	if only == "" || only == "write" {
		if err := runWrites(ctx, o); err != nil {
			return err
		}
	}
	if only == "" || only == "scale" {
		return runScale(ctx, o)
	}
	return nil
}

func profiled(ctx context.Context, o options, what func(context.Context, options) error) error {
	if o.profile == "" {
		return what(ctx, o)
	}
	f, err := os.Create(o.profile)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := pprof.StartCPUProfile(f); err != nil {
		return err
	}
	defer pprof.StopCPUProfile()
	return what(ctx, o)
}
