package metric

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"
)

func familyOf(t *testing.T, r *Registry, name string) Family {
	t.Helper()
	for _, f := range r.Gather() {
		if f.Name == name {
			return f
		}
	}
	return Family{}
}

// line is a sample as "value a b c", its labels' values in order.
func line(s Sample) string {
	out := fmt.Sprint(s.Value)
	for _, l := range s.Labels {
		out += " " + l.Value
	}
	return out
}

func lines(f Family) (out []string) {
	for _, s := range f.Samples {
		out = append(out, line(s))
	}
	return out
}

func TestRequestsAndErrorsByCode(t *testing.T) {
	r := New(0)
	s := r.Requests("outbound", "order-service", "inventory-service", "v1")
	for _, code := range []int{200, 200, 404, 503, 500, 0, 599, 100} {
		s.Observe(code, time.Millisecond)
	}
	r.Requests("inbound", "", "order-service", "v2").Observe(201, time.Millisecond)

	const edge = " outbound order-service inventory-service v1 "
	want := []string{
		"1 inbound  order-service v2 201",
		"1" + edge + "0", "1" + edge + "100", "2" + edge + "200", "1" + edge + "404",
		"1" + edge + "500", "1" + edge + "503", "1" + edge + "599",
	}
	total := familyOf(t, r, "weft_requests_total")
	if got := lines(total); !slices.Equal(got, want) {
		t.Errorf("requests:\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	var names []string
	for _, l := range total.Samples[0].Labels {
		names = append(names, l.Name)
	}
	if got := strings.Join(names, ","); got != "direction,source,destination,version,code" || total.Type != TypeCounter {
		t.Errorf("labels %s, type %d", got, total.Type)
	}
	want = []string{"1" + edge + "0", "1" + edge + "500", "1" + edge + "503", "1" + edge + "599"}
	if got := lines(familyOf(t, r, "weft_request_errors_total")); !slices.Equal(got, want) {
		t.Errorf("errors:\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestCodesBeyondTheBoundAreCountedByClass(t *testing.T) {
	r := New(0)
	s := r.Requests("outbound", "a", "b", "")
	for code := 200; code < 200+exactCodes; code++ {
		s.Observe(code, 0)
	}
	for _, code := range []int{404, 410, 503, 101, 302, 226, 600, 99, -1, 0, 200} {
		s.Observe(code, 0)
	}
	got := map[string]float64{}
	for _, sample := range familyOf(t, r, "weft_requests_total").Samples {
		got[sample.Labels[4].Value] = sample.Value
	}
	for code, want := range map[string]float64{"200": 2, "211": 1, "1xx": 1, "2xx": 1, "3xx": 1, "4xx": 2, "5xx": 1, "0": 1, "other": 3, "404": 0} {
		if got[code] != want {
			t.Errorf("code %s: %v, want %v", code, got[code], want)
		}
	}
	if len(got) != exactCodes+len(classes) {
		t.Errorf("%d codes: %v", len(got), got)
	}
	var failed float64
	for _, sample := range familyOf(t, r, "weft_request_errors_total").Samples {
		failed += sample.Value
	}
	if failed != 5 { // 503 as 5xx, 0, and the three that are no codes
		t.Errorf("%v errors, want 5", failed)
	}
}

func TestDurationHistogram(t *testing.T) {
	r := New(0)
	s := r.Requests("outbound", "a", "b", "")
	for _, d := range []time.Duration{
		0, 100 * time.Microsecond, // the bound itself belongs to its bucket
		101 * time.Microsecond, 3 * time.Millisecond, 10 * time.Second, 11 * time.Second,
	} {
		s.Observe(200, d)
	}
	f := familyOf(t, r, "weft_request_duration_seconds")
	h := f.Samples[0].Histogram
	if f.Type != TypeHistogram || len(f.Samples[0].Labels) != 4 {
		t.Errorf("type %d, labels %v", f.Type, f.Samples[0].Labels)
	}
	want := map[float64]uint64{0.0001: 2, 0.00025: 3, 0.0025: 3, 0.005: 4, 5: 4, 10: 5}
	for _, b := range h.Buckets {
		if n, ok := want[b.UpperBound]; ok && n != b.Count {
			t.Errorf("up to %v s: %d, want %d", b.UpperBound, b.Count, n)
		}
		delete(want, b.UpperBound)
	}
	if len(want) > 0 {
		t.Errorf("buckets missing: %v", want)
	}
	if h.Count != 6 || math.Abs(h.Sum-21.003201) > 1e-9 {
		t.Errorf("count %d, sum %v", h.Count, h.Sum)
	}
	if !slices.IsSortedFunc(h.Buckets, func(a, b Bucket) int { return int(math.Copysign(1, a.UpperBound-b.UpperBound)) }) {
		t.Errorf("bounds do not ascend: %v", h.Buckets)
	}
}

func TestRequestsGivesTheSameSeries(t *testing.T) {
	r := New(0)
	buf := []byte("inventory-service")
	a := r.Requests("outbound", "a", unsafe.String(&buf[0], len(buf)), "v1")
	clear(buf) // a caller may reuse the bytes of its texts
	if b := r.Requests("outbound", "a", "inventory-service", "v1"); a != b {
		t.Error("the same labels gave another series")
	}
	if b := r.Requests("outbound", "a", "inventory-service", "v2"); a == b {
		t.Error("other labels gave the same series")
	}
}

func TestLabelSetsBeyondTheMaximumAreFolded(t *testing.T) {
	r := New(3)
	for i := range 10 {
		r.Requests("outbound", "a", fmt.Sprintf("service-%d", i), "v1").Observe(200, time.Millisecond)
	}
	r.Requests("outbound", "a", "service-0", "v1").Observe(200, time.Millisecond) // known: not folded
	want := []string{
		"7 other other other other 200",
		"2 outbound a service-0 v1 200", "1 outbound a service-1 v1 200", "1 outbound a service-2 v1 200",
	}
	if got := lines(familyOf(t, r, "weft_requests_total")); !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if got := familyOf(t, r, "weft_metric_series_folded_total").Samples[0].Value; got != 7 {
		t.Errorf("folded %v, want 7", got)
	}

	for i := range 5 {
		r.Counter("weft_denied_total", "Requests denied.", Label{"policy", fmt.Sprint(i)}).Add(1)
	}
	want = []string{"1 0", "1 1", "1 2", "2 other"}
	if got := lines(familyOf(t, r, "weft_denied_total")); !slices.Equal(got, want) {
		t.Errorf("counter: got %q, want %q", got, want)
	}
}

func TestCountersAndGauges(t *testing.T) {
	r := New(0)
	reason := func(v string) Label { return Label{"reason", v} }
	r.Counter("weft_refused_total", "Connections refused.", reason("tls")).Add(2)
	r.Counter("weft_refused_total", "Connections refused.", reason("limit")).Add(1)
	r.Counter("weft_refused_total", "Connections refused.", reason("tls")).Add(1)
	g := r.Gauge("weft_connections", "Open connections.")
	g.Add(3)
	g.Add(-1)
	depth := 5.0
	r.GaugeFunc("weft_queue_depth", "Spans waiting.", func() float64 { return depth })
	r.CounterFunc("weft_spans_dropped_total", "Spans that found the ring full.", func() float64 { return 9 })
	for name, want := range map[string][]string{
		"weft_refused_total":       {"1 limit", "3 tls"},
		"weft_connections":         {"2"},
		"weft_queue_depth":         {"5"},
		"weft_spans_dropped_total": {"9"},
	} {
		if got := lines(familyOf(t, r, name)); !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	g.Set(0.5)
	depth = 6
	if g.Value() != 0.5 || familyOf(t, r, "weft_queue_depth").Samples[0].Value != 6 {
		t.Error("gauges must show the value of now")
	}
	var names []string
	for _, f := range r.Gather() {
		names = append(names, f.Name)
	}
	if !slices.IsSorted(names) {
		t.Errorf("families are not sorted: %v", names)
	}
}

// Lints what the package itself exposes; what others register is linted when
// they do.
func TestOwnNamesAndHelpPassTheLint(t *testing.T) {
	r := New(1)
	r.Requests("outbound", "a", "b", "v1").Observe(500, 0)
	families := r.Gather()
	if len(families) != 4 {
		t.Fatalf("%d families, want 4", len(families))
	}
	for _, f := range families {
		for _, s := range f.Samples {
			var labels []string
			for _, l := range s.Labels {
				labels = append(labels, l.Name)
			}
			if problem := lint(f.Name, f.Help, f.Type, labels); problem != "" {
				t.Errorf("%s: %s", f.Name, problem)
			}
		}
	}
}

func TestLint(t *testing.T) {
	for _, c := range []struct {
		name, help string
		typ        Type
		labels     []string
		problem    string // part of it; "" is none
	}{
		{"weft_denied_total", "Denied.", TypeCounter, []string{"policy"}, ""},
		{"weft_open", "Open.", TypeGauge, nil, ""},
		{"denied_total", "Denied.", TypeCounter, nil, "weft_"},
		{"weft_Denied_total", "Denied.", TypeCounter, nil, "a-z"},
		{"weft__denied_total", "Denied.", TypeCounter, nil, "single _"},
		{"weft_denied", "Denied.", TypeCounter, nil, "_total"},
		{"weft_open_total", "Open.", TypeGauge, nil, "_total"},
		{"weft_wait_ms", "Wait.", TypeGauge, nil, "base units"},
		{"weft_wait_milliseconds_total", "Wait.", TypeCounter, nil, "base units"},
		{"weft_open", "", TypeGauge, nil, "sentence"},
		{"weft_open", "Open", TypeGauge, nil, "sentence"},
		{"weft_open", "Open.", TypeGauge, []string{"le"}, `"le"`},
		{"weft_open", "Open.", TypeGauge, []string{"a", "a"}, `"a"`},
		{"weft_open", "Open.", TypeGauge, []string{"Zone"}, `"Zone"`},
		{"weft_open", "Open.", TypeGauge, []string{"__zone"}, `"__zone"`},
		{"weft_open", "Open.", TypeGauge, []string{""}, `""`},
	} {
		got := lint(c.name, c.help, c.typ, c.labels)
		if (got == "") != (c.problem == "") || !strings.Contains(got, c.problem) {
			t.Errorf("lint(%q, %q, %v) = %q, want %q", c.name, c.help, c.labels, got, c.problem)
		}
	}
}

func TestMistakesInTheProgramPanic(t *testing.T) {
	for name, register := range map[string]func(*Registry){
		"bad name":          func(r *Registry) { r.Counter("requests", "Requests.") },
		"other help":        func(r *Registry) { r.Gauge("weft_open", "Opened.") },
		"other label names": func(r *Registry) { r.Gauge("weft_open", "Open.", Label{"zone", "a"}) },
	} {
		t.Run(name, func(t *testing.T) {
			r := New(0)
			r.Gauge("weft_open", "Open.")
			defer func() {
				if recover() == nil {
					t.Error("was accepted")
				}
			}()
			register(r)
		})
	}
}

func TestObserveDoesNotAllocate(t *testing.T) {
	s := New(0).Requests("outbound", "a", "b", "v1")
	c := New(0).Counter("weft_refused_total", "Refused.")
	if n := testing.AllocsPerRun(100, func() { s.Observe(200, time.Millisecond); s.Observe(503, time.Hour); c.Add(1) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// Nothing is lost when many observe codes that are new to the series, while
// somebody gathers.
func TestConcurrentObservers(t *testing.T) {
	const observers, each = 4, 2000
	r := New(0)
	var wg sync.WaitGroup
	for range observers {
		wg.Go(func() {
			for i := range each {
				s := r.Requests("outbound", "a", "b", "v1")
				s.Observe(200+i%(2*exactCodes), time.Duration(i)*time.Microsecond)
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
	seen := map[string]bool{}
	for _, s := range familyOf(t, r, "weft_requests_total").Samples {
		total += s.Value
		if seen[line(s)[len(fmt.Sprint(s.Value)):]] {
			t.Errorf("two samples with the same labels: %v", s.Labels)
		}
		seen[line(s)[len(fmt.Sprint(s.Value)):]] = true
	}
	h := familyOf(t, r, "weft_request_duration_seconds").Samples[0].Histogram
	if total != observers*each || h.Count != observers*each {
		t.Errorf("requests %v, durations %d, want %d", total, h.Count, observers*each)
	}
}

func BenchmarkObserve(b *testing.B) {
	s := New(0).Requests("outbound", "order-service", "inventory-service", "v1")
	b.ReportAllocs()
	for b.Loop() {
		s.Observe(200, 700*time.Microsecond)
	}
}
