package resource

import (
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/weftmesh/weft"
)

// A case in testdata/compile is files, then under "ask" questions ("> …"), each
// followed by its answer. The questions:
//
//	route mesh NAMESPACE HOST METHOD PATH[?QUERY] [HEADER=VALUE]…
//	route gateway NAME HOST METHOD PATH[?QUERY] [HEADER=VALUE]…
//	tables GATEWAY
//	tcp mesh NAMESPACE HOST PORT
//	tls mesh NAMESPACE SNI PORT
//	tcp gateway NAME PORT
//	tls gateway NAME SNI PORT
//	paths mesh NAMESPACE HOST
//	paths gateway NAME HOST
//	paths service SERVICE.NAMESPACE
//	conflicts [VIRTUALSERVICE.NAMESPACE]…   (what was applied; all without)
//	policy SERVICE.NAMESPACE NAMESPACE-OF-CLIENT [SUBSET]
//	resilience SERVICE.NAMESPACE      (and the state that its circuit is held in)
//	authz NAMESPACE LABEL=VALUE[,…] IDENTITY|- ADDRESS PORT METHOD HOST/PATH [HEADER=VALUE]…
//	warnings [SERVICE.NAMESPACE]…     (the services that exist)
func TestCompile(t *testing.T) {
	eachCase(t, "compile", func(t *testing.T, path string) {
		sections := readCase(t, path)
		resources, problems := Parse(filesOf(sections))
		if errs := problems.Errors(); len(errs) > 0 {
			t.Fatal(errs)
		}
		for i, r := range resources {
			r.Created = int64(i + 1)
		}
		answer := func(of *Set) string {
			var out strings.Builder
			for line := range strings.Lines(sections[len(sections)-1].text) {
				if question, ok := strings.CutPrefix(strings.TrimSpace(line), "> "); ok {
					fmt.Fprintf(&out, "> %s\n%s\n\n", question, ask(t, of, strings.Fields(question)))
				}
			}
			return out.String()
		}
		got := answer(NewSet(resources))
		last := &sections[len(sections)-1]
		if *update {
			last.text = got
			writeCase(t, path, sections)
		}
		if diff := cmp.Diff(last.text, got); diff != "" {
			t.Errorf("wrong answer (-want +got):\n%s", diff)
		}
		if again := answer(NewSet(decoded(t, resources))); again != got {
			t.Errorf("after Decode (-parsed +decoded):\n%s", cmp.Diff(got, again))
		}
	})
}

// decoded are the resources as a store gives them back, in another order.
func decoded(t *testing.T, resources []*Resource) []*Resource {
	t.Helper()
	var out []*Resource
	for _, r := range slices.Backward(resources) {
		d, err := Decode(r.JSON, weft.SourceRef{})
		if err != nil {
			t.Fatal(err)
		}
		d.Created = r.Created
		out = append(out, d)
	}
	return out
}

func ask(t *testing.T, s *Set, q []string) string {
	t.Helper()
	switch {
	case q[0] == "route" && q[1] == "mesh":
		return askTable(s.RouteTable(q[3], q[2]), q[3:])
	case q[0] == "route":
		return askTable(weft.NewGateway(q[2], s.Gateway(q[2])).Lookup(q[3]), q[3:])
	case q[0] == "tables":
		return askTables(s, q[1])
	case q[0] == "tcp" || q[0] == "tls":
		return askRaw(t, s, q)
	case q[0] == "paths":
		return askPaths(s, q[1:])
	case q[0] == "conflicts":
		return lines(s.Conflicts(slices.Collect(func(yield func(Ref) bool) {
			for r := range s.resources {
				if len(q) == 1 || slices.Contains(q[1:], r.Name+"."+r.Namespace) {
					yield(r)
				}
			}
		})))
	case q[0] == "policy":
		return askPolicy(s, q[1:])
	case q[0] == "resilience":
		name, namespace, _ := strings.Cut(q[1], ".")
		n := weft.NewServiceName(namespace, name)
		return strings.TrimSpace(describeResilience(s.Resilience(n)) + " " + s.Breaker(n))
	case q[0] == "authz":
		return askAuthorization(s, q[1:])
	case q[0] == "warnings":
		return lines(s.Warnings(func(n weft.ServiceName) bool { return slices.Contains(q[1:], n.String()) }))
	}
	t.Fatalf("unknown question %q", q)
	return ""
}

type headers map[string]string

func (h headers) Header(name string) (string, bool) {
	v, ok := h[strings.ToLower(name)]
	return v, ok
}

// request reads HOST METHOD PATH[?QUERY] [HEADER=VALUE]…
func request(words []string) *weft.Request {
	r := &weft.Request{Scheme: "http", Host: words[0], Method: words[1]}
	r.Path, r.Query, _ = strings.Cut(words[2], "?")
	h := headers{}
	for _, word := range words[3:] {
		k, v, _ := strings.Cut(word, "=")
		h[k] = v
	}
	r.Headers = h
	return r
}

func askTable(table *weft.RouteTable, words []string) string {
	if table == nil {
		return "no table"
	}
	rule := table.Match(request(words))
	if rule == nil {
		return "no rule"
	}
	return fmt.Sprintf("%s: %s", rule, describe(rule))
}

func askTables(s *Set, gateway string) string {
	var out []string
	for _, table := range s.Gateway(gateway) {
		line := table.Host + ":"
		for _, r := range table.Rules {
			line += " " + r.Source.Name + "/" + r.Name
		}
		for _, r := range append(slices.Clone(table.TCP), table.TLS...) {
			line += fmt.Sprintf(" %s/%s%v%v", r.Source.Name, r.Name, r.Ports, r.SNI)
		}
		out = append(out, line)
	}
	return strings.Join(out, "\n")
}

// askRaw asks as a proxy does, but that services do not exist here.
func askRaw(t *testing.T, s *Set, q []string) string {
	t.Helper()
	port, err := strconv.ParseUint(q[len(q)-1], 10, 16)
	if err != nil {
		t.Fatal(err)
	}
	var d weft.Decision
	ok := true
	if q[1] == "mesh" {
		snapshot := &weft.Snapshot{Hosts: map[string]*weft.RouteTable{q[3]: s.RouteTable(q[3], q[2])}}
		if q[0] == "tcp" {
			d = snapshot.RouteTCP(q[3], uint16(port), 0)
		} else {
			d, ok = snapshot.RouteTLS(q[3], uint16(port), 0)
		}
	} else {
		snapshot := &weft.Snapshot{Gateway: weft.NewGateway(q[2], s.Gateway(q[2]))}
		if q[0] == "tcp" {
			d, ok = snapshot.RouteGatewayTCP(uint16(port), 0)
		} else {
			d, ok = snapshot.RouteTLS(q[3], uint16(port), 0)
		}
	}
	switch {
	case !ok:
		return "not passed on"
	case d.Raw == nil:
		return string(d.Problem)
	}
	out := d.Raw.String() + ":"
	for i := range d.Raw.Destinations {
		to := &d.Raw.Destinations[i]
		out += fmt.Sprintf(" %s/%s %g%%", to.Service, to.Subset, 100*d.Raw.Share(to))
	}
	return out
}

func askPaths(s *Set, q []string) string {
	switch q[0] {
	case "service":
		name, namespace, _ := strings.Cut(q[1], ".")
		return s.Paths(weft.NewServiceName(namespace, name)).String()
	case "mesh":
		return (&weft.Snapshot{Hosts: map[string]*weft.RouteTable{q[2]: s.RouteTable(q[2], q[1])}}).PathMode(q[2]).String()
	}
	return (&weft.Snapshot{Gateway: weft.NewGateway(q[1], s.Gateway(q[1]))}).PathMode(q[2]).String()
}

func lines(problems weft.Problems) string {
	var out []string
	for _, p := range problems {
		out = append(out, p.String())
	}
	return strings.Join(out, "\n")
}

// describe says what a rule does with its requests.
func describe(r *weft.Rule) string {
	var out []string
	say := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	for i := range r.Destinations {
		d := &r.Destinations[i]
		to := d.Service.String()
		if d.Subset != "" {
			to += "/" + d.Subset
		}
		say("%s %g%%%s", to, 100*r.Share(d), describeHeaders("", d.Request))
		if d.Unresolved != "" {
			say("(%s)", d.Unresolved)
		}
	}
	if r.Redirect != nil {
		say("redirect %+v", *r.Redirect)
	}
	if r.Direct != nil {
		say("answer %d %q", r.Direct.Status, r.Direct.Body)
	}
	if r.Rewrite != nil {
		say("rewrite %+v of %v", *r.Rewrite, r.Matches[0].Path)
	}
	if r.Timeout > 0 {
		say("timeout %s", r.Timeout)
	}
	if fmt.Sprint(r.Retry) != fmt.Sprint(weft.DefaultRetry) {
		say("retry %d times of %s on %07b and %v", r.Retry.Attempts, r.Retry.PerTryTimeout, r.Retry.On, r.Retry.Statuses)
		if r.Retry.Backoff > 0 {
			say("from %s on", r.Retry.Backoff)
		}
		if !r.Retry.Chosen {
			say("chosen by nobody")
		}
	}
	if r.Resilience != nil {
		say("%s", describeResilience(r.Resilience))
	}
	return strings.Join(out, ", ") + describeHeaders(" request", r.Request) + describeHeaders(" response", r.Response)
}

func describeResilience(r *weft.Resilience) string {
	if r == nil {
		return "no policy"
	}
	return fmt.Sprintf("%s %s", r.Source, r.Spec)
}

func describeHeaders(of string, ops weft.HeaderOps) string {
	if ops.Empty() {
		return ""
	}
	return fmt.Sprintf("%s set %v add %v remove %v", of, ops.Set, ops.Add, ops.Remove)
}

func askPolicy(s *Set, words []string) string {
	name, namespace, _ := strings.Cut(words[0], ".")
	policy, subsets := s.Service(weft.NewServiceName(namespace, name), words[1])
	var names []string
	for _, sub := range subsets {
		names = append(names, fmt.Sprintf("%s%v", sub.Name, sub.Labels))
		if len(words) > 2 && sub.Name == words[2] {
			policy = sub.Policy
		}
	}
	out := fmt.Sprintf("%s %s; subsets %v\n%s connect %s idle %s connections %d pending %d requests %d per connection %d http2 %v streams %d",
		policy.Source, policy.Source.Field, names, policy.LoadBalancer, policy.ConnectTimeout, policy.IdleTimeout,
		policy.MaxConnections, policy.MaxPendingRequests, policy.MaxRequests, policy.MaxRequestsPerConn, policy.HTTP2, policy.MaxStreams)
	if policy.ProxyProtocol > 0 {
		out += fmt.Sprintf(" proxy protocol %d", policy.ProxyProtocol)
	}
	for _, part := range []any{policy.Hash, policy.SlowStart, policy.Locality} {
		if !reflect.ValueOf(part).IsNil() {
			out += fmt.Sprintf("\n%T %+v", part, part)
		}
	}
	if policy.Outlier != nil {
		out += fmt.Sprintf("\noutlier %+v", *policy.Outlier)
	}
	return out
}

func askAuthorization(s *Set, words []string) string {
	labels := map[string]string{}
	for _, l := range strings.Split(words[1], ",") {
		k, v, _ := strings.Cut(l, "=")
		labels[k] = v
	}
	host, path, _ := strings.Cut(words[6], "/")
	r := request(append([]string{host, words[5], "/" + path}, words[7:]...))
	if words[2] != "-" {
		r.Source = weft.Identity("spiffe://" + words[2])
	}
	addr, _ := netip.ParseAddr(words[3])
	verdict := s.Authorization(words[0], labels).Decide(&weft.AuthorizationRequest{Request: r, PeerAddr: addr, Port: words[4]})
	if verdict.Allowed {
		return "allowed: " + verdict.Reason()
	}
	return "denied: " + verdict.Reason()
}
