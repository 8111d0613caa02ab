package node

import (
	"log/slog"
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/weftmesh/weft/telemetry/metric"
)

// metricsHandler serves a process's own figures, and the Go runtime's, to
// Prometheus.
func metricsHandler(m *metric.Registry, logger *slog.Logger) http.Handler {
	return promhttp.HandlerFor(gatherer(m), promhttp.HandlerOpts{ErrorLog: slog.NewLogLogger(logger.Handler(), slog.LevelWarn)})
}

func gatherer(m *metric.Registry) prometheus.Gatherer {
	r := prometheus.NewRegistry()
	r.MustRegister(families{m}, collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return r
}

// families gives telemetry/metric's values to client_golang. It is "unchecked"
// (Describe sends nothing), because series come and go with the traffic.
type families struct{ registry *metric.Registry }

func (families) Describe(chan<- *prometheus.Desc) {}

func (f families) Collect(out chan<- prometheus.Metric) {
	for _, family := range f.registry.Gather() {
		for _, s := range family.Samples {
			names := make([]string, len(s.Labels))
			values := make([]string, len(s.Labels))
			for i, l := range s.Labels {
				names[i], values[i] = l.Name, l.Value
			}
			desc := prometheus.NewDesc(family.Name, family.Help, names, nil)
			m, err := constMetric(desc, family.Type, s, values)
			if err != nil {
				m = prometheus.NewInvalidMetric(desc, err)
			}
			out <- m
		}
	}
}

func constMetric(desc *prometheus.Desc, t metric.Type, s metric.Sample, values []string) (prometheus.Metric, error) {
	switch t {
	case metric.TypeHistogram:
		buckets := make(map[float64]uint64, len(s.Histogram.Buckets))
		for _, b := range s.Histogram.Buckets {
			buckets[b.UpperBound] = b.Count
		}
		return prometheus.NewConstHistogram(desc, s.Histogram.Count, s.Histogram.Sum, buckets, values...)
	case metric.TypeGauge:
		return prometheus.NewConstMetric(desc, prometheus.GaugeValue, s.Value, values...)
	}
	return prometheus.NewConstMetric(desc, prometheus.CounterValue, s.Value, values...)
}
