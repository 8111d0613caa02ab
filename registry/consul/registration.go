package consul

import (
	"encoding/json"
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
	Locality          *localityRecord

	// Not supported in this release, and so refused rather than lost.
	Kind       string
	SocketPath string
	Ports      []json.RawMessage
	Connect    *struct {
		Native         bool
		SidecarService json.RawMessage
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
	TLSSkipVerify    bool
	DisableRedirects bool
	TCP              string
	TTL              duration
	Interval         duration
	Timeout          duration

	DeregisterCriticalServiceAfter duration
	SuccessBeforePassing           int
	FailuresBeforeWarning          int
	FailuresBeforeCritical         int

	// Not supported in this release.
	Script            string
	Args              []string
	ScriptArgs        []string
	DockerContainerID string
	GRPC              string
	UDP               string
	H2PING            string
	OSService         string
	AliasNode         string
	AliasService      string
	TLSServerName     string
	TCPUseTLS         bool
}

// instance reads the fields as an instance of service, without node and checks.
// The registry looks whether the values are sound.
func (s *serviceFields) instance(service weft.ServiceName, dialect string) (weft.Instance, error) {
	if err := s.supported(service.Name); err != nil {
		return weft.Instance{}, err
	}
	in := weft.Instance{
		ID: s.ID, Service: service, Address: s.Address, Port: s.Port,
		Tags: s.Tags, Labels: s.Meta, Dialect: dialect, EnableTagOverride: s.EnableTagOverride,
		Protocol: weft.DeclaredProtocol(s.Meta, s.Tags),
	}
	if in.ID == "" {
		in.ID = service.Name
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
	return in, nil
}

func (s *serviceFields) supported(name string) error {
	what := ""
	switch {
	case s.Kind != "" && s.Kind != "typical":
		what = "Kind " + strconv.Quote(s.Kind)
	case s.Connect != nil && (s.Connect.Native || sent(s.Connect.SidecarService)):
		what = "Connect"
	case s.SocketPath != "":
		what = "SocketPath"
	case len(s.Ports) > 0:
		what = "Ports (give Port)"
	default:
		return nil
	}
	return weft.Errorf(weft.Invalid, "register service", name, "%s is not supported in this version", what)
}

func sent(raw json.RawMessage) bool { return len(raw) > 0 && string(raw) != "null" }

// checks reads the checks of a service registration. An empty "Check" is as good
// as none: some clients always send it.
func (b *agentServiceBody) checks(id string) ([]weft.Check, error) {
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
		c, err := body.check()
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
	return b.HTTP == "" && b.TCP == "" && b.TTL == "" && b.Interval == "" && b.Status == "" &&
		b.id() == "" && b.unsupported() == ""
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
		Method: b.Method, Header: b.Header, Body: b.Body, TLSSkipVerify: b.TLSSkipVerify, NoRedirects: b.DisableRedirects,
		SuccessBeforePassing: b.SuccessBeforePassing, FailuresBeforeWarning: b.FailuresBeforeWarning,
		FailuresBeforeCritical: b.FailuresBeforeCritical,
	}
	if what := b.unsupported(); what != "" {
		return c, b.invalid("%s is not supported in this version, use HTTP, TCP or TTL", what)
	}
	if err := b.status(&c); err != nil {
		return c, err
	}
	if err := b.times(&c); err != nil {
		return c, err
	}
	return c, b.kind(&c)
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
	if b.HTTP != "" {
		kinds, c.Target = append(kinds, weft.HTTPCheck), b.HTTP
	}
	if b.TCP != "" {
		kinds, c.Target = append(kinds, weft.TCPCheck), b.TCP
	}
	if c.TTL != 0 {
		kinds = append(kinds, weft.TTLCheck)
	}
	switch {
	case len(kinds) > 1:
		return b.invalid("give only one of HTTP, TCP and TTL")
	case len(kinds) == 1:
		c.Kind = kinds[0]
	case b.Status != "":
		c.Kind = weft.StaticCheck
	default:
		return b.invalid("give HTTP, TCP, TTL or Status")
	}
	return nil
}

func (b *checkBody) unsupported() string {
	for _, f := range []struct {
		name  string
		given bool
	}{
		{"a Script check", b.Script != ""},
		{"a check with Args", len(b.Args) > 0 || len(b.ScriptArgs) > 0},
		{"a Docker check", b.DockerContainerID != ""},
		{"a GRPC check", b.GRPC != ""},
		{"a UDP check", b.UDP != ""},
		{"an H2PING check", b.H2PING != ""},
		{"an OSService check", b.OSService != ""},
		{"an alias check", b.AliasNode != "" || b.AliasService != ""},
		{"TLSServerName", b.TLSServerName != ""},
		{"TCPUseTLS", b.TCPUseTLS},
	} {
		if f.given {
			return f.name
		}
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
