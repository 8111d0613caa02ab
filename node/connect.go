package node

import (
	"context"
	"errors"
	"net"
	"net/netip"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/control"
	"github.com/weftmesh/weft/control/resource"
	"github.com/weftmesh/weft/registry/consul"
)

// consulMesh lets Consul's clients say by intentions and config entries what users
// say by resources.
type consulMesh struct{ control *control.Control }

func (m consulMesh) Check(ctx context.Context, documents []consul.Document) error {
	files := filesOf(documents)
	if _, err := m.control.Apply(ctx, files, control.ApplyOptions{DryRun: true}); err != nil {
		return err
	}
	parsed, _ := resource.Parse(files)
	existing := m.control.Resources()
	for _, r := range parsed {
		for i := range existing {
			if other := &existing[i]; !ofConsul(other) && (other.Ref() == r.Ref() || resource.Contend(r, other)) {
				return weft.Errorf(weft.Conflict, "write", r.Source.String(), "%s is there already, and is not Consul's", other.Source)
			}
		}
	}
	return nil
}

// Replace leaves alone what a user has put in the place of a document.
func (m consulMesh) Replace(ctx context.Context, documents []consul.Document) error {
	parsed, problems := resource.Parse(filesOf(documents))
	ours, theirs := make(map[resource.Ref]bool), make(map[resource.Ref]weft.SourceRef)
	for _, r := range m.control.Resources() {
		if ofConsul(&r) {
			ours[r.Ref()] = true
		} else {
			theirs[r.Ref()] = r.Source
		}
	}
	var failed []error
	if bad := problems.Errors(); len(bad) > 0 {
		failed = append(failed, &weft.Error{Kind: weft.Invalid, Op: "apply", Thing: "config entries", Err: bad})
	}
	var files []resource.File
	for _, r := range parsed {
		if at, taken := theirs[r.Ref()]; taken {
			failed = append(failed, weft.Errorf(weft.Conflict, "write", r.Source.String(), "%s is there already, and is not Consul's", at))
			continue
		}
		delete(ours, r.Ref())
		files = append(files, resource.File{Name: r.Source.File, Data: r.JSON})
	}
	if len(files) > 0 {
		_, err := m.control.Apply(ctx, files, control.ApplyOptions{Partial: true})
		failed = append(failed, err)
	}
	for ref := range ours {
		if _, err := m.control.Delete(ctx, ref.Kind, ref.Namespace, ref.Name); err != nil && weft.KindOf(err) != weft.NotFound {
			failed = append(failed, err)
		}
	}
	return errors.Join(failed...)
}

func filesOf(documents []consul.Document) []resource.File {
	out := make([]resource.File, len(documents))
	for i, d := range documents {
		out[i] = resource.File{Name: d.From, Data: d.JSON}
	}
	return out
}

func ofConsul(r *resource.Resource) bool { return r.Labels[consul.WrittenBy] == "consul" }

// serveConsul adds Consul's API, and who keeps the mesh as is said through it.
func (s *Server) serveConsul(p *parts) {
	c := consul.Config{
		Logger: s.logger, Address: s.doors.consul.Addr().String(), Scripts: s.config.EnableScripts,
		ACL: s.acl(), CA: s.authority, Mesh: consulMesh{s.control}, Closed: s.config.DefaultIntention == "deny",
		Process: consul.Process{Metrics: s.metricsText, Log: s.log},
	}
	if s.cluster != nil {
		c.Cluster = consulServers{s}
	}
	h := consul.New(s.registry, c)
	p.add("Consul API", serveReady(s.doors.consul, h, h.Express, s.logger))
	s.addTLS(p, "Consul API over TLS", s.doors.consulHTTPS, h)
	known := &consul.Announcement{Registry: s.registry, Address: s.announced(), Members: s.memberNames, Logger: s.logger}
	p.add("service of the servers", known.Run)
	p.add("config entries", func(ctx context.Context) error { return consul.CarryOut(ctx, s.registry, c) })
}

// announced is where Consul's clients find this server: over TLS, if that is where
// others can reach it.
func (s *Server) announced() string {
	ln := s.doors.consul
	if s.doors.consulHTTPS != nil {
		ln = s.doors.consulHTTPS
	}
	address := ln.Addr().String()
	host, port, err := net.SplitHostPort(address)
	if err != nil || s.cluster == nil {
		return address
	}
	if ip, err := netip.ParseAddr(host); err == nil && ip.IsUnspecified() {
		return net.JoinHostPort(s.cluster.Host(), port)
	}
	return address
}

// memberNames are the nodes of all servers; none while one is not known by name.
func (s *Server) memberNames() (names []string) {
	if s.cluster == nil {
		return []string{s.registry.LocalNode().Name}
	}
	for _, o := range s.cluster.Servers() {
		if o.Name == "" {
			return nil
		}
		names = append(names, o.Name)
	}
	return names
}
