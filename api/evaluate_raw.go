package api

import (
	"fmt"
	"strings"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/client"
)

// Schemes of what is explained beside requests: whole connections.
const (
	tcpScheme = "tcp"
	tlsScheme = "tls" // that the application itself speaks, and a gateway passes on
)

// runRaw fills in where a connection to a port may go.
func (v *evaluation) runRaw(e *client.Explanation, port uint16) {
	decide := func(random uint64) (weft.Decision, bool) {
		switch {
		case v.request.Scheme == tlsScheme:
			return v.snapshot.RouteTLS(v.request.Host, port, random)
		case v.snapshot.Gateway != nil:
			return v.snapshot.RouteGatewayTCP(port, random)
		}
		return v.snapshot.RouteTCP(v.request.Host, port, random), true
	}
	first, ok := decide(0)
	switch {
	case !ok && v.request.Scheme == tlsScheme:
		e.Routes = []client.Route{{Share: 1, Table: v.request.Host, Problem: "no rule passes it on; a gateway ends TLS itself, if it has a certificate"}}
		return
	case !ok:
		e.Routes = []client.Route{{Share: 1, Table: v.authority, Problem: fmt.Sprintf("no TCP server of the gateway has the port %d, or no rule leads on from it", port)}}
		return
	}
	if first.EdgeRaw == nil {
		e.Routes = []client.Route{v.rawRoute(1, v.request.Host, first)}
		return
	}
	e.Edge = rawRule(first.EdgeRaw)
	for i, random := range offsets(first.EdgeRaw.Destinations) {
		d := &first.EdgeRaw.Destinations[i]
		if share := first.EdgeRaw.Share(d); share > 0 {
			chosen, _ := decide(random)
			e.Routes = append(e.Routes, v.rawRoute(share, d.Service.Host(), chosen))
		}
	}
}

// rawRoute describes the rule of a decision with all its destinations.
func (v *evaluation) rawRoute(share float64, table string, decision weft.Decision) client.Route {
	out := client.Route{Share: share, Table: table}
	if decision.Raw == nil {
		out.Problem = string(decision.Problem)
		return out
	}
	out.Rule = rawRule(decision.Raw)
	// The rule alone, for any connection, so that each destination can be chosen in
	// turn.
	rule := *decision.Raw
	rule.Ports, rule.SNI = nil, nil
	alone := weft.Snapshot{Services: v.snapshot.Services, Hosts: map[string]*weft.RouteTable{table: {TCP: []weft.RawRule{rule}}}}
	for i, random := range offsets(decision.Raw.Destinations) {
		d := &decision.Raw.Destinations[i]
		chosen := weft.Decision{Service: v.snapshot.Services[d.Service]}
		if decision.Raw.Share(d) > 0 {
			chosen = alone.RouteTCP(table, 0, random)
		}
		out.Destinations = append(out.Destinations, v.destination(decision.Raw.Share(d), weft.Decision{}, d, chosen))
	}
	return out
}

func rawRule(r *weft.RawRule) *client.Rule {
	var asks []string
	for _, port := range r.Ports {
		asks = append(asks, fmt.Sprintf("port %d", port))
	}
	match := "every connection"
	if len(asks)+len(r.SNI) > 0 {
		match = strings.Join(append(asks, r.SNI...), ", ")
	}
	return &client.Rule{Name: r.Name, Source: r.Source, Match: match}
}
