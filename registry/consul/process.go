package consul

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"runtime"
	"strings"
	"time"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/registry"
)

// processEndpoints are the agent's endpoints that are about the process and its
// machine, and not about the catalogue.
func (a *api) processEndpoints() endpoints {
	return endpoints{
		"agent/host":         {get: a.agentHost},
		"agent/version":      {get: a.agentVersion},
		"agent/metrics":      {get: a.agentMetrics},
		"agent/monitor":      {get: a.agentMonitor},
		"agent/reload":       {put: a.agentReload},
		"agent/leave":        {put: a.agentLeave},
		"agent/join/":        {put: a.agentJoin},
		"agent/force-leave/": {put: a.agentForceLeave},
	}
}

// GET /v1/agent/version
func (a *api) agentVersion(w http.ResponseWriter, q *query) error {
	return a.fixed(w, q, map[string]string{"SHA": "", "BuildDate": "", "HumanVersion": a.version, "FIPS": ""})
}

// GET /v1/agent/host. What this system does not tell is left out.
func (a *api) agentHost(w http.ResponseWriter, q *query) error {
	now := time.Now()
	host := map[string]any{"os": runtime.GOOS, "kernelArch": runtime.GOARCH}
	if name, err := os.Hostname(); err == nil {
		host["hostname"] = name
	}
	if b, err := os.ReadFile("/proc/sys/kernel/osrelease"); err == nil {
		host["kernelVersion"] = strings.TrimSpace(string(b))
	}
	if b, err := os.ReadFile("/proc/uptime"); err == nil {
		var seconds float64
		if _, err := fmt.Sscan(string(b), &seconds); err == nil {
			host["uptime"], host["bootTime"] = uint64(seconds), now.Unix()-int64(seconds)
		}
	}
	return a.fixed(w, q, map[string]any{
		"Host": host, "Memory": memory(), "CPU": []any{map[string]any{"cores": runtime.NumCPU()}}, "Disk": nil,
		"CollectionTime": now.UnixNano(), "Errors": nil,
	})
}

// memory of the machine, in bytes.
func memory() map[string]any {
	out := make(map[string]any)
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return out
	}
	for line := range strings.Lines(string(b)) {
		var name string
		var kib uint64
		if n, _ := fmt.Sscanf(line, "%s %d kB", &name, &kib); n != 2 {
			continue
		}
		switch name {
		case "MemTotal:":
			out["total"] = kib << 10
		case "MemAvailable:":
			out["available"] = kib << 10
		case "MemFree:":
			out["free"] = kib << 10
		}
	}
	if total, ok := out["total"].(uint64); ok {
		if available, ok := out["available"].(uint64); ok && total > 0 {
			out["used"], out["usedPercent"] = total-available, 100*float64(total-available)/float64(total)
		}
	}
	return out
}

// gauge is a figure of this process or of the catalogue.
type gauge struct {
	name  string // "runtime.alloc_bytes"
	help  string
	value float64
}

func (a *api) gauges() []gauge {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	instances, _ := a.registry.AllInstances()
	nodes, _ := a.registry.Nodes()
	services, _ := a.registry.ServiceNames()
	return []gauge{
		{"runtime.alloc_bytes", "Bytes of allocated heap objects.", float64(m.Alloc)},
		{"runtime.heap_objects", "Allocated heap objects.", float64(m.HeapObjects)},
		{"runtime.num_goroutines", "Goroutines.", float64(runtime.NumGoroutine())},
		{"runtime.sys_bytes", "Bytes of memory from the system.", float64(m.Sys)},
		{"runtime.total_gc_pause_ns", "Nanoseconds of pauses for garbage collection.", float64(m.PauseTotalNs)},
		{"runtime.total_gc_runs", "Garbage collections.", float64(m.NumGC)},
		{"state.nodes", "Registered nodes.", float64(len(nodes))},
		{"state.services", "Registered services.", float64(len(services))},
		{"state.service_instances", "Registered instances.", float64(len(instances))},
	}
}

// GET /v1/agent/metrics?format=prometheus
func (a *api) agentMetrics(w http.ResponseWriter, q *query) error {
	if q.params.Get("format") == "prometheus" {
		return a.metricsText(w, q)
	}
	hostname, err := os.Hostname()
	if err != nil {
		return weft.Errorf(weft.Internal, "read metrics", "", "%w", err)
	}
	type record struct {
		Name   string
		Value  float64
		Labels map[string]string
	}
	gauges := []record{}
	for _, g := range a.gauges() {
		gauges = append(gauges, record{Name: "consul." + hostname + "." + g.name, Value: g.value, Labels: map[string]string{}})
	}
	none := []any{}
	return a.fixed(w, q, map[string]any{
		"Timestamp": time.Now().UTC().Truncate(10 * time.Second).Format("2006-01-02 15:04:05 -0700 MST"),
		"Gauges":    gauges, "Points": none, "Counters": none, "Samples": none,
	})
}

// metricsText answers this dialect's figures, with all of the server's where the
// process gave them.
func (a *api) metricsText(w http.ResponseWriter, q *query) error {
	var text bytes.Buffer
	for _, g := range a.gauges() {
		name := "consul_" + strings.ReplaceAll(g.name, ".", "_")
		fmt.Fprintf(&text, "# HELP %s %s\n# TYPE %s gauge\n%s %g\n", name, g.help, name, name, g.value)
	}
	if a.process.Metrics != nil {
		if err := a.process.Metrics(&text); err != nil {
			return weft.Errorf(weft.Internal, "read metrics", "", "%w", err)
		}
	}
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	w.Write(text.Bytes()) // an error here means that the client has gone
	return nil
}

// PUT /v1/agent/reload
func (a *api) agentReload(_ http.ResponseWriter, q *query) error {
	if a.process.Reload == nil {
		return notHere("this server reads its configuration only once, at its start")
	}
	return a.process.Reload(q.request.Context())
}

// PUT /v1/agent/leave: the server stops, politely, when this is answered.
func (a *api) agentLeave(_ http.ResponseWriter, q *query) error {
	if a.process.Leave == nil {
		return notHere("this server is stopped by whoever started it")
	}
	a.process.Leave()
	return nil
}

// PUT /v1/agent/join/{address}. Nothing gossips here: who is a member already has
// joined, others are started with the address of this one.
func (a *api) agentJoin(_ http.ResponseWriter, q *query) error {
	address, err := q.need("address")
	if err != nil {
		return err
	}
	for _, s := range a.servers() {
		for _, known := range []string{s.Address, s.API} {
			host, _, err := net.SplitHostPort(known)
			if address == known || err == nil && address == host {
				return nil
			}
		}
	}
	return notHere("servers join by being started with the address of one that runs, and agents do not exist here")
}

// PUT /v1/agent/force-leave/{node}. Who is alive refutes it, in Consul as here.
func (a *api) agentForceLeave(_ http.ResponseWriter, q *query) error {
	name, err := q.need("node name")
	if err != nil {
		return err
	}
	for _, s := range a.servers() {
		if s.Name == name || s.Name+"."+a.registry.Datacenter() == name {
			return nil
		}
	}
	return &plainError{http.StatusInternalServerError, fmt.Sprintf("agent: No node found with name '%s'", name)}
}

// notHere is the honest answer to what this server has not got.
func notHere(why string) error { return &plainError{http.StatusNotImplemented, why} }

// none answers [] to lists of what cannot be here: templates ask for them, and wait for
// the next.
func (a *api) none(w http.ResponseWriter, q *query) error {
	return a.answer(w, q, view{topic: registry.KeyTopic("none", ""), build: func() (any, uint64) { return []string{}, 1 }})
}

func (a *api) emptyEndpoints() endpoints {
	return endpoints{
		"peerings":                  {get: a.none},
		"exported-services":         {get: a.none},
		"imported-services":         {get: a.none},
		"partitions":                {get: a.none},
		"health/ingress/":           {get: a.none}, // gateways are resources of the mesh
		"catalog/gateway-services/": {get: a.none},
	}
}

// Process is what the endpoints of the agent ask of the process that they are in.
// What is nil is answered with 501.
type Process struct {
	Metrics func(*bytes.Buffer) error       // appends all metrics, in Prometheus's text format
	Reload  func(ctx context.Context) error // reads the configuration again
	Leave   func()                          // begins to stop the process, and does not wait
	Log     *LogTap                         // what the process logs
}
