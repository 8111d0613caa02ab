package node

import (
	"context"
	"log/slog"

	"github.com/weftmesh/weft/registry"
	"github.com/weftmesh/weft/registry/etcd"
	"github.com/weftmesh/weft/registry/file"
	"github.com/weftmesh/weft/registry/zookeeper"
)

// Sources are other places that say which instances run.
type Sources struct {
	Directories []string // of files that name services; see registry/file
	Etcd        []string // "http://host:2379/prefix"; see etcd.Parse
	ZooKeeper   []string // "zk://host:2181/path"; see zookeeper.Parse
}

// source is one of them, as a part of a server.
type source struct {
	what string
	run  func(context.Context) error
}

// open reads what the sources' addresses say; they are followed later, and may be
// away until then.
func (c Sources) open(r *registry.Registry, log *slog.Logger) (list []source, err error) {
	if len(c.Directories) > 0 {
		w, err := file.New(r, file.Config{Dirs: c.Directories, Logger: log})
		if err != nil {
			return nil, err
		}
		list = append(list, source{"files of services", w.Run})
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
		list = append(list, source{"import from etcd", s.Run})
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
		list = append(list, source{"import from ZooKeeper", s.Run})
	}
	return list, nil
}
