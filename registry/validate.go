package registry

import (
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/weftmesh/weft"
)

const (
	maxName   = 128       // bytes of the name of a service, a namespace or a node
	maxID     = 256       // bytes of the id of an instance or a check
	maxOutput = 4 << 10   // bytes of a check's output
	maxRecord = 256 << 10 // bytes of an instance or a node as JSON

	maxDatagram = 1 << 10         // bytes that a UDP check sends: no network cuts them up
	maxTimeout  = 5 * time.Minute // of a probe; each holds a place while it waits
)

// faults collects everything that is wrong with a value.
type faults []string

func (f *faults) add(field, format string, args ...any) {
	*f = append(*f, field+": "+fmt.Sprintf(format, args...))
}

// err is nil without faults, else of Kind Invalid.
func (f faults) err(op, thing string) error {
	if len(f) == 0 {
		return nil
	}
	return weft.Errorf(weft.Invalid, op, thing, "%s", strings.Join(f, "; "))
}

func (f *faults) name(field, s string, limit int) {
	switch {
	case s == "":
		f.add(field, "is empty; give it a name")
	case len(s) > limit:
		f.add(field, "is %d bytes long; use at most %d", len(s), limit)
	case !utf8.ValidString(s) || strings.ContainsFunc(s, unicode.IsControl):
		f.add(field, "%q has control characters; use printable ones", s)
	}
}

// checkInstance reports everything that is wrong with an instance.
func checkInstance(in *weft.Instance) error {
	var f faults
	f.name("service.name", in.Service.Name, maxName)
	f.name("service.namespace", in.Service.Namespace, maxName)
	f.name("id", in.ID, maxID)
	f.name("node", in.Node, maxName)
	if in.Port < 0 || in.Port > 65535 {
		f.add("port", "%d is no port; use 1 to 65535, or 0 for none", in.Port)
	}
	if in.Address != "" {
		f.name("address", in.Address, maxID)
	}
	if !in.Protocol.Known() {
		f.add("protocol", "%q is not known; use http, http2, grpc, tcp, tls, or none", in.Protocol)
	}
	for _, w := range []struct {
		field string
		value int
	}{{"weights.passing", in.Weights.Passing}, {"weights.warning", in.Weights.Warning}} {
		if w.value < 0 || w.value > 65535 {
			f.add(w.field, "%d is out of range; use 1 to 65535", w.value)
		}
	}
	if in.MeshAddr != "" {
		if _, _, err := net.SplitHostPort(in.MeshAddr); err != nil {
			f.add("meshAddr", "%q is not host:port", in.MeshAddr)
		}
	}
	f.checks(in.Checks)
	return f.err("register", "instance "+in.Service.Name+"/"+in.ID)
}

func checkNode(n *weft.Node) error {
	var f faults
	f.name("name", n.Name, maxName)
	f.name("address", n.Address, maxID)
	f.checks(n.Checks)
	return f.err("register", "node "+n.Name)
}

// checkCheck reports everything that is wrong with a check that comes alone.
func checkCheck(c *weft.Check) error {
	var f faults
	f.check("", c)
	return f.err("register", "check "+c.ID)
}

func (f *faults) checks(checks []weft.Check) {
	seen := make(map[string]bool, len(checks))
	for i := range checks {
		field := fmt.Sprintf("checks[%d].", i)
		f.check(field, &checks[i])
		if seen[checks[i].ID] {
			f.add(field+"id", "%q stands twice; give each check its own id, or none", checks[i].ID)
		}
		seen[checks[i].ID] = true
	}
}

func (f *faults) check(field string, c *weft.Check) {
	f.name(field+"id", c.ID, maxID+len("service::99"))
	switch {
	case probed(c.Kind):
		f.target(field, c)
		f.interval(field, c)
	case reported(c.Kind):
		if c.TTL <= 0 {
			f.add(field+"ttl", "%s must be greater than 0; use a time such as \"30s\"", c.TTL)
		}
	case c.Kind == weft.AliasCheck:
		f.alias(field, c)
	case c.Kind != weft.MaintenanceCheck && c.Kind != weft.StaticCheck:
		f.add(field+"kind", "%q is unknown; use http, tcp, grpc, h2ping, udp, alias, script, ttl, lease or static", string(c.Kind))
	}
	if c.Status > weft.Maintenance {
		f.add(field+"status", "is unknown; use passing, warning or critical")
	}
	if c.DeregisterAfter < 0 {
		f.add(field+"deregisterAfter", "%s is negative; use a time such as \"1m\", or 0 for never", c.DeregisterAfter)
	}
	if c.SuccessBeforePassing < 0 || c.FailuresBeforeWarning < 0 || c.FailuresBeforeCritical < 0 {
		f.add(field+"thresholds", "are negative; use counts from 0")
	}
}

// target says what is wrong with what a probe is to ask.
func (f *faults) target(field string, c *weft.Check) {
	switch c.Kind {
	case weft.HTTPCheck:
		u, err := url.Parse(c.Target)
		if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
			f.add(field+"target", "%q is no URL; use one such as \"http://127.0.0.1:8080/health\"", c.Target)
		}
	case weft.ScriptCheck:
		f.args(field, c.Args)
	case weft.GRPCCheck:
		address, _, _ := strings.Cut(c.Target, "/")
		if _, port, err := net.SplitHostPort(address); err != nil || port == "" {
			f.add(field+"target", "%q is not host:port or host:port/service", c.Target)
		}
	default:
		if _, port, err := net.SplitHostPort(c.Target); err != nil || port == "" {
			f.add(field+"target", "%q is not host:port", c.Target)
		}
	}
	if c.Kind == weft.UDPCheck && len(c.Body) > maxDatagram {
		f.add(field+"body", "is %d bytes long; a datagram holds %d", len(c.Body), maxDatagram)
	}
	if c.TLSServerName != "" {
		f.name(field+"tlsServerName", c.TLSServerName, maxID)
	}
}

func (f *faults) args(field string, args []string) {
	if len(args) == 0 || args[0] == "" {
		f.add(field+"args", "are empty; give a program and its arguments, such as [\"/usr/bin/check\", \"-v\"]")
	}
	for i, arg := range args {
		if strings.ContainsRune(arg, 0) {
			f.add(fmt.Sprintf("%sargs[%d]", field, i), "has a zero byte, which no argument can have")
		}
	}
}

func (f *faults) alias(field string, c *weft.Check) {
	if c.AliasNode != "" {
		f.name(field+"aliasNode", c.AliasNode, maxName)
	}
	if c.AliasService != "" {
		f.name(field+"aliasService", c.AliasService, maxID)
	}
	if c.AliasNode == "" && c.AliasService == "" {
		f.add(field+"aliasService", "is empty, and so is aliasNode; name the instance or the node whose health is meant")
	}
}

func (f *faults) interval(field string, c *weft.Check) {
	if c.Interval <= 0 {
		f.add(field+"interval", "%s must be greater than 0; use a time such as \"10s\"", c.Interval)
	}
	if c.Timeout < 0 {
		f.add(field+"timeout", "%s is negative; use a time such as \"5s\"", c.Timeout)
	}
	if c.Timeout.Std() > maxTimeout {
		f.add(field+"timeout", "%s is too long; a probe may take %s", c.Timeout, maxTimeout)
	}
}

// prepare checks an instance, and returns it in the form in which it comes back
// from the store, with defaults in place, sharing no memory with the caller's; and
// its record. All that is costly in a registration is done here, by its caller.
func prepare(in weft.Instance, node string) (own *weft.Instance, record []byte, err error) {
	in.Service = weft.NewServiceName(in.Service.Namespace, in.Service.Name)
	in.Node = orElse(in.Node, node)
	in.ID = orElse(in.ID, in.Service.Name)
	in.CreateIndex, in.ModifyIndex = 0, 0
	in.Checks = slices.Clone(in.Checks)
	for i := range in.Checks {
		c := &in.Checks[i]
		c.CreateIndex, c.ModifyIndex = 0, 0
		c.Output = shortOutput(c.Output)
	}
	identifyChecks(&in)
	if err := checkInstance(&in); err != nil {
		return nil, nil, err
	}
	if record, err = encode("instance "+in.Service.Name+"/"+in.ID, in); err != nil {
		return nil, nil, err
	}
	if own, err = ownInstance(&in, record); err != nil {
		return nil, nil, &weft.Error{Kind: weft.Invalid, Op: "register", Thing: "instance " + in.ID, Err: err}
	}
	return own, record, nil
}

func encode(thing string, v any) ([]byte, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, &weft.Error{Kind: weft.Invalid, Op: "register", Thing: thing, Err: err}
	}
	if len(b) > maxRecord {
		return nil, weft.Errorf(weft.TooLarge, "register", thing, "it is %d bytes long as JSON; the limit is %d", len(b), maxRecord)
	}
	return b, nil
}

// identifyChecks gives ids to the checks that have none, and sorts them.
func identifyChecks(in *weft.Instance) {
	for i := range in.Checks {
		c := &in.Checks[i]
		if c.ID == "" {
			c.ID = "service:" + in.ID
			if len(in.Checks) > 1 {
				c.ID += ":" + strconv.Itoa(i+1)
			}
		}
	}
	sortChecks(in.Checks)
}

// nameChecks gives names to the checks that come with an instance and have none.
// Those that are put by themselves, or by a transaction, stay as they are: so does
// Consul, and a restored catalogue is what it was.
func nameChecks(in *weft.Instance) {
	in.Checks = slices.Clone(in.Checks)
	for i := range in.Checks {
		in.Checks[i].Name = orElse(in.Checks[i].Name, "Service '"+in.Service.Name+"' check")
	}
}

func sortChecks(checks []weft.Check) {
	slices.SortStableFunc(checks, func(a, b weft.Check) int { return strings.Compare(a.ID, b.ID) })
}

// ownChecks returns copies that share no memory with the caller's.
func ownChecks(checks []weft.Check) []weft.Check {
	checks = ownSlice(checks)
	for i := range checks {
		c := &checks[i]
		c.CreateIndex, c.ModifyIndex = 0, 0
		c.Output = shortOutput(c.Output)
		c.Args = ownSlice(c.Args)
		c.Header = ownMap(c.Header)
		for name, values := range c.Header {
			c.Header[name] = slices.Clone(values)
		}
	}
	return checks
}

// shortOutput bounds a check's output, and makes it the text that JSON can hold.
func shortOutput(s string) string {
	if len(s) > maxOutput {
		s = s[:maxOutput]
	}
	return strings.ToValidUTF8(s, "?") // one byte for one or more: never longer
}

func ownSlice[T any](s []T) []T {
	if len(s) == 0 {
		return nil
	}
	return slices.Clone(s)
}

func ownMap[V any](m map[string]V) map[string]V {
	if len(m) == 0 {
		return nil
	}
	return maps.Clone(m)
}
