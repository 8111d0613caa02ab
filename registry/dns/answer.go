package dns

import (
	"encoding/binary"
	"encoding/hex"
	"hash/fnv"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/registry"
)

// answer is a record of the name that was asked for, in a message's form.
type answer struct {
	rrtype uint16
	ttl    uint32
	weight uint32 // how often it comes first, beside others; 0 is 1
	data   []byte
	host   string     // of a CNAME: where it leads
	glue   netip.Addr // the address of the name in data, for the additional section
	nameAt int        // where that name is in data
}

// result is what a name has for a type.
type result struct {
	found   bool // the name exists, though perhaps without such a record
	refused bool // the name is not ours
	answers []answer
	one     bool // the answers are alternatives: one is given
	deps    []dep
	keep    bool // it may be kept as long as deps hold

	guarded string // why instances are given although they failed

	// follow is another name, to which the one that was asked for leads: the answer
	// is a CNAME and what that has. doubtful: only if that exists.
	follow   string
	doubtful bool
}

// spot is where an instance is reached.
type spot struct {
	in     *weft.Instance
	host   string
	addr   netip.Addr // invalid when host is a name
	port   int
	own    bool // the address is the instance's, not its node's
	weight uint32

	guarded string // why it is given although it failed
}

// ready returns where the instances of a service are that may be given: those that
// pass or warn, by their own and their node's checks, or that the service's guard
// keeps; all of them with ill. any says whether the service has instances at all.
func (s *Server) ready(n weft.ServiceName, ill bool) (list []spot, deps []dep, any bool) {
	all, deps := s.instances(n)
	return s.spots(all, ill), deps, len(all) > 0
}

func (s *Server) spots(all []*weft.Instance, ill bool) []spot {
	worst := weft.Warning
	if s.onlyPassing {
		worst = weft.Passing
	}
	type nodeState struct {
		address string
		health  weft.Health
	}
	nodes := make(map[string]nodeState, 1)
	guards := guards{registry: s.registry}
	list := make([]spot, 0, len(all))
	for _, in := range all {
		node, seen := nodes[in.Node]
		if !seen {
			node.health = weft.Critical
			if n, _, _ := s.registry.Node(in.Node); n != nil {
				node = nodeState{n.Address, nodeHealth(n)}
			}
			nodes[in.Node] = node
		}
		why := ""
		if max(in.Health(), node.health) > worst {
			if why = guards.keeps(in); why == "" && !ill {
				continue
			}
		}
		sp := spot{in: in, host: in.Address, port: in.Port, own: in.Address != "", weight: uint32(min(max(in.Weight(), 1), 65535)), guarded: why}
		if !sp.own {
			sp.host = node.address
		}
		if addr, err := netip.ParseAddr(sp.host); err == nil {
			sp.addr = addr.Unmap().WithZone("")
		} else if !isHostName(sp.host) {
			continue
		}
		list = append(list, sp)
	}
	return list
}

// guards looks for what guards keep. It is asked after the instances were read: what
// is newer than those has another index, so that no answer made of it is kept.
type guards struct {
	registry *registry.Registry

	service weft.ServiceName // whose guard was looked for last
	guard   registry.Guard
}

// keeps returns why an instance that failed gets traffic, "" when it does not.
func (g *guards) keeps(in *weft.Instance) string {
	if g.service != in.Service {
		g.guard, _ = g.registry.Guard(in.Service)
		g.service = in.Service
	}
	if !g.guard.Keeps(in.Key()) {
		return ""
	}
	return g.guard.Reason
}

// guardOf returns why there are instances in the list that failed.
func guardOf(list []spot) string {
	for i := range list {
		if list[i].guarded != "" {
			return list[i].guarded
		}
	}
	return ""
}

func nodeHealth(n *weft.Node) weft.Health {
	health := weft.Passing
	for i := range n.Checks {
		health = max(health, n.Checks[i].Status)
	}
	return health
}

// service answers for [tag.]name.service.consul.
func (s *Server) service(t target, qtype uint16) result {
	list, deps, any := s.ready(t.service, false)
	if t.tag != "" {
		list = slices.DeleteFunc(list, func(sp spot) bool { return !hasTag(sp.in, t.tag) })
	}
	// Names with tags that nobody has are without number: they are not kept.
	r := result{found: len(list) > 0, deps: deps, keep: len(list) > 0 || any && t.tag == ""}
	s.consulRecords(&r, t, qtype, list, s.serviceTTL(t.service.Name))
	return r
}

// consulRecords adds the records of a type that instances have under a name of
// Consul's.
func (s *Server) consulRecords(r *result, t target, qtype uint16, list []spot, ttl uint32) {
	r.guarded = guardOf(list)
	switch qtype {
	case dns.TypeA, dns.TypeAAAA, dns.TypeCNAME:
		addresses(r, qtype, list, ttl)
	case dns.TypeSRV:
		for _, sp := range list {
			r.answers = append(r.answers, srv(sp, sp.port, s.consulTarget(sp, t.domain), ttl))
		}
	case dns.TypeSVCB, dns.TypeHTTPS:
		bindings(r, qtype, list, ttl, func(sp spot) string { return s.consulTarget(sp, t.domain) })
	}
}

// query answers for a prepared query, which is executed each time.
func (s *Server) query(t target, qtype uint16) result {
	if s.queries == nil {
		return result{}
	}
	list, ttl, found := s.queries.Execute(t.node, maxExecuted)
	if !found {
		return result{}
	}
	r := result{found: len(list) > 0}
	s.consulRecords(&r, t, qtype, s.spots(list, true), seconds(ttl))
	return r
}

// maxExecuted bounds the instances that a prepared query is asked for; more do not
// fit into any message.
const maxExecuted = 65535 / 16

// connect answers for name.connect.consul: where the mesh takes connections for the
// service. That is the instance's sidecar, a proxy that was registered for it, or
// the instance itself when it says that it is of the mesh.
func (s *Server) connect(t target, qtype uint16) result {
	list, _, _ := s.ready(t.service, false)
	var doors []spot
	for _, sp := range list {
		switch addr, err := netip.ParseAddrPort(sp.in.MeshAddr); {
		case sp.in.MeshAddr != "" && sp.in.Identity != "" && err == nil:
			sp.addr, sp.host, sp.port, sp.own = addr.Addr().Unmap(), addr.Addr().String(), int(addr.Port()), true
			doors = append(doors, sp)
		case extraOf(sp.in).Connect.Native:
			doors = append(doors, sp)
		}
	}
	for _, n := range s.proxiesOf(t.service.Name) {
		list, _ := s.registry.Instances(n)
		for _, sp := range s.spots(list, false) {
			if e := extraOf(sp.in); e.Kind == "connect-proxy" && strings.EqualFold(e.Proxy.DestinationServiceName, t.service.Name) {
				doors = append(doors, sp)
			}
		}
	}
	r := result{found: len(doors) > 0}
	s.consulRecords(&r, t, qtype, doors, s.serviceTTL(t.service.Name))
	return r
}

// ingress answers for name.ingress.consul: the ingress gateways, of any service
// that is there.
func (s *Server) ingress(t target, qtype uint16) result {
	var doors []spot
	if s.hasService(t.service) {
		for _, n := range s.ingresses() {
			list, _ := s.registry.Instances(n)
			for _, sp := range s.spots(list, false) {
				if extraOf(sp.in).Kind == "ingress-gateway" {
					doors = append(doors, sp)
				}
			}
		}
	}
	r := result{found: len(doors) > 0}
	s.consulRecords(&r, t, qtype, doors, s.serviceTTL(t.service.Name))
	return r
}

// virtual answers for name.virtual.consul.
func (s *Server) virtual(t target, qtype uint16) result {
	list, deps := s.instances(t.service)
	if len(list) == 0 {
		return result{}
	}
	r := addressOf(qtype, VirtualIP(list[0].Service), s.serviceTTL(t.service.Name))
	r.deps, r.keep = deps, true
	return r
}

// VirtualIP is the address in 240.0.0.0/4 that stands for a service, without being
// anybody's. It is made of the name alone, so every server gives the same; two
// services share one by chance, once in 2^28 pairs.
func VirtualIP(n weft.ServiceName) netip.Addr {
	h := fnv.New64a()
	h.Write([]byte(strings.ToLower(n.Namespace) + "/" + strings.ToLower(n.Name)))
	sum := h.Sum64()
	low := uint32(sum^sum>>32) & 0x0fffffff
	if low == 0x0fffffff { // 255.255.255.255 is everybody
		low--
	}
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], 0xf0000000|low)
	return netip.AddrFrom4(b)
}

func hasTag(in *weft.Instance, tag string) bool {
	return slices.ContainsFunc(in.Tags, func(t string) bool { return strings.EqualFold(t, tag) })
}

// addresses adds the addresses of instances, each once, with the weight of all that
// are there. Host names cannot stand beside addresses (RFC 2181 section 10.1): one
// is given, when there is nothing else.
func addresses(r *result, qtype uint16, list []spot, ttl uint32) {
	at := make(map[netip.Addr]int, len(list))
	var hosts []answer
	anyAddress := false
	for _, sp := range list {
		if !sp.addr.IsValid() {
			data, _ := appendName(nil, sp.host) // isHostName said so
			hosts = append(hosts, answer{rrtype: dns.TypeCNAME, ttl: ttl, weight: sp.weight, data: data, host: sp.host})
			continue
		}
		anyAddress = true
		if addressType(sp.addr) != qtype {
			continue
		}
		i, seen := at[sp.addr]
		if !seen {
			at[sp.addr] = len(r.answers)
			r.answers = append(r.answers, answer{rrtype: qtype, ttl: ttl, weight: sp.weight, data: sp.addr.AsSlice()})
			continue
		}
		r.answers[i].weight += sp.weight
	}
	if !anyAddress && len(hosts) > 0 {
		r.answers, r.one = hosts, true
	}
}

// srv is the SRV record of an instance. Its target is not compressed (RFC 2782).
func srv(sp spot, port int, target string, ttl uint32) answer {
	data := make([]byte, 6, 6+2+len(target))
	binary.BigEndian.PutUint16(data, 1)
	binary.BigEndian.PutUint16(data[2:], uint16(sp.weight))
	binary.BigEndian.PutUint16(data[4:], uint16(port))
	data, _ = appendName(data, target)
	return answer{rrtype: dns.TypeSRV, ttl: ttl, weight: sp.weight, data: data, glue: sp.addr, nameAt: 6}
}

// consulTarget names an instance by its node, or by its address when it has one of
// its own or its node's name does not fit into a host name.
func (s *Server) consulTarget(sp spot, domain string) string {
	switch {
	case !sp.addr.IsValid():
		return sp.host
	case !sp.own && isHostName(sp.in.Node):
		return strings.ToLower(sp.in.Node) + ".node." + s.datacenter + "." + domain
	}
	return hex.EncodeToString(sp.addr.AsSlice()) + ".addr." + s.datacenter + "." + domain
}

// isHostName says whether a registered text can stand in a message as a name.
func isHostName(h string) bool {
	if h == "" || strings.ContainsFunc(h, func(c rune) bool {
		return c != '.' && c != '-' && c != '_' && (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z')
	}) {
		return false
	}
	_, ok := appendName(nil, h)
	return ok && len(h) < maxName-64 // room for what comes behind it
}

// node answers for node.node.consul. A node is given whatever its health.
func (s *Server) node(t target, qtype uint16) result {
	deps := []dep{s.topicDep(registry.NodesTopic())}
	n := s.nodeNamed(t.node)
	if n == nil {
		return result{}
	}
	r := result{found: true, deps: deps, keep: true}
	addr, err := netip.ParseAddr(n.Address)
	switch {
	case qtype == dns.TypeTXT:
		r.answers = texts(s.ttl, labelTexts(n.Labels)...)
	case err == nil:
		r.answers = addressOf(qtype, addr.Unmap(), s.ttl).answers
	case isHostName(n.Address) && (qtype == dns.TypeA || qtype == dns.TypeAAAA || qtype == dns.TypeCNAME):
		r.answers = []answer{cname(n.Address, s.ttl)}
	}
	return r
}

func cname(host string, ttl uint32) answer {
	data, _ := appendName(nil, host)
	return answer{rrtype: dns.TypeCNAME, ttl: ttl, data: data, host: host}
}

// labelTexts writes labels as RFC 1464 has it, key=value; of a key that starts
// with "rfc1035-" the value alone.
func labelTexts(labels map[string]string) []string {
	out := make([]string, 0, len(labels))
	for k, v := range labels {
		if !strings.HasPrefix(k, "rfc1035-") {
			v = k + "=" + v
		}
		out = append(out, v)
	}
	slices.Sort(out)
	return out
}

// texts are TXT records, each of strings of 255 bytes at most.
func texts(ttl uint32, list ...string) []answer {
	var out []answer
	for _, t := range list {
		var data []byte
		for first := true; first || len(t) > 0; first = false {
			n := min(len(t), 255)
			data = append(append(data, byte(n)), t[:n]...)
			t = t[n:]
		}
		if len(data) <= 65535 {
			out = append(out, answer{rrtype: dns.TypeTXT, ttl: ttl, data: data})
		}
	}
	return out
}

// addressOf is the one address of a name.
func addressOf(qtype uint16, addr netip.Addr, ttl uint32) result {
	r := result{found: true}
	if addr.IsValid() && qtype == addressType(addr) {
		r.answers = []answer{{rrtype: qtype, ttl: ttl, data: addr.AsSlice()}}
	}
	return r
}

func addressType(addr netip.Addr) uint16 {
	if addr.Is4() {
		return dns.TypeA
	}
	return dns.TypeAAAA
}

// pointer answers for an address backwards: its node's name, else the names of the
// services that have an instance there; and the names of Kubernetes that a Service,
// or an instance's own host name, gives it.
func (s *Server) pointer(t target, qtype uint16) result {
	services, nodes := s.servicesAt(t.addr)
	docs := s.documents.Load()
	suffix := "." + s.datacenter + "." + s.domains[0].name
	var names []string
	for _, n := range nodes {
		names = append(names, n+".node"+suffix)
	}
	for _, n := range services {
		if len(nodes) == 0 && n.Namespace == weft.DefaultNamespace && isHostName(n.Name) {
			names = append(names, strings.ToLower(n.Name)+".service"+suffix)
		}
	}
	for _, n := range services {
		names = append(names, s.kubePointers(n, t.addr)...)
	}
	for _, n := range docs.clusterIPs[t.addr] {
		names = append(names, kubeHost(n))
	}
	slices.Sort(names)
	r := result{found: len(names) > 0, refused: len(names) == 0}
	if qtype == dns.TypePTR {
		for _, name := range slices.Compact(names) {
			if data, ok := appendName(nil, name); ok {
				r.answers = append(r.answers, answer{rrtype: dns.TypePTR, ttl: s.ttl, data: data})
			}
		}
	}
	return r
}

// seconds is a TTL.
func seconds(d time.Duration) uint32 { return uint32(max(d, 0) / time.Second) }

// serviceTTL is how long answers about a service may be kept: what Config says of
// exactly this name, else of the longest beginning.
func (s *Server) serviceTTL(name string) uint32 {
	if ttl, ok := s.serviceTTLs[name]; ok {
		return ttl
	}
	best, found := s.ttl, -1
	for pattern, ttl := range s.serviceTTLs {
		prefix, wild := strings.CutSuffix(pattern, "*")
		if wild && len(prefix) > found && strings.HasPrefix(name, prefix) {
			best, found = ttl, len(prefix)
		}
	}
	return best
}
