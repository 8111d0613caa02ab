package eureka

import (
	"bytes"
	"encoding/json"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/weftmesh/weft"
)

const (
	dialect     = "eureka"
	nodeName    = "eureka"         // on which Eureka's instances are
	leaseCheck  = "eureka-lease:"  // + instance id
	statusCheck = "eureka-status:" // + instance id
)

// row is an instance as the lists show it. It is immutable.
type row struct {
	app        string
	id         string
	in         *weft.Instance
	kept       *record // nil: not registered here
	status     status
	overridden status
	address    string
	lapsed     bool // its lease did
}

// rowKey finds a row.
type rowKey struct{ app, id string }

func (w *row) key() rowKey { return rowKey{w.app, w.id} }

// newRow looks at an instance, what a registration left with it, and its node; the
// last two may be nil. guarded says that traffic still goes to it although it failed.
func newRow(app string, in *weft.Instance, kept *record, node *weft.Node, guarded bool) *row {
	w := &row{app: app, in: in, kept: kept, address: in.Address, overridden: unknown}
	if w.address == "" && node != nil {
		w.address = node.Address
	}
	if w.kept == nil {
		w.id = in.Node + ":" + in.ID
		w.status = up
	} else {
		w.id = w.kept.InstanceID
		w.overridden = w.kept.Overridden
		w.status = w.kept.shown()
		w.lapsed = lapsed(in)
	}
	health, maintained := others(in, node)
	switch {
	case maintained:
		w.status, w.overridden = outOfService, outOfService
	case health >= weft.Critical && w.status == up && !guarded:
		w.status = down
	}
	return w
}

// shown is the status without what others know.
func (r *record) shown() status {
	if r.Overridden != unknown {
		return r.Overridden
	}
	return r.Status
}

// others returns what is known of an instance besides what it says itself.
func others(in *weft.Instance, node *weft.Node) (health weft.Health, maintained bool) {
	look := func(c *weft.Check) {
		if c.Kind == weft.MaintenanceCheck || c.Status == weft.Maintenance {
			maintained = true
		}
		health = max(health, c.Status)
	}
	for i := range in.Checks {
		if !ownCheck(in, in.Checks[i].ID) {
			look(&in.Checks[i])
		}
	}
	if node != nil {
		for i := range node.Checks {
			look(&node.Checks[i])
		}
	}
	return health, maintained
}

// ownCheck reports whether a check is one of the two that a registration makes.
func ownCheck(in *weft.Instance, id string) bool {
	rest, found := strings.CutPrefix(id, leaseCheck)
	if !found {
		rest, found = strings.CutPrefix(id, statusCheck)
	}
	return found && rest == in.ID
}

// lapsed reports whether the lease of an instance did.
func lapsed(in *weft.Instance) bool {
	for i := range in.Checks {
		c := &in.Checks[i]
		if c.Kind == weft.LeaseCheck && c.Status >= weft.Critical && ownCheck(in, c.ID) {
			return true
		}
	}
	return false
}

// keptOf returns what a registration left with the instance, nil when there is none.
func keptOf(in *weft.Instance) *record {
	extra := in.Extra[dialect]
	if extra == nil {
		return nil
	}
	r := new(record)
	if json.Unmarshal(extra, r) != nil || r.InstanceID == "" {
		return nil
	}
	return r
}

// record is the row in Eureka's words.
func (w *row) record() record {
	if w.kept == nil {
		return w.foreign()
	}
	r := *w.kept
	r.App, r.IPAddr, r.Metadata = w.app, w.address, w.in.Labels
	r.Status, r.Overridden = w.status, w.overridden
	r.Lease.LastRenewal = r.Lease.Registration
	if r.DataCenter == nil {
		r.DataCenter = myOwn
	}
	return r
}

// foreign is an instance that was registered elsewhere. When, is not known: its
// times are 0.
func (w *row) foreign() record {
	secure := w.in.Protocol == weft.TLS
	r := record{
		InstanceID: w.id, HostName: w.address, App: w.app, IPAddr: w.address,
		Status: w.status, Overridden: w.overridden,
		Port: newPort(w.in.Port, !secure), SecurePort: newPort(443, false),
		VIPAddress: vipOf(w.in.Service), SecureVIPAddress: vipOf(w.in.Service),
		CountryID: 1, DataCenter: myOwn, Metadata: w.in.Labels,
		Lease: lease{RenewalInterval: defaultRenewal, Duration: defaultDuration},
	}
	if secure {
		r.Port, r.SecurePort = newPort(80, false), newPort(w.in.Port, true)
	} else if w.in.Port > 0 {
		r.HomePageURL = "http://" + net.JoinHostPort(w.address, strconv.Itoa(w.in.Port)) + "/"
	}
	for i := range w.in.Checks {
		if c := &w.in.Checks[i]; c.Kind == weft.HTTPCheck {
			r.HealthCheckURL = c.Target
			break
		}
	}
	return r
}

// appOf is the application that a service is part of.
func appOf(n weft.ServiceName) string { return strings.ToUpper(vipOf(n)) }

// vipOf is a service's name, with its namespace unless that is the default one.
func vipOf(n weft.ServiceName) string {
	if n.Namespace == weft.DefaultNamespace {
		return n.Name
	}
	return n.Name + "." + n.Namespace
}

// vip returns the addresses of a row under which it is found, comma-separated.
func (w *row) vip(secure bool) string {
	switch {
	case w.kept == nil:
		return vipOf(w.in.Service)
	case secure:
		return w.kept.SecureVIPAddress
	}
	return w.kept.VIPAddress
}

func (w *row) hasVIP(name string, secure bool) bool {
	for vip := range strings.SplitSeq(w.vip(secure), ",") {
		if vip == name {
			return true
		}
	}
	return false
}

// same reports whether both rows, of one key, are told in the same words.
func (w *row) same(o *row) bool {
	if w.status != o.status || w.overridden != o.overridden || w.address != o.address {
		return false
	}
	if w.in == o.in {
		return true
	}
	a, b := w.record(), o.record()
	return bytes.Equal(jsonFull.appendInstance(nil, &a), jsonFull.appendInstance(nil, &b))
}

// instance returns what is registered for a record: node and id are the caller's to
// set. keep are the checks that others gave the instance before.
func (r *record) instance(service weft.ServiceName, key weft.InstanceKey, keep []weft.Check) (weft.Instance, error) {
	in := weft.Instance{
		ID: key.ID, Node: key.Node, Service: service, Dialect: dialect,
		Address: r.IPAddr, Labels: r.Metadata, Zone: r.zone(),
	}
	switch {
	case r.Port.on():
		in.Port = int(r.Port.Number)
	case r.SecurePort.on():
		in.Port = int(r.SecurePort.Number)
	}
	kept := *r
	kept.App, kept.IPAddr, kept.Metadata, kept.Lease.LastRenewal = "", "", nil, 0
	extra, err := json.Marshal(&kept)
	if err != nil {
		return in, &weft.Error{Kind: weft.Invalid, Op: "register", Thing: "instance " + r.InstanceID, Err: err}
	}
	in.Extra = map[string]json.RawMessage{dialect: extra}
	kind, health := weft.StaticCheck, weft.Critical
	switch r.shown() {
	case up:
		health = weft.Passing
	case down:
	default: // it did not fail, but wants no traffic, or not yet
		kind = weft.MaintenanceCheck
	}
	in.Checks = append([]weft.Check{{
		ID: leaseCheck + in.ID, Name: "Eureka lease", Kind: weft.LeaseCheck, Status: weft.Passing,
		TTL: weft.Duration(time.Duration(r.Lease.Duration) * time.Second), DeregisterAfter: weft.Duration(keptFor),
	}, {
		ID: statusCheck + in.ID, Name: "Eureka status", Kind: kind, Status: health, Output: string(r.shown()),
	}}, keep...)
	return in, nil
}

func (r *record) zone() string {
	if zone := r.Metadata["zone"]; zone != "" || r.DataCenter == nil {
		return zone
	}
	return r.DataCenter.Metadata["availability-zone"]
}
