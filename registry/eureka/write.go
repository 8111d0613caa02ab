package eureka

import (
	"context"
	"net/http"
	"reflect"
	"strconv"
	"strings"

	"github.com/weftmesh/weft"
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
	lock := a.edits.of(r.App, r.InstanceID)
	lock.Lock()
	defer lock.Unlock()
	in, before := a.registered(r.App, r.InstanceID)
	if before == nil {
		service := serviceOf(r.App)
		return a.put(ctx, service, a.freeKey(service, r.InstanceID), r, nil, nil)
	}
	if r.LastDirty != 0 && before.LastDirty > r.LastDirty {
		r = complete(in, before)
	} else if before.Overridden != unknown {
		r.Overridden = before.Overridden
	}
	return a.put(ctx, in.Service, in.Key(), r, in, before)
}

// complete returns what is kept of an instance with what is kept elsewhere.
func complete(in *weft.Instance, kept *record) *record {
	r := *kept
	r.App, r.IPAddr, r.Metadata = appOf(in.Service), in.Address, in.Labels
	return &r
}

// put writes a record. in and before are what is there already, or nil.
func (a *API) put(ctx context.Context, service weft.ServiceName, key weft.InstanceKey, r *record, in *weft.Instance, before *record) error {
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
	if before != nil && sameRecord(r, complete(in, before), dated) {
		r.LastUpdated, r.LastDirty = before.LastUpdated, before.LastDirty
	}
	next, err := r.instance(service, key, keep)
	if err != nil {
		return err
	}
	if a.registry.NodeAddress(nodeName) == "" {
		if err := a.registerNode(ctx); err != nil {
			return err
		}
	}
	_, err = a.registry.Register(ctx, next)
	return err
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
		r := newRow(appOf(in.Service), in, kept, nil).record()
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
	edited, err := a.edit(ctx, app, id, func(r *record) {
		r.Overridden, r.LastDirty = st, max(r.LastDirty, dirty)
	})
	if edited || err != nil {
		return err
	}
	return a.maintain(ctx, app, id, st)
}

// endOverride takes an override away. st, when it is not empty, is the instance's own
// status from now on.
func (a *API) endOverride(ctx context.Context, app, id string, st status, dirty number) error {
	edited, err := a.edit(ctx, app, id, func(r *record) {
		r.Overridden, r.LastDirty = unknown, max(r.LastDirty, dirty)
		if st != "" {
			r.Status = st
		}
	})
	if edited || err != nil {
		return err
	}
	return a.maintain(ctx, app, id, up)
}

// edit changes the record of an instance that was registered here, and renews its
// lease; it says whether there is one. Maintenance, which may have been what the
// status stood for, is not touched.
func (a *API) edit(ctx context.Context, app, id string, change func(*record)) (found bool, err error) {
	lock := a.edits.of(strings.ToUpper(app), id)
	lock.Lock()
	defer lock.Unlock()
	in, kept := a.registered(app, id)
	if in == nil {
		return false, nil
	}
	r := complete(in, kept)
	change(r)
	return true, a.put(ctx, in.Service, in.Key(), r, in, kept)
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
	edited, err := a.edit(c.context(), app, id, func(r *record) { r.Metadata = c.merge(r.Metadata) })
	if edited || err != nil {
		return err
	}
	lock := a.edits.of(strings.ToUpper(app), id)
	lock.Lock()
	defer lock.Unlock()
	w := a.view.current().app(strings.ToUpper(app)).row(id)
	if w == nil {
		return noInstance(app, id)
	}
	in := *w.in
	in.Labels = c.merge(in.Labels)
	in.Checks = othersChecks(&in)
	_, err = a.registry.Register(c.context(), in)
	return err
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
