package dns

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"github.com/weftmesh/weft"
)

// catalogue is what the slow model knows: what was registered, in no order.
type catalogue struct {
	nodes     map[string]weft.Node
	instances map[weft.InstanceKey]weft.Instance
}

// given are the instances of a service that may be answered with.
func (c *catalogue) given(service, tag string) (list []weft.Instance, any bool) {
	for _, in := range c.instances {
		if !strings.EqualFold(in.Service.Name, service) {
			continue
		}
		any = true
		ill := false
		for _, checks := range [][]weft.Check{in.Checks, c.nodes[in.Node].Checks} {
			for _, check := range checks {
				ill = ill || check.Status >= weft.Critical
			}
		}
		if ill || tag != "" && !slices.Contains(in.Tags, tag) {
			continue
		}
		if in.Address == "" {
			in.Address = c.nodes[in.Node].Address
		}
		list = append(list, in)
	}
	return list, any
}

// expect is what a name of a service should have, as texts, sorted; "no" when it
// should not exist. form says how the name is written.
func (c *catalogue) expect(form, service, tag, rrtype string) string {
	list, _ := c.given(service, tag)
	if form == "port" { // the tag is the name of the port
		list, _ = c.given(service, "")
		list = slices.DeleteFunc(list, func(in weft.Instance) bool { return !slices.Contains(in.Tags, tag) })
	}
	if len(list) == 0 {
		return "no"
	}
	records := make(map[string]bool)
	addresses := false
	for _, in := range list {
		addr, err := netip.ParseAddr(in.Address)
		addresses = addresses || err == nil
		switch {
		case rrtype == "SRV":
			weight := in.Weights.Passing
			for _, check := range in.Checks {
				if check.Status == weft.Warning {
					weight = in.Weights.Warning
				}
			}
			target := in.Address + "."
			if err == nil && (form == "kube" || form == "port") {
				target = strings.NewReplacer(".", "-", ":", "-").Replace(in.Address) + "." + strings.ToLower(service) + ".default.svc.cluster.local."
			} else if err == nil && c.instances[in.Key()].Address == "" {
				target = strings.ToLower(in.Node) + ".node.dc1.consul."
			} else if err == nil {
				target = fmt.Sprintf("%x.addr.dc1.consul.", addr.AsSlice())
			}
			records[fmt.Sprintf("SRV 1 %d %d %s", max(weight, 1), in.Port, target)] = true
		case form == "port":
		case rrtype == "A" && err == nil && addr.Is4(), rrtype == "AAAA" && err == nil && addr.Is6():
			records[rrtype+" "+in.Address] = true
		}
	}
	if (rrtype == "A" || rrtype == "AAAA") && !addresses && form != "port" {
		return "alias"
	}
	out := make([]string, 0, len(records))
	for r := range records {
		out = append(out, r)
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}

func (c *catalogue) randomInstance(rng *rand.Rand) weft.Instance {
	pick := func(list ...string) string { return list[rng.IntN(len(list))] }
	in := weft.Instance{
		ID: fmt.Sprint(rng.IntN(12)), Service: weft.NewServiceName("", pick("web", "Api", "far")), Node: pick("n1", "N2", "n3"),
		Port:    1000 + rng.IntN(3),
		Weights: weft.Weights{Passing: rng.IntN(4), Warning: rng.IntN(3)},
	}
	switch {
	case in.Service.Name == "far":
		in.Address = pick("x.example.com", "y.example.com")
	case rng.IntN(4) > 0:
		in.Address = pick("10.0.0.1", "10.0.0.2", "10.0.0.3", "2001:db8::1", "2001:db8::2")
	}
	for _, tag := range []string{"v1", "v2"} {
		if rng.IntN(2) == 0 {
			in.Tags = append(in.Tags, tag)
		}
	}
	if rng.IntN(3) > 0 {
		in.Checks = []weft.Check{{ID: "c" + in.ID + in.Service.Name, Kind: weft.StaticCheck, Status: weft.Health(rng.IntN(3))}}
	}
	return in
}

// change does one random thing to the registry and to the model.
func (c *catalogue) change(w *world, rng *rand.Rand) {
	w.Helper()
	switch rng.IntN(6) {
	case 0:
		n := weft.Node{Name: []string{"n1", "N2", "n3"}[rng.IntN(3)], Address: fmt.Sprintf("192.168.0.%d", 1+rng.IntN(3))}
		status := []weft.Health{weft.Passing, weft.Passing, weft.Warning, weft.Critical}[rng.IntN(4)]
		n.Checks = []weft.Check{{ID: "disk", Kind: weft.StaticCheck, Status: status}}
		w.addNode(n)
		c.nodes[n.Name] = n
	case 1, 2:
		for key := range c.instances {
			if _, err := w.registry.Deregister(w.Context(), key); err != nil {
				w.Fatal(err)
			}
			delete(c.instances, key)
			break
		}
	default:
		in := c.randomInstance(rng)
		if _, err := w.registry.Register(w.Context(), in); err != nil {
			w.Fatal(err)
		}
		c.instances[in.Key()] = in
	}
}

// Over many random changes, what is answered is what the slow model makes of the
// catalogue each time anew; also when it is answered from what was packed before.
func TestAnswersAreThoseOfTheSlowModel(t *testing.T) {
	w := newWorld(t, Config{})
	rng := rand.New(rand.NewPCG(5, 7))
	c := &catalogue{nodes: make(map[string]weft.Node), instances: make(map[weft.InstanceKey]weft.Instance)}
	for i, name := range []string{"n1", "N2", "n3"} {
		n := weft.Node{Name: name, Address: fmt.Sprintf("192.168.0.%d", i+1)}
		w.addNode(n)
		c.nodes[name] = n
	}
	forms := map[string]string{
		"consul": "%[2]s.service.consul.", "tagged": "%[1]s.%[2]s.service.consul.", "rfc2782": "_%[2]s._%[1]s.service.dc1.consul.",
		"kube": "%[2]s.default.svc.cluster.local.", "port": "_%[1]s._tcp.%[2]s.default.svc.cluster.local.",
	}
	r := w.server.newResponder()
	kept := 0
	for range 150 {
		c.change(w, rng)
		for form, pattern := range forms {
			for _, service := range []string{"web", "api", "far", "none"} {
				tag := ""
				if form != "consul" && form != "kube" {
					tag = "v1"
				}
				for _, rrtype := range []string{"A", "AAAA", "SRV"} {
					name := fmt.Sprintf(pattern, tag, service)
					q, err := question(name, rrtype).Pack()
					if err != nil {
						t.Fatal(err)
					}
					for range 2 { // packed, and from what was packed
						out, _ := r.respond(nil, q, asker{tcp: true})
						var a dns.Msg
						if err := a.Unpack(out); err != nil {
							t.Fatal(err)
						}
						if got, want := told(&a), c.expect(form, service, tag, rrtype); got != want {
							t.Fatalf("%s %s: %q, want %q", name, rrtype, got, want)
						}
						kept += len(a.Answer)
					}
				}
			}
		}
	}
	if kept < 1000 {
		t.Errorf("only %d records: that proves little", kept)
	}
}

func told(a *dns.Msg) string {
	switch {
	case a.Rcode == dns.RcodeNameError && len(a.Answer) == 0:
		return "no"
	case a.Rcode != dns.RcodeSuccess:
		return dns.RcodeToString[a.Rcode]
	case len(a.Answer) == 1 && a.Answer[0].Header().Rrtype == dns.TypeCNAME:
		return "alias"
	}
	texts := strings.Split(show(a.Answer), ", ")
	return strings.Join(slices.Compact(texts), ", ") // instances that are alike have records that are
}
