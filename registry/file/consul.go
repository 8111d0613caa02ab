package file

import (
	"fmt"
	"net"
	"strconv"

	"go.yaml.in/yaml/v3"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/registry/mirror"
)

// instances reads all that a file says. It says nothing when anything is wrong with
// it.
func instances(path string, content []byte) ([]mirror.Claim, []problem) {
	docs, bad := parse(path, content)
	if bad != nil {
		return nil, []problem{*bad}
	}
	r := &reader{file: path, left: maxNodes}
	var claims []mirror.Claim
	for _, doc := range docs {
		claims = append(claims, r.document(doc)...)
	}
	lines := make(map[string]string)
	for _, c := range claims {
		if first, twice := lines[c.ID]; twice && len(r.problems) < maxProblems {
			r.problems = append(r.problems, problem{file: c.Origin, text: fmt.Sprintf("instance %q stands twice, also at %s; give each an id of its own", c.ID, first)})
		}
		lines[c.ID] = c.Origin
	}
	if len(r.problems) > 0 {
		return nil, r.problems
	}
	return claims, nil
}

func (r *reader) document(doc *yaml.Node) []mirror.Claim {
	if doc.Kind == yaml.SequenceNode {
		return r.targetGroups(doc)
	}
	o := r.object(doc, "")
	if o == nil {
		return nil
	}
	if o.has("kind") && o.has("apiVersion") {
		o.wrong(doc, "it is a resource of kind %s; apply it with `weft apply -f %s`", o.text("kind"), r.file)
		return nil
	}
	if !o.has("service") && !o.has("services") {
		o.wrong(doc, "there is nothing to register in it; want \"service\" or \"services\" as in Consul's service definitions, or a list of {targets, labels} as in Prometheus's file_sd")
		return nil
	}
	var claims []mirror.Claim
	if s := o.child("service"); s != nil {
		claims = append(claims, s.service())
	}
	for _, s := range o.children("services") {
		claims = append(claims, s.service())
	}
	o.refuse("put the check into its service", "check", "checks")
	o.end()
	return claims
}

// service reads a service definition as Consul's agent takes it.
func (o *object) service() mirror.Claim {
	o.take("token") // Consul's own; the right to write the file is the right to register
	in := weft.Instance{
		ID: o.text("id"), Service: weft.NewServiceName(o.text("namespace"), o.text("name")),
		Address: o.text("address"), Port: o.number("port"),
		Tags: o.texts("tags"), Labels: o.dict("meta"),
		EnableTagOverride: o.flag("enable_tag_override"),
	}
	if in.Service.Name == "" {
		o.wrong(o.at, "%s.name: is not there; give the service a name", o.path)
	}
	if in.ID == "" {
		in.ID = in.Service.Name
	}
	in.Protocol = weft.DeclaredProtocol(in.Labels, in.Tags)
	if w := o.child("weights"); w != nil {
		in.Weights = weft.Weights{Passing: w.number("passing"), Warning: w.number("warning")}
		w.end()
	}
	if l := o.child("locality"); l != nil {
		l.text("region")
		in.Zone = l.text("zone")
		l.end()
	}
	o.taggedAddresses(&in)
	if kind := o.text("kind"); kind != "" && kind != "typical" {
		o.wrong(o.values["kind"], "%s.kind: %q is not supported in files; a sidecar registers itself (weft run)", o.path, kind)
	}
	o.refuse("a sidecar registers itself (weft run)", "connect", "proxy")
	o.refuse("give address and port", "socket_path")
	o.refuse("give port", "ports")
	o.refuse("leave it out", "partition", "peer")
	if c := o.child("check"); c != nil {
		in.Checks = append(in.Checks, c.check())
	}
	for _, c := range o.children("checks") {
		in.Checks = append(in.Checks, c.check())
	}
	o.end()
	return mirror.Claim{Instance: in, Origin: o.origin()}
}

func (o *object) origin() string {
	return problem{file: o.file, line: o.at.Line, column: o.at.Column}.place()
}

func (o *object) taggedAddresses(in *weft.Instance) {
	t := o.child("tagged_addresses")
	if t == nil {
		return
	}
	in.TaggedAddresses = make(map[string]string)
	for i := 0; i+1 < len(t.at.Content); i += 2 {
		name := t.at.Content[i].Value
		a := t.child(name)
		if a == nil {
			continue
		}
		in.TaggedAddresses[name] = net.JoinHostPort(a.text("address"), strconv.Itoa(a.number("port")))
		a.end()
	}
	t.end()
}

// check reads a check of a service. What makes its status known is the key that it
// has: http, tcp, …; without one it has the status that is given. The registry
// looks whether the values are sound.
func (o *object) check() weft.Check {
	id := o.text("id")
	if other := o.text("check_id"); other != "" {
		id = other
	}
	c := weft.Check{
		ID: id, Name: o.text("name"), Notes: o.text("notes"), Status: o.status(),
		Method: o.text("method"), Header: o.header(), Body: o.text("body"),
		TLSSkipVerify: o.flag("tls_skip_verify"), NoRedirects: o.flag("disable_redirects"), TLSServerName: o.text("tls_server_name"),
		Interval: o.duration("interval"), Timeout: o.duration("timeout"), DeregisterAfter: o.duration("deregister_critical_service_after"),
		SuccessBeforePassing: o.number("success_before_passing"), FailuresBeforeWarning: o.number("failures_before_warning"),
		FailuresBeforeCritical: o.number("failures_before_critical"),
	}
	o.kind(&c)
	o.refuse("use http, tcp, grpc or args", "docker_container_id", "shell", "os_service")
	o.refuse("the check is its service's", "service_id")
	o.end()
	return c
}

// status is critical unless it is given: so do checks of Consul begin.
func (o *object) status() weft.Health {
	text := o.text("status")
	if text == "" {
		return weft.Critical
	}
	h, err := weft.ParseHealth(text)
	if err != nil || h == weft.Maintenance {
		o.wrong(o.values["status"], "%s: %q is none; use passing, warning or critical", o.name("status"), text)
	}
	return h
}

func (o *object) header() map[string][]string {
	h := o.child("header")
	if h == nil {
		return nil
	}
	out := make(map[string][]string)
	for i := 0; i+1 < len(h.at.Content); i += 2 {
		name := h.at.Content[i].Value
		out[name] = h.texts(name)
	}
	h.end()
	return out
}

// kind decides by the keys that are there.
func (o *object) kind(c *weft.Check) {
	var given []string
	for _, k := range []struct {
		key  string
		kind weft.CheckKind
		tls  string // key that says that it is over TLS
	}{
		{"http", weft.HTTPCheck, ""}, {"tcp", weft.TCPCheck, "tcp_use_tls"}, {"udp", weft.UDPCheck, ""},
		{"grpc", weft.GRPCCheck, "grpc_use_tls"}, {"h2ping", weft.H2PingCheck, "h2ping_use_tls"},
	} {
		target := o.text(k.key)
		tls := k.tls != "" && o.flag(k.tls)
		if target != "" {
			given = append(given, k.key)
			c.Kind, c.Target, c.TLS = k.kind, target, tls
			if k.kind == weft.H2PingCheck && !o.has(k.tls) {
				c.TLS = true // as in Consul
			}
		}
	}
	if c.TTL = o.duration("ttl"); c.TTL > 0 {
		given, c.Kind = append(given, "ttl"), weft.TTLCheck
	}
	for _, key := range []string{"args", "script_args"} {
		if args := o.texts(key); len(args) > 0 {
			given, c.Kind, c.Args = append(given, key), weft.ScriptCheck, args
		}
	}
	c.AliasNode, c.AliasService = o.text("alias_node"), o.text("alias_service")
	if c.AliasNode != "" || c.AliasService != "" {
		given, c.Kind = append(given, "alias_service"), weft.AliasCheck
	}
	switch {
	case len(given) > 1:
		o.wrong(o.at, "%s: has %s and %s; keep one, a check is of one kind", o.path, given[0], given[1])
	case len(given) == 0 && o.has("status"):
		c.Kind = weft.StaticCheck
	case len(given) == 0:
		o.wrong(o.at, "%s: it is not said what is checked; give http, tcp, grpc, ttl or status", o.path)
	}
}
