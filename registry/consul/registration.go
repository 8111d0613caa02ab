package consul

import (
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"

	"github.com/weftmesh/weft"
)

// maxOutput is how much of a check's output is kept, in bytes.
const maxOutput = 4 << 10

// serviceFields are what the registrations of agent and catalog have in common.
type serviceFields struct {
	ID                string
	Tags              []string
	Port              int
	Address           string
	Meta              map[string]string
	TaggedAddresses   map[string]addressRecord
	EnableTagOverride bool
	Weights           *weightsRecord
	Namespace         string
	Partition         string
	Locality          *localityRecord
	Kind              string
	SocketPath        string
	Ports             []portRecord
	Proxy             *proxyRecord
	Connect           *struct {
		Native         bool
		SidecarService *agentServiceBody
	}
}

// agentServiceBody is the body of agent/service/register.
type agentServiceBody struct {
	Name string
	serviceFields
	Check  *checkBody
	Checks []*checkBody
}

// checkBody is a check as it is registered, alone or with its service.
type checkBody struct {
	ID        string
	CheckID   string
	Name      string
	Notes     string
	Status    string
	Output    string // in the catalogue only
	ServiceID string

	HTTP             string
	Method           string
	Header           map[string][]string
	Body             string
	TLSServerName    string
	TLSSkipVerify    bool
	DisableRedirects bool
	TCP              string
	UDP              string
	GRPC             string
	GRPCUseTLS       bool
	H2PING           string
	H2PingUseTLS     *bool // true when it is not given
	AliasNode        string
	AliasService     string
	Args             []string
	ScriptArgs       []string
	TTL              duration
	Interval         duration
	Timeout          duration

	DeregisterCriticalServiceAfter duration
	SuccessBeforePassing           int
	FailuresBeforeWarning          int
	FailuresBeforeCritical         int

	Definition *checkBody // in the catalogue only: how somebody makes it

	// Not supported in this release.
	Script            string
	DockerContainerID string
	OSService         string
	TCPUseTLS         bool
}

// instance reads the fields as an instance of service, without node and checks.
// The registry looks whether the values are sound.
func (s *serviceFields) instance(service weft.ServiceName, registrar string) (weft.Instance, error) {
	if err := s.check(service.Name); err != nil {
		return weft.Instance{}, err
	}
	in := weft.Instance{
		ID: s.ID, Service: service, Address: s.Address, Port: s.Port,
		Tags: s.Tags, Labels: s.Meta, Dialect: registrar, EnableTagOverride: s.EnableTagOverride,
		Protocol: weft.DeclaredProtocol(s.Meta, s.Tags),
	}
	if in.ID == "" {
		in.ID = service.Name
	}
	for _, p := range s.Ports {
		if p.Default {
			in.Port = p.Port
		}
	}
	if s.Locality != nil {
		in.Zone = s.Locality.Zone
	}
	if w := s.Weights; w != nil {
		in.Weights = weft.Weights{Passing: w.Passing, Warning: w.Warning}
	}
	if len(s.TaggedAddresses) > 0 {
		in.TaggedAddresses = make(map[string]string, len(s.TaggedAddresses))
		for name, addr := range s.TaggedAddresses {
			in.TaggedAddresses[name] = net.JoinHostPort(addr.Address, strconv.Itoa(addr.Port))
		}
	}
	x := s.extra()
	return in, x.carry(&in)
}

func (s *serviceFields) extra() serviceExtra {
	x := serviceExtra{Kind: s.Kind, SocketPath: s.SocketPath, Ports: s.Ports, Proxy: s.Proxy}
	if x.Kind == "typical" {
		x.Kind = ""
	}
	if s.Locality != nil {
		x.Region = s.Locality.Region
	}
	if s.Connect != nil && s.Connect.Native {
		x.Connect = &connectRecord{Native: true}
	}
	return x
}

// check looks at what only this dialect knows.
func (s *serviceFields) check(name string) error {
	invalid := func(format string, args ...any) error {
		return weft.Errorf(weft.Invalid, "register service", name, format, args...)
	}
	native := s.Connect != nil && s.Connect.Native
	switch {
	case s.Partition != "" && s.Partition != "default":
		return invalid("there are no partitions here, but for \"default\"")
	case s.Address == "0.0.0.0" || s.Address == "::" || s.Address == "[::]": // where a program listens is not where it is
		return invalid("Invalid service address")
	case s.Kind != "typical" && !knownKind(s.Kind):
		return invalid("Kind %q is not known", s.Kind)
	case s.Kind == connectProxy && (s.Proxy == nil || s.Proxy.DestinationServiceName == ""):
		return invalid("Proxy.DestinationServiceName must be non-empty for Connect proxy services")
	case s.Kind == connectProxy && s.Port == 0 && s.SocketPath == "" && len(s.Ports) == 0:
		return invalid("Port or SocketPath must be set for a Connect proxy")
	case s.Kind == connectProxy && native:
		return invalid("a Proxy cannot also be Connect Native, only typical services")
	case s.Port != 0 && s.SocketPath != "":
		return invalid("give Port or SocketPath, not both")
	case s.Port != 0 && len(s.Ports) > 0:
		return invalid("give Port or Ports, not both")
	}
	return checkPorts(s.Ports, invalid)
}

// checkPorts: every port has its own name, and one of them is the service's.
func checkPorts(ports []portRecord, invalid func(string, ...any) error) error {
	names, defaults := make(map[string]bool, len(ports)), 0
	for _, p := range ports {
		switch {
		case strings.TrimSpace(p.Name) == "":
			return invalid("Ports.Name cannot be empty")
		case p.Port <= 0 || p.Port > 65535:
			return invalid("Ports.Port %d of %s is no port", p.Port, p.Name)
		case names[p.Name]:
			return invalid("Ports.Name %q has to be unique", p.Name)
		}
		names[p.Name] = true
		if p.Default {
			defaults++
		}
	}
	if len(ports) > 0 && defaults != 1 {
		return invalid("one of the Ports must be marked as Default, and not more than one")
	}
	return nil
}

// checks reads the checks of a service registration. An empty "Check" is as good
// as none: some clients always send it.
func (a *api) checksOf(b *agentServiceBody, id string) ([]weft.Check, error) {
	all := make([]*checkBody, 0, len(b.Checks)+1)
	if b.Check != nil && !b.Check.empty() {
		all = append(all, b.Check)
	}
	for _, c := range b.Checks {
		if c != nil {
			all = append(all, c)
		}
	}
	out := make([]weft.Check, 0, len(all))
	for i, body := range all {
		c, err := a.checkOf(body)
		if err != nil {
			return nil, err
		}
		if c.ID == "" {
			c.ID = "service:" + id
			if len(all) > 1 {
				c.ID = fmt.Sprintf("service:%s:%d", id, i+1)
			}
		}
		if c.Name == "" {
			c.Name = "Service '" + b.Name + "' check"
		}
		out = append(out, c)
	}
	return out, nil
}

// empty says whether nothing was given that makes a check.
func (b *checkBody) empty() bool {
	return b.HTTP == "" && b.TCP == "" && b.UDP == "" && b.GRPC == "" && b.H2PING == "" &&
		b.AliasNode == "" && b.AliasService == "" && len(b.Args) == 0 && len(b.ScriptArgs) == 0 &&
		b.TTL == "" && b.Interval == "" && b.Status == "" && b.id() == "" && b.unsupported() == ""
}

func (b *checkBody) id() string {
	if b.CheckID != "" {
		return b.CheckID
	}
	return b.ID
}

// check reads the body as a check of the kind that its fields ask for. It is
// critical until it is known to be better.
func (b *checkBody) check() (weft.Check, error) {
	c := weft.Check{
		ID: b.id(), Name: b.Name, Notes: b.Notes,
		Method: b.Method, Header: b.Header, Body: b.Body, NoRedirects: b.DisableRedirects,
		TLSServerName: b.TLSServerName, TLSSkipVerify: b.TLSSkipVerify,
		SuccessBeforePassing: b.SuccessBeforePassing, FailuresBeforeWarning: b.FailuresBeforeWarning,
		FailuresBeforeCritical: b.FailuresBeforeCritical,
	}
	if what := b.unsupported(); what != "" {
		return c, b.invalid("%s is not supported in this version", what)
	}
	if err := b.status(&c); err != nil {
		return c, err
	}
	if err := b.times(&c); err != nil {
		return c, err
	}
	return c, b.kind(&c)
}

// checkOf reads a check that this server shall make.
func (a *api) checkOf(b *checkBody) (weft.Check, error) {
	c, err := b.check()
	if err == nil && c.Kind == weft.ScriptCheck && !a.scripts {
		err = b.invalid("Scripts are disabled on this agent; to enable, configure 'enable_script_checks' or 'enable_local_script_checks' to true")
	}
	if c.Kind == weft.AliasCheck && c.AliasNode == "" {
		c.AliasNode = a.registry.LocalNode().Name
	}
	return c, err
}

// status is the one that the client gives, and critical otherwise.
func (b *checkBody) status(c *weft.Check) (err error) {
	c.Status = weft.Critical
	if b.Status != "" {
		c.Status, err = parseStatus(b.Status)
	}
	return err
}

func (b *checkBody) times(c *weft.Check) (err error) {
	if c.TTL, err = b.TTL.parse("check TTL"); err != nil {
		return err
	}
	if c.Interval, err = b.Interval.parse("check interval"); err != nil {
		return err
	}
	if c.Timeout, err = b.Timeout.parse("check timeout"); err != nil {
		return err
	}
	c.DeregisterAfter, err = b.DeregisterCriticalServiceAfter.parse("DeregisterCriticalServiceAfter")
	return err
}

// kind decides what makes the check's status known. The registry looks at the rest.
func (b *checkBody) kind(c *weft.Check) error {
	var kinds []weft.CheckKind
	add := func(given bool, kind weft.CheckKind, target string) {
		if given {
			kinds, c.Target = append(kinds, kind), target
		}
	}
	add(b.HTTP != "", weft.HTTPCheck, b.HTTP)
	add(b.TCP != "", weft.TCPCheck, b.TCP)
	add(b.UDP != "", weft.UDPCheck, b.UDP)
	add(b.GRPC != "", weft.GRPCCheck, b.GRPC)
	add(b.H2PING != "", weft.H2PingCheck, b.H2PING)
	add(b.AliasNode != "" || b.AliasService != "", weft.AliasCheck, "")
	add(b.script() != nil, weft.ScriptCheck, "")
	add(c.TTL != 0, weft.TTLCheck, "")
	switch {
	case len(kinds) > 1:
		return b.invalid("it is %s and %s: give only one", kinds[0], kinds[1])
	case len(kinds) == 0 && b.Status == "":
		return b.invalid("give HTTP, TCP, UDP, GRPC, H2PING, TTL, ScriptArgs, AliasNode, AliasService or Status")
	case len(kinds) == 0:
		c.Kind = weft.StaticCheck
		return nil
	}
	c.Kind = kinds[0]
	switch c.Kind {
	case weft.GRPCCheck:
		c.TLS = b.GRPCUseTLS
	case weft.H2PingCheck:
		c.TLS = b.H2PingUseTLS == nil || *b.H2PingUseTLS
	case weft.AliasCheck:
		c.AliasNode, c.AliasService = b.AliasNode, b.AliasService
	case weft.ScriptCheck:
		c.Args = b.script()
	}
	return nil
}

// script is the command of a script check, nil when it is none.
func (b *checkBody) script() []string {
	if len(b.ScriptArgs) > 0 {
		return b.ScriptArgs
	}
	return b.Args
}

func (b *checkBody) unsupported() string {
	switch {
	case b.DockerContainerID != "":
		return "a Docker check"
	case b.Script != "":
		return "a Script check (give ScriptArgs)"
	case b.OSService != "":
		return "an OSService check"
	case b.TCPUseTLS:
		return "TCPUseTLS"
	}
	return ""
}

// clip cuts a check's output to the length that is kept.
func clip(output string) string {
	return strings.ToValidUTF8(output[:min(len(output), maxOutput)], "")
}

func (b *checkBody) invalid(format string, args ...any) error {
	thing := b.id()
	if thing == "" {
		thing = b.Name
	}
	return weft.Errorf(weft.Invalid, "register check", thing, format, args...)
}

// parseStatus reads a status that a client may give a check.
func parseStatus(s string) (weft.Health, error) {
	h, err := weft.ParseHealth(s)
	if err != nil || h == weft.Maintenance {
		return h, weft.Errorf(weft.Invalid, "read check status", s, "want passing, warning or critical")
	}
	return h, nil
}

// keepUnnamed adds to the checks of a registration those that the instance has
// already and that the registration does not name: as in Consul they stay, unless
// the client says "replace-existing-checks". What a named check keeps of its old
// self, and that maintenance stays, is the registry's to say.
func keepUnnamed(fresh, known []weft.Check) []weft.Check {
	for _, c := range known {
		if slices.ContainsFunc(fresh, func(f weft.Check) bool { return f.ID == c.ID }) {
			continue
		}
		if c.Kind == weft.TTLCheck || c.Kind == weft.LeaseCheck {
			c.Status = weft.Critical // keeps its status; a better one would be a report, and renew it
		}
		fresh = append(fresh, c)
	}
	return fresh
}
