// Package metric counts what a weft process does: requests, errors and
// durations for each source, destination, version and code, and process-wide
// counters and gauges. Label sets are bounded, observing is atomics only, and
// readers gather plain values: the exposition format is somebody else's.
//
//	reg := metric.New(0)
//	series := reg.Requests("outbound", "order-service", "inventory-service", "v1") // once per upstream
//	series.Observe(200, took)                                                       // per request
//	calls := reg.GRPC("outbound", "order-service", "inventory-service")             // once per upstream
//	calls.Observe("/shop.Inventory/Reserve", 0, took)                               // per gRPC call
//	denied := reg.Counter("weft_denied_total", "Requests denied.", metric.Label{Name: "policy", Value: "…"})
//	denied.Add(1)
//
// What Requests gives is exposed as
//
//	weft_requests_total{direction,source,destination,version,code}
//	weft_request_errors_total{…}                  code 0 (no answer came) and from 500
//	weft_request_duration_seconds{direction,source,destination,version}   histogram
//
// and what GRPC gives as
//
//	weft_grpc_requests_total{direction,source,destination,service,method,grpc_status}
//	weft_grpc_request_duration_seconds{direction,source,destination,service,method}   histogram
//
// When the registry holds its maximum of label sets, further ones are counted
// together in one whose every label is "other", and
// weft_metric_series_folded_total says how often that happened.
package metric

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
)

// Label is one name and value of a label set.
type Label struct{ Name, Value string }

// Type is a family's type.
type Type uint8

const (
	TypeCounter Type = iota
	TypeGauge
	TypeHistogram
)

// Family is all label sets of one metric as they were gathered.
type Family struct {
	Name    string
	Help    string
	Type    Type
	Samples []Sample // sorted by labels
}

// Sample is the value of one label set.
type Sample struct {
	Labels    []Label // all samples of a family have the same names in the same order
	Value     float64 // of a counter or a gauge
	Histogram *Histogram
}

// Histogram is a gathered histogram.
type Histogram struct {
	Buckets []Bucket // without the last, unbounded one; its count is Count
	Count   uint64
	Sum     float64 // seconds
}

// Bucket counts the observations up to and including UpperBound, cumulatively.
type Bucket struct {
	UpperBound float64 // seconds
	Count      uint64
}

// DefaultMaxSeries bounds the label sets of a registry made with New(0).
const DefaultMaxSeries = 2000

const other = "other"

// Registry holds the metrics of one process.
type Registry struct {
	// constant
	maxSeries int

	// atomics
	folded      atomic.Uint64
	grpcMethods atomic.Int64 // label sets of methods, of all destinations

	mu           sync.Mutex
	grpc         map[grpcKey]*GRPCCalls
	otherGRPC    *GRPCCalls
	requests     map[requestKey]*RequestSeries
	otherRequest *RequestSeries
	families     map[string]*family
}

// family is a metric that Counter, Gauge, one of their Funcs or Durations made.
type family struct {
	name, help string
	typ        Type
	labels     []string           // names, in order
	series     map[string]*series // by the values of the labels
}

// series is one label set: a number, or a function that tells it.
type series struct {
	labels []Label
	bits   atomic.Uint64 // a counter's integer, or a gauge's float64
	fn     func() float64
	took   atomic.Pointer[Durations] // of a histogram
}

// New returns a registry that holds at most maxSeries label sets of requests, as
// many of gRPC methods, and as many of each other metric; 0 is DefaultMaxSeries.
func New(maxSeries int) *Registry {
	if maxSeries <= 0 {
		maxSeries = DefaultMaxSeries
	}
	r := &Registry{
		maxSeries: maxSeries,
		requests:  map[requestKey]*RequestSeries{},
		grpc:      map[grpcKey]*GRPCCalls{},
		families:  map[string]*family{},
	}
	r.CounterFunc("weft_metric_series_folded_total",
		"Label sets that were counted as \"other\" because the process holds its maximum.",
		func() float64 { return float64(r.folded.Load()) })
	return r
}

// Counter only grows.
type Counter struct{ s *series }

// Add counts n more.
func (c *Counter) Add(n uint64) { c.s.bits.Add(n) }

// Value is what was counted so far.
func (c *Counter) Value() uint64 { return c.s.bits.Load() }

// Gauge goes up and down.
type Gauge struct{ s *series }

// Set replaces the value.
func (g *Gauge) Set(v float64) { g.s.bits.Store(math.Float64bits(v)) }

// Add changes the value by delta, which may be negative.
func (g *Gauge) Add(delta float64) {
	for {
		old := g.s.bits.Load()
		if g.s.bits.CompareAndSwap(old, math.Float64bits(math.Float64frombits(old)+delta)) {
			return
		}
	}
}

// Value is the value now.
func (g *Gauge) Value() float64 { return math.Float64frombits(g.s.bits.Load()) }

// Counter returns the counter with this name and label set, the same one at
// each call. A name, a help text or a set of label names that breaks the rules
// (see lint), or differs from the call before, is a mistake in the program and
// panics.
func (r *Registry) Counter(name, help string, labels ...Label) *Counter {
	return &Counter{r.series(name, help, TypeCounter, labels, nil)}
}

// Gauge is like Counter.
func (r *Registry) Gauge(name, help string, labels ...Label) *Gauge {
	return &Gauge{r.series(name, help, TypeGauge, labels, nil)}
}

// GaugeFunc asks fn at each Gather. fn must be quick, and must not use the
// registry.
func (r *Registry) GaugeFunc(name, help string, fn func() float64, labels ...Label) {
	r.series(name, help, TypeGauge, labels, fn)
}

// CounterFunc is GaugeFunc for a number that somebody else counts and that only
// grows.
func (r *Registry) CounterFunc(name, help string, fn func() float64, labels ...Label) {
	r.series(name, help, TypeCounter, labels, fn)
}

func (r *Registry) series(name, help string, typ Type, labels []Label, fn func() float64) *series {
	names, values := make([]string, len(labels)), make([]string, len(labels))
	for i, l := range labels {
		names[i], values[i] = l.Name, l.Value
	}
	if problem := lint(name, help, typ, names); problem != "" {
		panic("metric: " + name + ": " + problem)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	f := r.families[name]
	if f == nil {
		f = &family{name: name, help: help, typ: typ, labels: names, series: map[string]*series{}}
		r.families[name] = f
	} else if f.help != help || !slices.Equal(f.labels, names) {
		panic("metric: " + name + " exists with another help or other label names")
	}
	key := strings.Join(values, "\x00")
	if s := f.series[key]; s != nil {
		return s
	}
	if len(f.series) >= r.maxSeries {
		r.folded.Add(1)
		labels, key, fn = otherLabels(names), other, nil
		if s := f.series[key]; s != nil {
			return s
		}
	}
	s := &series{labels: slices.Clone(labels), fn: fn}
	f.series[key] = s
	return s
}

func otherLabels(names []string) []Label {
	labels := make([]Label, len(names))
	for i, n := range names {
		labels[i] = Label{n, other}
	}
	return labels
}

// lint tells what is wrong with a metric's name, help or labels. The rules are
// Prometheus' naming practices, and that all of ours begin with weft_.
func lint(name, help string, typ Type, labels []string) string {
	switch {
	case !strings.HasPrefix(name, "weft_"):
		return "the name must begin with weft_"
	case !isSnakeCase(name):
		return "the name must be of a-z, 0-9 and single _"
	case (typ == TypeCounter) != strings.HasSuffix(name, "_total"):
		return "the names of counters, and only those, end in _total"
	case typ == TypeHistogram && !strings.HasSuffix(name, "_seconds"):
		return "the names of histograms, which are of durations, end in _seconds"
	case help == "" || !strings.HasSuffix(help, "."):
		return "the help must be a sentence that ends with a full stop"
	}
	for _, unit := range []string{"_ms", "_millis", "_milliseconds", "_kb", "_kilobytes", "_minutes"} {
		if strings.HasSuffix(strings.TrimSuffix(name, "_total"), unit) {
			return "units are base units: seconds, bytes"
		}
	}
	for i, l := range labels {
		if !isSnakeCase(l) || l == "le" || slices.Contains(labels[:i], l) {
			return fmt.Sprintf("the label %q is reserved, repeated or not of a-z, 0-9 and single _", l)
		}
	}
	return ""
}

func isSnakeCase(s string) bool {
	for _, c := range []byte(s) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '_' {
			return false
		}
	}
	return s != "" && !strings.Contains(s, "__") && s[0] > '9' && s[0] != '_' && s[len(s)-1] != '_'
}

// Gather reads every metric, sorted by name and by labels.
func (r *Registry) Gather() []Family {
	r.mu.Lock()
	families := append(r.gatherRequests(), r.gatherGRPC()...)
	type pending struct {
		f  *family
		ss []*series
	}
	var rest []pending
	for _, f := range r.families {
		p := pending{f: f}
		for _, s := range f.series {
			p.ss = append(p.ss, s)
		}
		rest = append(rest, p)
	}
	r.mu.Unlock() // before somebody else's functions are called

	for _, p := range rest {
		out := Family{Name: p.f.name, Help: p.f.help, Type: p.f.typ}
		for _, s := range p.ss {
			sample := Sample{Labels: s.labels, Value: s.value(p.f.typ)}
			if p.f.typ == TypeHistogram {
				sample.Histogram = s.took.Load().gather()
			}
			out.Samples = append(out.Samples, sample)
		}
		families = append(families, out)
	}
	slices.SortFunc(families, func(a, b Family) int { return cmp.Compare(a.Name, b.Name) })
	for _, f := range families {
		slices.SortFunc(f.Samples, func(a, b Sample) int {
			return slices.CompareFunc(a.Labels, b.Labels, func(x, y Label) int { return cmp.Compare(x.Value, y.Value) })
		})
	}
	return families
}

func (s *series) value(typ Type) float64 {
	switch {
	case s.fn != nil:
		return s.fn()
	case typ == TypeGauge:
		return math.Float64frombits(s.bits.Load())
	default:
		return float64(s.bits.Load())
	}
}
