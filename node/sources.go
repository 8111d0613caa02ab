package node

import (
	"context"
	"log/slog"

	"github.com/weftmesh/weft/client"
	"github.com/weftmesh/weft/registry"
	"github.com/weftmesh/weft/registry/etcd"
	"github.com/weftmesh/weft/registry/file"
	"github.com/weftmesh/weft/registry/mirror"
	"github.com/weftmesh/weft/registry/zookeeper"
	"github.com/weftmesh/weft/telemetry/metric"
)

// Sources are other places that say which instances run.
type Sources struct {
	Directories []string // of files that name services; see registry/file
	Etcd        []string // "http://host:2379/prefix"; see etcd.Parse
	ZooKeeper   []string // "zk://host:2181/path"; see zookeeper.Parse
}

// source is one of them, as a part of a server.
type source struct {
	what   string
	run    func(context.Context) error
	status func() mirror.Status
}

// open reads what the sources' addresses say; they are followed later, and may be
// away until then.
func (c Sources) open(r *registry.Registry, log *slog.Logger) (list []source, err error) {
	if len(c.Directories) > 0 {
		w, err := file.New(r, file.Config{Dirs: c.Directories, Logger: log})
		if err != nil {
			return nil, err
		}
		list = append(list, source{"files of services", w.Run, w.Status})
	}
	for _, address := range c.Etcd {
		config, err := etcd.Parse(address)
		if err != nil {
			return nil, err
		}
		config.Logger = log
		s, err := etcd.New(r, config)
		if err != nil {
			return nil, err
		}
		list = append(list, source{"import from etcd", s.Run, s.Status})
	}
	for _, address := range c.ZooKeeper {
		config, err := zookeeper.Parse(address)
		if err != nil {
			return nil, err
		}
		config.Logger = log
		s, err := zookeeper.New(r, config)
		if err != nil {
			return nil, err
		}
		list = append(list, source{"import from ZooKeeper", s.Run, s.Status})
	}
	return list, nil
}

// statuses tells how things are with the sources.
func statuses(list []source) []client.Source {
	var out []client.Source
	for _, s := range list {
		out = append(out, s.told())
	}
	return out
}

func (s source) told() client.Source {
	m := s.status()
	return client.Source{
		Name: m.Source, Dialect: m.Dialect, Node: m.Node, Instances: m.Instances,
		Synced: m.Synced, Standby: m.Standby, Away: m.Away, AwaySince: m.AwaySince, Problems: m.Problems,
	}
}

// figures are a source's metrics.
func (s source) figures(m *metric.Registry) {
	label := metric.Label{Name: "source", Value: s.status().Source}
	m.GaugeFunc("weft_source_up", "Whether a source of the catalogue can be read: 1, else 0.", func() float64 {
		if told := s.told(); !told.Up() {
			return 0
		}
		return 1
	}, label)
	m.GaugeFunc("weft_source_problems", "What is wrong with what a source of the catalogue says.", func() float64 {
		return float64(len(s.status().Problems))
	}, label)
	m.GaugeFunc("weft_source_instances", "Instances that a source of the catalogue says there are.", func() float64 {
		return float64(s.status().Instances)
	}, label)
}
