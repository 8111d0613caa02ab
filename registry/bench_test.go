package registry_test

import (
	"fmt"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/registry"
)

func benchInstance(i int) weft.Instance {
	in := instance(fmt.Sprintf("service-%d", i%1000), "instance-"+strconv.Itoa(i))
	in.Checks = []weft.Check{{Kind: weft.TTLCheck, TTL: weft.Duration(time.Hour), Status: weft.Passing}}
	return in
}

// BenchmarkRegister: durable registrations of new instances, by 64 writers at a
// time and by one.
func BenchmarkRegister(b *testing.B) {
	for _, writers := range []int{1, 64} {
		b.Run(fmt.Sprintf("writers=%d", writers), func(b *testing.B) {
			r := open(b)
			var next atomic.Int64
			done := make(chan error)
			b.ResetTimer()
			for range writers {
				go func() {
					for {
						i := int(next.Add(1))
						if i > b.N {
							done <- nil
							return
						}
						if _, err := r.Register(b.Context(), benchInstance(i)); err != nil {
							done <- err
							return
						}
					}
				}()
			}
			for range writers {
				if err := <-done; err != nil {
					b.Error(err)
				}
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "registrations/s")
		})
	}
}

func BenchmarkRegisterSame(b *testing.B) {
	r := open(b)
	in := benchInstance(1)
	for range b.N {
		register(b, r, in)
	}
}

func BenchmarkReportRenewal(b *testing.B) {
	r := open(b)
	register(b, r, benchInstance(1))
	b.ReportAllocs()
	for range b.N {
		if err := r.Report(b.Context(), "", "service:instance-1", weft.Passing, ""); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkEndpoints(b *testing.B) {
	r := open(b)
	for i := range 10 {
		register(b, r, instance("order", strconv.Itoa(i)))
	}
	b.ReportAllocs()
	b.RunParallel(func(p *testing.PB) {
		for p.Next() {
			if list, _ := r.Endpoints(service("order")); len(list) != 10 {
				b.Fail()
			}
		}
	})
}

// BenchmarkOpen: a restart with a large catalogue on disk.
func BenchmarkOpen(b *testing.B) {
	const instances = 50_000
	s := openStore(b, b.TempDir())
	r := openRegistry(b, s)
	var next atomic.Int64
	done := make(chan bool)
	for range 64 {
		go func() {
			for i := next.Add(1); i <= instances; i = next.Add(1) {
				register(b, r, benchInstance(int(i)))
			}
			done <- true
		}()
	}
	for range 64 {
		<-done
	}
	closeRegistry(b, r)
	b.ResetTimer()
	for range b.N {
		r, err := registry.Open(b.Context(), registry.Config{Store: s, Node: weft.Node{Name: ownNode, Address: "127.0.0.1"}})
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		closeRegistry(b, r)
		b.StartTimer()
	}
	b.ReportMetric(b.Elapsed().Seconds()/float64(b.N)*1e6/instances, "µs/instance")
}
