package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/weftmesh/weft/registry"
)

func runScale(ctx context.Context, o options) error {
	o.dir = filepath.Join(o.dir, "scale")
	if err := self(ctx, o, "fill"); err != nil {
		return err
	}
	return self(ctx, o, "serve")
}

// fill makes the catalogue.
func fill(ctx context.Context, o options) error {
	s, err := open(ctx, o)
	if err != nil {
		return err
	}
	defer s.close()
	if err := s.addNodes(ctx, o); err != nil {
		return err
	}
	began := time.Now()
	_, err = repeat(o.clients, o.instances, time.Hour, func(i int) error {
		_, err := s.registry.Register(ctx, instance(o, i))
		return err
	})
	if err != nil {
		return err
	}
	rss, anon, err := memory()
	fmt.Printf("%-28s %d instances in %d services registered in %.1f s; the process has %d MB, %d MB of them no file's\n",
		"filled", o.instances, o.services, time.Since(began).Seconds(), rss>>20, anon>>20)
	return err
}

// measureScale starts cold, and lets watchers wait.
func measureScale(ctx context.Context, o options) error {
	s, err := open(ctx, o)
	if err != nil {
		return err
	}
	defer s.close()
	cpu, err := cpuTime(0)
	if err != nil {
		return err
	}
	names, _ := s.registry.ServiceNames()
	total := 0
	for _, n := range names {
		list, _ := s.registry.Endpoints(n)
		total += len(list)
	}
	rss, anon, err := memory()
	if err != nil {
		return err
	}
	fmt.Printf("%-28s %.2f s until it serves %d services with %d endpoints, %.2f s of them etcd's own; %.2f s of processor time\n",
		"cold start", s.open.Seconds(), len(names), total, s.storeOpen.Seconds(), cpu.Seconds())
	fmt.Printf("%-28s %d MB resident, %d MB of them no file's\n", "memory after the start", rss>>20, anon>>20)
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	fmt.Printf("%-28s %d MB live on the heap, %d MB got from the system\n", "", m.HeapAlloc>>20, m.Sys>>20)
	if err := heapProfile(o); err != nil {
		return err
	}
	if err := measureWatchers(ctx, o, s.registry); err != nil {
		return err
	}
	if err := measureSpurious(ctx, o, s.registry); err != nil {
		return err
	}
	rss, anon, err = memory()
	fmt.Printf("%-28s %d MB resident, %d MB of them no file's\n", "memory at the end", rss>>20, anon>>20)
	return err
}

// heapProfile writes what is live beside the processor profile, when that is asked for.
func heapProfile(o options) error {
	if o.profile == "" {
		return nil
	}
	f, err := os.Create(o.profile + ".heap")
	if err != nil {
		return err
	}
	return errors.Join(pprof.Lookup("heap").WriteTo(f, 0), f.Close())
}

// change makes a service different.
func change(ctx context.Context, o options, r *registry.Registry, i, round int) error {
	in := instance(o, i)
	in.Port = 1000 + round%60000
	_, err := r.Register(ctx, in)
	return err
}

// measureWatchers blocks watchers on one service, and changes it.
func measureWatchers(ctx context.Context, o options, r *registry.Registry) error {
	const rounds = 10
	topic := registry.ServiceTopic(instance(o, 0).Service)
	for round := range rounds {
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		seen := make([]time.Time, o.watchers)
		index := r.Wait(ctx, topic, 0)
		var waiting, work sync.WaitGroup
		waiting.Add(o.watchers)
		for i := range seen {
			work.Go(func() {
				waiting.Done()
				r.Wait(ctx, topic, index)
				seen[i] = time.Now()
			})
		}
		waiting.Wait()
		time.Sleep(200 * time.Millisecond) // until all of them wait, and not only run
		runtime.GC()
		runtime.ReadMemStats(&after)
		began := time.Now()
		if err := change(ctx, o, r, 0, round); err != nil {
			return err
		}
		durable := time.Since(began)
		work.Wait()
		if round == 0 {
			each := (int64(after.HeapAlloc+after.StackInuse) - int64(before.HeapAlloc+before.StackInuse)) / int64(o.watchers)
			fmt.Printf("%-28s %d bytes of heap and stack each\n", "idle watchers", each)
		}
		var delays []time.Duration
		for _, t := range seen {
			delays = append(delays, t.Sub(began))
		}
		slices.Sort(delays)
		fmt.Printf("%-28s p50 %s, p99 %s, last %s after the change began; it was durable and told to its author after %s\n",
			fmt.Sprintf("change to %d watchers", o.watchers), round3(delays[len(delays)/2]), round3(delays[len(delays)*99/100]),
			round3(delays[len(delays)-1]), round3(durable))
	}
	return nil
}

func round3(d time.Duration) time.Duration { return d.Round(10 * time.Microsecond) }

// measureSpurious lets watchers wait for the first half of the services while the
// second half changes a thousand times a second.
func measureSpurious(ctx context.Context, o options, r *registry.Registry) error {
	half := o.services / 2
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	var woken, changes atomic.Int64
	var work sync.WaitGroup
	for i := range o.watchers {
		topic := registry.ServiceTopic(instance(o, i%half).Service)
		index := r.Wait(ctx, topic, 0)
		work.Go(func() {
			r.Wait(ctx, topic, index)
			if ctx.Err() == nil {
				woken.Add(1)
			}
		})
	}
	tick := time.NewTicker(time.Second / 1000)
	defer tick.Stop()
	var delays []time.Duration
	var mu sync.Mutex
	var writers sync.WaitGroup
	var failed atomic.Value
	for round := range int(o.length.Seconds() * 1000) {
		<-tick.C
		writers.Go(func() {
			began := time.Now()
			if err := change(ctx, o, r, half+rand.IntN(o.services-half), round); err != nil {
				failed.Store(err)
				return
			}
			took := time.Since(began)
			changes.Add(1)
			mu.Lock()
			delays = append(delays, took)
			mu.Unlock()
		})
	}
	writers.Wait()
	if err, ok := failed.Load().(error); ok {
		return err
	}
	spurious := woken.Load()
	stop()
	work.Wait()
	slices.Sort(delays)
	fmt.Printf("%-28s %d of %d watchers woken by %d changes of other services in %s; a change took p50 %s, p99 %s\n",
		"changes elsewhere", spurious, o.watchers, changes.Load(), o.length,
		round3(delays[len(delays)/2]), round3(delays[len(delays)*99/100]))
	return nil
}
