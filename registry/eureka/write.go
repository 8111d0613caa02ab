package eureka

import (
	"context"
	"net/http"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/registry"
)

// serviceOf is the service of an application, for registrations.
func serviceOf(app string) weft.ServiceName { return weft.NewServiceName("", strings.ToLower(app)) }

// registered returns an instance that was registered here, nil when there is none.
func (a *API) registered(app, id string) (*weft.Instance, *record) {
	service := serviceOf(app)
	for _, own := range []string{id, service.Name + ":" + id} {
		in, _ := a.registry.Instance(weft.InstanceKey{Node: nodeName, ID: own})
		if in == nil || in.Service != service {
			continue
		}
		if kept := keptOf(in); kept != nil && kept.InstanceID == id {
			return in, kept
		}
	}
	return nil, nil
}

// freeKey returns the key under which a new instance goes into the registry.
func (a *API) freeKey(service weft.ServiceName, id string) weft.InstanceKey {
	key := weft.InstanceKey{Node: nodeName, ID: id}
	if taken, _ := a.registry.Instance(key); taken != nil {
		key.ID = service.Name + ":" + id
	}
	return key
}

// postInstance: POST /apps/{app}
func (a *API) postInstance(c *call) error {
	body, err := readBody(c.w, c.r)
	if err != nil {
		return err
	}
	r, err := decodeInstance(c.r.Header.Get("Content-Type"), body)
	if err != nil {
		return weft.Errorf(weft.Invalid, "read body", c.r.URL.Path, "%w", err)
	}
	if fault := r.fault(c.args[0]); fault != "" {
		http.Error(c.w, fault, http.StatusBadRequest)
		return nil
	}
	if err := a.register(c.context(), r); err != nil {
		return err
	}
	c.w.WriteHeader(http.StatusNoContent)
	return nil
}

// register writes a registration, which has no fault, and renews its lease. One that
// is older than what is known, by its client's clock, only renews.
func (a *API) register(ctx context.Context, r *record) error {
	if r.InstanceID == "" {
		r.InstanceID = r.HostName
	}
	found, err := a.edit(ctx, r.App, r.InstanceID, func(before *record) *record {
		if r.LastDirty != 0 && before.LastDirty > r.LastDirty {
			return before
		}
		next := *r
		if before.Overridden != unknown {
			next.Overridden = before.Overridden
		}
		return &next
	})
	if found || err != nil {
		return err
	}
	service := serviceOf(r.App)
	in, err := a.prepare(service, a.freeKey(service, r.InstanceID), r, nil, nil)
	if err != nil {
		return err
	}
	if a.registry.NodeAddress(nodeName) == "" {
		if err := a.registerNode(ctx); err != nil {
			return err
		}
	}
	_, err = a.registry.Register(ctx, in)
	return err
}

// maxTries bounds how often an edit is tried again because somebody else was faster.
const maxTries = 32

// edit changes the record of an instance that was registered here, and renews its
// lease; it says whether there is one. change is called again with what there is then
// when somebody else, perhaps on another server, changes it meanwhile.
func (a *API) edit(ctx context.Context, app, id string, change func(before *record) *record) (found bool, err error) {
	for range maxTries {
		index := a.index()
		in, kept := a.registered(app, id)
		if in == nil {
			return false, nil
		}
		before := complete(in, kept)
		next, err := a.prepare(in.Service, in.Key(), change(before), in, before)
		if err != nil {
			return true, err
		}
		err = a.replace(ctx, in, next, index)
		if err == nil {
			return true, a.registry.Report(ctx, in.Node, leaseCheck+in.ID, weft.Passing, "")
		}
		if weft.KindOf(err) != weft.Conflict || ctx.Err() != nil {
			return true, err
		}
	}
	return true, restless(id)
}

// editElsewhere changes an instance that was registered in another dialect.
func (a *API) editElsewhere(ctx context.Context, app, id string, change func(*weft.Instance)) error {
	for range maxTries {
		index := a.index()
		w := a.view.current().app(strings.ToUpper(app)).row(id)
		if w == nil {
			return noInstance(app, id)
		}
		next := *w.in
		next.Checks = nil // stay as they are
		change(&next)
		err := a.replace(ctx, w.in, next, index)
		if weft.KindOf(err) != weft.Conflict || ctx.Err() != nil {
			return err
		}
	}
	return restless(id)
}

func restless(id string) error {
	return weft.Errorf(weft.Unavailable, "change", "instance "+id, "others change it all the time")
}

// index of all instances.
func (a *API) index() uint64 {
	return a.registry.Wait(context.Background(), registry.InstancesTopic(), 0)
}

// replace writes next in place of before, which was read at index or later. When it
// is another one by now, the error is of Kind Conflict, and this server most likely
// knows the other one.
func (a *API) replace(ctx context.Context, before *weft.Instance, next weft.Instance, index uint64) error {
	next.CreateIndex, next.ModifyIndex = 0, before.ModifyIndex
	err := a.transact(ctx, "change", registry.InstanceOp{Verb: "cas", Instance: next})
	if weft.KindOf(err) == weft.Conflict {
		soon, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		a.registry.Wait(soon, registry.InstancesTopic(), index)
	}
	return err
}

// transact does one operation.
func (a *API) transact(ctx context.Context, what string, op registry.InstanceOp) error {
	result, err := a.registry.Transact(ctx, registry.TxnRequest{Ops: []registry.Op{{Service: &op}}})
	if err != nil || len(result.Errors) == 0 {
		return err
	}
	return weft.Errorf(result.Errors[0].Kind, what, "instance "+op.Instance.ID, "%s", result.Errors[0].What)
}

// complete returns what is kept of an instance with what is kept elsewhere.
func complete(in *weft.Instance, kept *record) *record {
	r := *kept
	r.App, r.IPAddr, r.Metadata = appOf(in.Service), in.Address, in.Labels
	return &r
}

// prepare returns the instance that stands for a record, with its times. in and
// before are what is there already, or nil.
func (a *API) prepare(service weft.ServiceName, key weft.InstanceKey, given *record, in *weft.Instance, before *record) (weft.Instance, error) {
	r := *given
	now := number(a.now().UnixMilli())
	dated := r.LastDirty != 0
	r.Lease.LastRenewal = 0
	r.Lease.Registration, r.Lease.ServiceUp, r.LastUpdated = now, 0, now
	var keep []weft.Check
	if before != nil {
		r.Lease.Registration, r.Lease.ServiceUp = before.Lease.Registration, before.Lease.ServiceUp
		keep = othersChecks(in)
	}
	if r.shown() == up && r.Lease.ServiceUp == 0 {
		r.Lease.ServiceUp = now
	}
	if !dated {
		r.LastDirty = now
	}
	if before != nil && sameRecord(&r, before, dated) {
		r.LastUpdated, r.LastDirty = before.LastUpdated, before.LastDirty
	}
	return r.instance(service, key, keep)
}

// sameRecord reports whether two records are the same but for when they were sent.
func sameRecord(a, b *record, dated bool) bool {
	x, y := *a, *b
	x.LastUpdated, y.LastUpdated = 0, 0
	if !dated {
		x.LastDirty, y.LastDirty = 0, 0
	}
	if len(x.Metadata) == 0 && len(y.Metadata) == 0 {
		x.Metadata, y.Metadata = nil, nil
	}
	return reflect.DeepEqual(x, y)
}

// othersChecks are the checks of an instance that this dialect did not make. Their
// statuses stay: a status better than critical would be a report.
func othersChecks(in *weft.Instance) (checks []weft.Check) {
	for _, c := range in.Checks {
		if ownCheck(in, c.ID) || c.Kind == weft.MaintenanceCheck {
			continue
		}
		if c.Kind == weft.TTLCheck || c.Kind == weft.LeaseCheck {
			c.Status = weft.Critical
		}
		checks = append(checks, c)
	}
	return checks
}

// registerNode makes the node on which Eureka's instances are. Its address is this
// server's: nobody needs it, as each instance has its own.
func (a *API) registerNode(ctx context.Context) error {
	_, err := a.registry.RegisterNode(ctx, weft.Node{
		Name: nodeName, Address: a.registry.LocalNode().Address,
		Labels: map[string]string{"external-node": "true", "external-source": "eureka"},
	})
	return err
}

// putLease: PUT /apps/{app}/{id}?status=&lastDirtyTimestamp=&overriddenstatus=
//
// As in Eureka's server a renewal does not change the status: clients register again
// for that.
func (a *API) putLease(c *call) error {
	dirty, err := c.dirty()
	if err != nil {
		return err
	}
	newer, err := a.renew(c.context(), c.args[0], c.args[1], dirty)
	if err != nil {
		return err
	}
	if newer != nil && c.replica() {
		f := c.form()
		c.w.Header().Set("Content-Type", f.contentType())
		c.w.WriteHeader(http.StatusConflict)
		_, _ = c.w.Write(f.appendInstance(nil, newer))
	}
	return nil
}

// dirty is the lastDirtyTimestamp of a request; 0 when there is none.
func (c *call) dirty() (number, error) {
	s := c.params.Get("lastDirtyTimestamp")
	if s == "" || s == "null" {
		return 0, nil
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return 0, weft.Errorf(weft.Invalid, "read lastDirtyTimestamp", s, "want milliseconds since 1970")
	}
	return number(n), nil
}

// renew renews a lease. The error is NotFound, which makes the client register, also
// when the client knows something newer of itself; when it knows something older, the
// newer record is returned. dirty is 0 when the client did not say.
func (a *API) renew(ctx context.Context, app, id string, dirty number) (newer *record, err error) {
	in, kept := a.registered(app, id)
	if in == nil {
		return nil, noInstance(app, id)
	}
	if err := a.registry.Report(ctx, in.Node, leaseCheck+in.ID, weft.Passing, ""); err != nil {
		return nil, err
	}
	switch {
	case dirty == 0:
	case dirty > kept.LastDirty:
		return nil, weft.Errorf(weft.NotFound, "renew", "instance "+id, "it has changed since it was registered; register it again")
	case dirty < kept.LastDirty:
		r := newRow(appOf(in.Service), in, kept, nil, false).record()
		return &r, nil
	}
	return nil, nil
}

// deleteInstance: DELETE /apps/{app}/{id}
func (a *API) deleteInstance(c *call) error { return a.cancel(c.context(), c.args[0], c.args[1]) }

func (a *API) cancel(ctx context.Context, app, id string) error {
	key, found := weft.InstanceKey{}, false
	if in, _ := a.registered(app, id); in != nil {
		key, found = in.Key(), true
	} else if w := a.view.current().app(strings.ToUpper(app)).row(id); w != nil {
		key, found = w.in.Key(), true
	}
	if !found {
		return noInstance(app, id)
	}
	_, err := a.registry.Deregister(ctx, key)
	return err
}

// putStatus: PUT /apps/{app}/{id}/status?value=&lastDirtyTimestamp=
func (a *API) putStatus(c *call) error {
	st, err := parseStatus(c.params.Get("value"))
	if err != nil {
		return err
	}
	dirty, err := c.dirty()
	if err != nil {
		return err
	}
	return a.override(c.context(), c.args[0], c.args[1], st, dirty)
}

// deleteStatus: DELETE /apps/{app}/{id}/status?value=&lastDirtyTimestamp=
//
// Without a value the instance has the status again that it gave itself. (Eureka's
// server makes it UNKNOWN until it registers again.)
func (a *API) deleteStatus(c *call) error {
	var st status
	if c.params.Get("value") != "" {
		var err error
		if st, err = parseStatus(c.params.Get("value")); err != nil {
			return err
		}
	}
	dirty, err := c.dirty()
	if err != nil {
		return err
	}
	return a.endOverride(c.context(), c.args[0], c.args[1], st, dirty)
}

// override sets a status that stands above what the instance says of itself.
func (a *API) override(ctx context.Context, app, id string, st status, dirty number) error {
	edited, err := a.edit(ctx, app, id, func(before *record) *record {
		r := *before
		r.Overridden, r.LastDirty = st, max(r.LastDirty, dirty)
		return &r
	})
	if edited || err != nil {
		return err
	}
	return a.maintain(ctx, app, id, st)
}

// endOverride takes an override away. st, when it is not empty, is the instance's own
// status from now on.
func (a *API) endOverride(ctx context.Context, app, id string, st status, dirty number) error {
	edited, err := a.edit(ctx, app, id, func(before *record) *record {
		r := *before
		r.Overridden, r.LastDirty = unknown, max(r.LastDirty, dirty)
		if st != "" {
			r.Status = st
		}
		return &r
	})
	if edited || err != nil {
		return err
	}
	return a.maintain(ctx, app, id, up)
}

// maintain is an override for an instance that was registered elsewhere.
func (a *API) maintain(ctx context.Context, app, id string, st status) error {
	w := a.view.current().app(strings.ToUpper(app)).row(id)
	if w == nil {
		return noInstance(app, id)
	}
	switch st {
	case up, outOfService, down:
		return a.registry.Maintain(ctx, w.in.Key(), st != up, "Its status was overridden by Eureka's API: "+string(st))
	}
	return weft.Errorf(weft.Conflict, "override", "status of instance "+id, "it was not registered by Eureka's API, and so can only be UP or OUT_OF_SERVICE")
}

// putMetadata: PUT /apps/{app}/{id}/metadata?k=v
func (a *API) putMetadata(c *call) error {
	app, id := c.args[0], c.args[1]
	edited, err := a.edit(c.context(), app, id, func(before *record) *record {
		r := *before
		r.Metadata = c.merge(r.Metadata)
		return &r
	})
	if edited || err != nil {
		return err
	}
	return a.editElsewhere(c.context(), app, id, func(in *weft.Instance) { in.Labels = c.merge(in.Labels) })
}

// merge adds the query's names and values.
func (c *call) merge(m map[string]string) map[string]string {
	all := make(map[string]string, len(m)+len(c.params))
	for k, v := range m {
		all[k] = v
	}
	for k, v := range c.params {
		all[k] = v[0]
	}
	return all
}
