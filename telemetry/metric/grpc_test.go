package metric

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"
)

func TestGRPCCallsByMethodAndStatus(t *testing.T) {
	r := New(0)
	c := r.GRPC("outbound", "order-service", "inventory-service")
	if c != r.GRPC("outbound", "order-service", "inventory-service") || c == r.GRPC("inbound", "order-service", "inventory-service") {
		t.Error("the same labels must give the same calls, others other ones")
	}
	for _, status := range []int{0, 0, 14, 16, 17, -1} {
		c.Observe("/shop.Inventory/Reserve", status, 3*time.Millisecond)
	}
	c.Observe("/shop.Inventory/Release", 0, time.Millisecond)
	c.Observe("/with/slash/Method", 5, time.Millisecond)
	r.GRPC("inbound", "", "order-service").Observe("/shop.Orders/Get", 0, time.Millisecond)

	const edge = " outbound order-service inventory-service "
	want := []string{
		"1 inbound  order-service shop.Orders Get 0",
		"1" + edge + "shop.Inventory Release 0",
		"2" + edge + "shop.Inventory Reserve 0", "1" + edge + "shop.Inventory Reserve 14",
		"1" + edge + "shop.Inventory Reserve 16", "2" + edge + "shop.Inventory Reserve other",
		"1" + edge + "with/slash Method 5",
	}
	total := familyOf(t, r, "weft_grpc_requests_total")
	if got := lines(total); !slices.Equal(got, want) {
		t.Errorf("calls:\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	var names []string
	for _, l := range total.Samples[0].Labels {
		names = append(names, l.Name)
	}
	if got := strings.Join(names, ","); got != "direction,source,destination,service,method,grpc_status" {
		t.Errorf("labels %s", got)
	}
	durations := familyOf(t, r, "weft_grpc_request_duration_seconds")
	if len(durations.Samples) != 4 {
		t.Fatalf("%d histograms, want one a method", len(durations.Samples))
	}
	for _, s := range durations.Samples {
		if len(s.Labels) != 5 {
			t.Errorf("labels %v", s.Labels)
		}
		if s.Labels[4].Value == "Reserve" && (s.Histogram.Count != 6 || s.Histogram.Sum < 0.0179 || s.Histogram.Sum > 0.0181) {
			t.Errorf("count %d, sum %v", s.Histogram.Count, s.Histogram.Sum)
		}
	}
	for _, f := range []Family{total, durations} {
		if problem := lint(f.Name, f.Help, f.Type, names); problem != "" {
			t.Errorf("%s: %s", f.Name, problem)
		}
	}
}

func TestWhatIsNoMethodIsOther(t *testing.T) {
	r := New(0)
	c := r.GRPC("outbound", "a", "b")
	for _, path := range []string{"", "/", "//", "/x", "/x/", "//x", "x/y", "/a b/c", "/a/b\n", "/a/\xff", "/a/" + strings.Repeat("x", maxPath)} {
		c.Observe(path, 0, 0)
	}
	c.Observe("/made.Up/Name", statusUnimplemented, 0)
	want := []string{"11 outbound a b other other 0", "1 outbound a b other other 12"}
	if got := lines(familyOf(t, r, "weft_grpc_requests_total")); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := familyOf(t, r, "weft_metric_series_folded_total").Samples[0].Value; got != 0 {
		t.Errorf("folded %v: no maximum was reached", got)
	}
	// A method that is known may be unimplemented by one instance.
	c.Observe("/shop.Orders/Get", 0, 0)
	c.Observe("/shop.Orders/Get", statusUnimplemented, 0)
	if got := lines(familyOf(t, r, "weft_grpc_requests_total")); !slices.Contains(got, "1 outbound a b shop.Orders Get 12") {
		t.Errorf("got %q", got)
	}
}

func TestMethodsBeyondTheMaximumAreFolded(t *testing.T) {
	t.Run("of one destination", func(t *testing.T) {
		r := New(0)
		c, quiet := r.GRPC("outbound", "a", "busy"), r.GRPC("outbound", "a", "quiet")
		for i := range maxMethods + 50 {
			c.Observe(fmt.Sprintf("/made.Up/M%d", i), 0, 0)
		}
		c.Observe("/made.Up/M0", 0, 0)
		quiet.Observe("/shop.Orders/Get", 0, 0)
		got := lines(familyOf(t, r, "weft_grpc_requests_total"))
		for _, want := range []string{"2 outbound a busy made.Up M0 0", "50 outbound a busy other other 0", "1 outbound a quiet shop.Orders Get 0"} {
			if !slices.Contains(got, want) {
				t.Errorf("%q is missing", want)
			}
		}
		if len(got) != maxMethods+2 {
			t.Errorf("%d series", len(got))
		}
		if got := familyOf(t, r, "weft_metric_series_folded_total").Samples[0].Value; got != 50 {
			t.Errorf("folded %v, want 50", got)
		}
	})
	t.Run("of the registry", func(t *testing.T) {
		r := New(3)
		for i := range 5 {
			c := r.GRPC("outbound", "a", fmt.Sprintf("service-%d", i))
			c.Observe("/s/One", 0, 0)
			c.Observe("/s/Two", 0, 0)
		}
		want := []string{
			"4 other other other other other 0",
			"1 outbound a service-0 s One 0", "1 outbound a service-0 s Two 0",
			"1 outbound a service-1 other other 0", "1 outbound a service-1 s One 0",
			"2 outbound a service-2 other other 0",
		}
		if got := lines(familyOf(t, r, "weft_grpc_requests_total")); !slices.Equal(got, want) {
			t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	})
}

func TestPathMayLieInABufferThatIsReused(t *testing.T) {
	r := New(0)
	c := r.GRPC("outbound", "a", "b")
	buf := []byte("/shop.Orders/Get")
	for _, name := range []string{"Get", "Put"} {
		copy(buf[len(buf)-3:], name)
		c.Observe(unsafe.String(&buf[0], len(buf)), 0, 0)
	}
	want := []string{"1 outbound a b shop.Orders Get 0", "1 outbound a b shop.Orders Put 0"}
	if got := lines(familyOf(t, r, "weft_grpc_requests_total")); !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
}

func TestGRPCObserveDoesNotAllocate(t *testing.T) {
	c := New(0).GRPC("outbound", "a", "b")
	for i := range maxMethods {
		c.Observe(fmt.Sprintf("/s/M%d", i), 0, 0)
	}
	if n := testing.AllocsPerRun(100, func() {
		c.Observe("/s/M7", 0, time.Millisecond)
		c.Observe("/s/new", 0, time.Millisecond)
		c.Observe("/s/new", statusUnimplemented, time.Millisecond)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestConcurrentGRPCObservers(t *testing.T) {
	const observers, each = 4, 2000
	r := New(0)
	var wg sync.WaitGroup
	for range observers {
		wg.Go(func() {
			for i := range each {
				r.GRPC("outbound", "a", "b").Observe(fmt.Sprintf("/s/M%d", i%(2*maxMethods)), i%20, 0)
			}
		})
	}
	wg.Go(func() {
		for range 50 {
			r.Gather()
		}
	})
	wg.Wait()
	var total float64
	methods := map[string]bool{}
	for _, s := range familyOf(t, r, "weft_grpc_requests_total").Samples {
		total += s.Value
		methods[s.Labels[4].Value] = true
	}
	if total != observers*each || len(methods) != maxMethods+1 {
		t.Errorf("%v calls of %d methods, want %d of %d", total, len(methods), observers*each, maxMethods+1)
	}
}

func BenchmarkGRPCObserve(b *testing.B) {
	c := New(0).GRPC("outbound", "order-service", "inventory-service")
	for i := range 50 {
		c.Observe(fmt.Sprintf("/shop.Inventory/Method%d", i), 0, 0)
	}
	b.ReportAllocs()
	for b.Loop() {
		c.Observe("/shop.Inventory/Method7", 0, 700*time.Microsecond)
	}
}
