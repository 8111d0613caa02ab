package file

import (
	"fmt"
	"maps"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/registry/mirror"
)

// targetGroups reads a list as Prometheus's file_sd has it. The label "service", else
// "job", names the service; "zone" is the zone; labels that begin with "__" are
// Prometheus's own.
func (r *reader) targetGroups(list *yaml.Node) []mirror.Claim {
	var claims []mirror.Claim
	for i, n := range list.Content {
		o := r.object(n, fmt.Sprintf("[%d]", i))
		if o == nil {
			continue
		}
		labels := o.dict("labels")
		targets := o.list("targets")
		o.end()
		name := labels["service"]
		if name == "" {
			name = labels["job"]
		}
		if name == "" && len(targets) > 0 {
			o.wrong(o.at, "%s.labels: no label names the service; add \"service: NAME\" (or \"job: NAME\")", o.path)
			continue
		}
		maps.DeleteFunc(labels, func(key, _ string) bool { return key == "service" || strings.HasPrefix(key, "__") })
		for j, t := range targets {
			t = r.resolve(t)
			host, port, ok := hostPort(t.Value)
			if t.Kind != yaml.ScalarNode || !ok {
				r.wrong(t, "%s.targets[%d]: want host:port, not %s", o.path, j, kindOf(t))
				continue
			}
			claims = append(claims, mirror.Claim{
				Instance: weft.Instance{
					ID: name + "-" + t.Value, Service: weft.NewServiceName("", name), Address: host, Port: port,
					Labels: maps.Clone(labels), Zone: labels["zone"], Protocol: weft.DeclaredProtocol(labels, nil),
				},
				Origin: problem{file: r.file, line: t.Line, column: t.Column}.place(),
			})
		}
	}
	return claims
}
