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

func setKey(b *testing.B, r *registry.Registry, key, value string) {
	o := op("set", key, value)
	if _, err := r.Transact(b.Context(), registry.TxnRequest{Ops: []registry.Op{{Key: &o}}}); err != nil {
		b.Error(err)
	}
}

// BenchmarkSetKey: durable puts of 100 bytes, by 64 writers at a time and by one,
// among 10,000 keys.
func BenchmarkSetKey(b *testing.B) {
	value := fmt.Sprintf("%0100d", 0)
	for _, writers := range []int{1, 64} {
		b.Run(fmt.Sprintf("writers=%d", writers), func(b *testing.B) {
			r := open(b)
			var next atomic.Int64
			done := make(chan bool)
			b.ReportAllocs()
			b.ResetTimer()
			for range writers {
				go func() {
					for i := next.Add(1); i <= int64(b.N); i = next.Add(1) {
						setKey(b, r, "dir-"+strconv.Itoa(int(i)%100)+"/key-"+strconv.Itoa(int(i)%10000), value+strconv.Itoa(int(i)))
					}
					done <- true
				}()
			}
			for range writers {
				<-done
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "puts/s")
		})
	}
}

func BenchmarkKey(b *testing.B) {
	r := open(b)
	setKey(b, r, "dir/key", "value")
	b.ReportAllocs()
	b.RunParallel(func(p *testing.PB) {
		for p.Next() {
			if e, _ := r.Key(registry.KV, "dir/key"); e == nil {
				b.Fail()
			}
		}
	})
}

// BenchmarkKeysIndex: the index of a prefix that has a thousand keys.
func BenchmarkKeysIndex(b *testing.B) {
	r := open(b)
	for i := range 1000 {
		setKey(b, r, "dir/"+strconv.Itoa(i), "")
	}
	b.ReportAllocs()
	for b.Loop() {
		r.Wait(b.Context(), registry.KeysTopic(registry.KV, "dir/"), 0)
	}
}

func BenchmarkRenewSession(b *testing.B) {
	r := open(b)
	s := session(b, r, registry.Session{TTL: weft.Duration(time.Hour)})
	b.ReportAllocs()
	for b.Loop() {
		if s, err := r.RenewSession(b.Context(), s.ID); s == nil || err != nil {
			b.Fatal(err)
		}
	}
}
