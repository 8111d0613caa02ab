package registry

import (
	"context"
	"slices"

	"github.com/weftmesh/weft"
)

// Register writes an instance; one of the same node and id is replaced. An empty
// Node means the own node, an empty ID the service's name. Checks without an id
// get "service:<ID>", or "service:<ID>:1", ":2", … when there are several. What is
// the same already is not written, and the service's present index is returned.
//
// The given Status of a check stands until its first result. A check that the
// instance has already, of the same kind and target, keeps its status; but for a
// TTL or lease check a better given status than critical is taken as a report.
// Maintenance checks stay until Maintain ends them.
func (r *Registry) Register(ctx context.Context, in weft.Instance) (index uint64, err error) {
	in.Node = orElse(in.Node, r.node)
	return r.operations.register(ctx, in)
}

func (r *Registry) registerHere(ctx context.Context, in weft.Instance) (index uint64, err error) {
	nameChecks(&in)
	own, record, err := prepare(in, r.node)
	if err != nil {
		return 0, err
	}
	if err := r.allow("register", "instance "+own.Service.Name+"/"+own.ID, own.Checks); err != nil {
		return 0, err
	}
	used, err := r.once(ctx, "register", "instance "+own.Service.Name+"/"+own.ID, func(d *draft) error {
		return planRegister(d, own, record)
	})
	if err != nil || used != 0 {
		return uint64(used), err
	}
	ctx = withTicket(ctx, nil) // it is used
	for i := range own.Checks {
		c := &own.Checks[i]
		if !reported(c.Kind) || c.Status >= weft.Critical {
			continue
		}
		// What was the same was not written, and is a renewal all the same.
		if _, err := r.reportHere(ctx, reportArgument{own.Node, c.ID, c.Status, c.Output}); err != nil {
			return 0, err
		}
	}
	return r.view.index(ServiceTopic(own.Service)), nil
}

func planRegister(d *draft, own *weft.Instance, record []byte) error {
	thing := "instance " + own.Service.Name + "/" + own.ID
	if d.node(own.Node) == nil {
		return weft.Errorf(weft.Invalid, "register", thing, "node: there is no node %q; register the node first", own.Node)
	}
	key := own.Key()
	if err := freeChecks(d, key, own.Checks, "register", thing); err != nil {
		return err
	}
	old := d.instance(key)
	if old == nil {
		d.putPrepared(own, record)
		return nil
	}
	in := *own
	in.Checks = takeOver(own.Checks, old.Checks)
	return d.putInstance(&in)
}

// takeOver returns the given checks with what they keep of the old ones.
func takeOver(given, old []weft.Check) []weft.Check {
	checks := slices.Clone(given)
	for i := range checks {
		if before := findCheck(old, checks[i].ID); before != nil {
			keepStatus(&checks[i], before)
		}
	}
	for i := range old {
		if (old[i].Kind == weft.MaintenanceCheck || isObservation(old[i].ID)) && findCheck(checks, old[i].ID) == nil {
			checks = append(checks, old[i])
		}
	}
	sortChecks(checks)
	return checks
}

// keepStatus lets a check that is registered again keep what is known of it.
func keepStatus(c, before *weft.Check) {
	if !sameTarget(c, before) {
		return
	}
	if probed(c.Kind) || c.Kind == weft.AliasCheck || reported(c.Kind) && (c.Status >= weft.Critical || c.Status == before.Status) {
		c.Status, c.Output = before.Status, before.Output
	}
}

// reported says whether checks of this kind are told by Report.
func reported(k weft.CheckKind) bool { return k == weft.TTLCheck || k == weft.LeaseCheck }

// freeChecks refuses check ids that something else on the node has already: Report
// and RemoveCheck would not know which one is meant.
func freeChecks(d *draft, key weft.InstanceKey, checks []weft.Check, op, thing string) error {
	for i := range checks {
		o := d.owner(checkKey{key.Node, checks[i].ID})
		if !o.ok || o.instance == key.ID {
			continue
		}
		holder := "instance " + o.instance
		if o.instance == "" {
			holder = "the node itself"
		}
		return weft.Errorf(weft.Conflict, op, thing,
			"check id %q is used by %s on node %s already; leave the id out, or choose another", checks[i].ID, holder, key.Node)
	}
	return nil
}

func findCheck(checks []weft.Check, id string) *weft.Check {
	for i := range checks {
		if checks[i].ID == id {
			return &checks[i]
		}
	}
	return nil
}

// Deregister removes an instance, and returns the index of its service. The error
// is of Kind NotFound when it is not there.
func (r *Registry) Deregister(ctx context.Context, key weft.InstanceKey) (uint64, error) {
	return r.operations.deregister(ctx, r.onOwnNode(key))
}

func (r *Registry) deregisterHere(ctx context.Context, key weft.InstanceKey) (uint64, error) {
	var service weft.ServiceName
	used, err := r.once(ctx, "deregister", "instance "+key.ID, func(d *draft) error {
		in := d.instance(key)
		if in == nil {
			return noInstance("deregister", key)
		}
		service = in.Service
		d.deleteInstance(key)
		return nil
	})
	if err != nil || used != 0 {
		return uint64(used), err
	}
	return r.view.index(ServiceTopic(service)), nil
}

func (r *Registry) onOwnNode(key weft.InstanceKey) weft.InstanceKey {
	if key.Node == "" {
		key.Node = r.node
	}
	return key
}

func noInstance(op string, key weft.InstanceKey) error {
	return weft.Errorf(weft.NotFound, op, "instance "+key.ID, "there is no such instance on node %s", key.Node)
}

func noNode(op, name string) error {
	return weft.Errorf(weft.NotFound, op, "node "+name, "there is no such node")
}

// RegisterNode writes a node, and returns the index of NodeTopic. An empty ID, an
// empty Address and nil Checks leave what the node has.
func (r *Registry) RegisterNode(ctx context.Context, n weft.Node) (uint64, error) {
	return r.operations.registerNode(ctx, n)
}

func (r *Registry) registerNodeHere(ctx context.Context, n weft.Node) (uint64, error) {
	n.CreateIndex, n.ModifyIndex = 0, 0
	n.Labels = ownMap(n.Labels)
	given := n.Checks != nil
	n.Checks = ownChecks(n.Checks)
	for i := range n.Checks {
		n.Checks[i].ID = orElse(n.Checks[i].ID, n.Checks[i].Name)
	}
	sortChecks(n.Checks)
	if err := r.allow("register", "node "+n.Name, n.Checks); err != nil {
		return 0, err
	}
	used, err := r.once(ctx, "register", "node "+n.Name, func(d *draft) error { return planNode(d, n, given) })
	if err != nil || used != 0 {
		return uint64(used), err
	}
	return r.view.index(NodeTopic(n.Name)), nil
}

// planNode adds or replaces a node. Its checks are those that the node has, unless
// they are given.
func planNode(d *draft, n weft.Node, given bool) error {
	next := n
	next.Checks = slices.Clone(n.Checks)
	if old := d.node(n.Name); old != nil {
		next.ID, next.Address = orElse(n.ID, old.ID), orElse(n.Address, old.Address)
		if given {
			next.Checks = takeOver(next.Checks, old.Checks)
		} else {
			next.Checks = slices.Clone(old.Checks)
		}
	}
	if err := checkNode(&next); err != nil {
		return err
	}
	if err := freeChecks(d, weft.InstanceKey{Node: n.Name}, next.Checks, "register", "node "+n.Name); err != nil {
		return err
	}
	return d.putNode(&next)
}

func orElse(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

// DeregisterNode removes a node and every instance on it, at one index, which is
// returned. The own node cannot be removed.
func (r *Registry) DeregisterNode(ctx context.Context, name string) (uint64, error) {
	if name == r.node {
		return 0, weft.Errorf(weft.Invalid, "deregister", "node "+name, "it is the node of this server")
	}
	return r.operations.deregisterNode(ctx, name)
}

func (r *Registry) deregisterNodeHere(ctx context.Context, name string) (uint64, error) {
	used, err := r.once(ctx, "deregister", "node "+name, func(d *draft) error {
		if d.node(name) == nil {
			return noNode("deregister", name)
		}
		for _, key := range d.instancesOn(name) {
			d.deleteInstance(key)
		}
		d.deleteNode(name)
		return nil
	})
	if err != nil || used != 0 {
		return uint64(used), err
	}
	return r.view.index(NodeTopic(name)), nil
}

// AddCheck adds or replaces a check of an instance, or of the node when key.ID is
// empty. Without an id the check gets "service:<ID>", on a node its name.
func (r *Registry) AddCheck(ctx context.Context, key weft.InstanceKey, c weft.Check) error {
	_, err := r.operations.addCheck(ctx, checkEdit{Key: r.onOwnNode(key), Check: c})
	return err
}

// checkEdit is a check to be added, set or removed. Key.ID is used by AddCheck only.
type checkEdit struct {
	Key   weft.InstanceKey
	Check weft.Check
}

func (r *Registry) addCheckHere(ctx context.Context, e checkEdit) (bool, error) {
	key, c := e.Key, ownChecks([]weft.Check{e.Check})[0]
	if c.ID == "" && key.ID != "" {
		c.ID = "service:" + key.ID
	}
	c.ID = orElse(c.ID, c.Name)
	if err := checkCheck(&c); err != nil {
		return false, err
	}
	if err := r.allow("add", "check "+c.ID, []weft.Check{c}); err != nil {
		return false, err
	}
	_, err := r.once(ctx, "add", "check "+c.ID, func(d *draft) error { return planCheck(d, key, c) })
	return err == nil, err
}

// SetCheck adds or replaces the check checkID of a node: an instance's check when
// one of the node's instances has a check of that id, else a check of the node
// itself.
func (r *Registry) SetCheck(ctx context.Context, node, checkID string, c weft.Check) error {
	c.ID = checkID
	_, err := r.operations.setCheck(ctx, checkEdit{Key: weft.InstanceKey{Node: orElse(node, r.node)}, Check: c})
	return err
}

func (r *Registry) setCheckHere(ctx context.Context, e checkEdit) (bool, error) {
	node, c := e.Key.Node, ownChecks([]weft.Check{e.Check})[0]
	if err := checkCheck(&c); err != nil {
		return false, err
	}
	if err := r.allow("set", "check "+c.ID, []weft.Check{c}); err != nil {
		return false, err
	}
	_, err := r.once(ctx, "set", "check "+c.ID, func(d *draft) error {
		o := d.owner(checkKey{node, c.ID})
		return planCheck(d, weft.InstanceKey{Node: node, ID: o.instance}, c)
	})
	return err == nil, err
}

// planCheck adds or replaces a check of the instance or node key.
func planCheck(d *draft, key weft.InstanceKey, c weft.Check) error {
	if err := freeChecks(d, key, []weft.Check{c}, "add", "check "+c.ID); err != nil {
		return err
	}
	return editChecks(d, key, "add", func(checks []weft.Check) []weft.Check {
		if before := findCheck(checks, c.ID); before != nil {
			keepStatus(&c, before)
			c.Name = orElse(c.Name, before.Name)
			*before = c
			return checks
		}
		checks = append(checks, c)
		sortChecks(checks)
		return checks
	})
}

// editChecks changes the checks of an instance, or of a node when key.ID is empty.
// edit gets a copy.
func editChecks(d *draft, key weft.InstanceKey, op string, edit func([]weft.Check) []weft.Check) error {
	if key.ID != "" {
		in := d.instance(key)
		if in == nil {
			return noInstance(op, key)
		}
		next := *in
		next.Checks = ownSlice(edit(slices.Clone(in.Checks)))
		return d.putInstance(&next)
	}
	n := d.node(key.Node)
	if n == nil {
		return noNode(op, key.Node)
	}
	next := *n
	next.Checks = ownSlice(edit(slices.Clone(n.Checks)))
	return d.putNode(&next)
}

// RemoveCheck removes a check of the node or of one of its instances. The error is
// of Kind NotFound when there is none.
func (r *Registry) RemoveCheck(ctx context.Context, node, checkID string) error {
	_, err := r.operations.removeCheck(ctx, checkEdit{Key: weft.InstanceKey{Node: orElse(node, r.node)}, Check: weft.Check{ID: checkID}})
	return err
}

func (r *Registry) removeCheckHere(ctx context.Context, e checkEdit) (bool, error) {
	node, checkID := e.Key.Node, e.Check.ID
	_, err := r.once(ctx, "remove", "check "+checkID, func(d *draft) error {
		o := d.owner(checkKey{node, checkID})
		if !o.ok {
			return noCheck("remove", node, checkID)
		}
		return editChecks(d, weft.InstanceKey{Node: node, ID: o.instance}, "remove", without(checkID))
	})
	return err == nil, err
}

func without(checkID string) func([]weft.Check) []weft.Check {
	return func(checks []weft.Check) []weft.Check {
		return slices.DeleteFunc(checks, func(c weft.Check) bool { return c.ID == checkID })
	}
}

func noCheck(op, node, checkID string) error {
	return weft.Errorf(weft.NotFound, op, "check "+checkID, "there is no such check on node %s", node)
}

// Report tells the result of a TTL or lease check, and so renews it. A change of
// status is written, with its output; an output alone is seldom (see newsAfter). The
// error is of Kind NotFound when there is no such check.
func (r *Registry) Report(ctx context.Context, node, checkID string, status weft.Health, output string) error {
	_, err := r.operations.report(ctx, reportArgument{orElse(node, r.node), checkID, status, output})
	return err
}

// reportArgument is the result of a check.
type reportArgument struct {
	Node    string
	CheckID string
	Status  weft.Health
	Output  string
}

// reportHere returns whether the report was written.
func (r *Registry) reportHere(ctx context.Context, a reportArgument) (bool, error) {
	key, checkID, status := checkKey{a.Node, a.CheckID}, a.CheckID, a.Status
	if status > weft.Critical {
		return false, weft.Errorf(weft.Invalid, "report", "check "+checkID, "status: %s is not reported; use passing, warning or critical", status)
	}
	kind, changed := r.checks.report(key, status, a.Output)
	switch {
	case kind == "":
		return false, noCheck("report", key.node, checkID)
	case !reported(kind):
		return false, weft.Errorf(weft.Invalid, "report", "check "+checkID, "it is of kind %s; only ttl and lease checks are reported", kind)
	case !changed:
		return false, nil
	}
	err := r.setStatus(ctx, key, status, a.Output, nil)
	return err == nil, err
}

// setStatus writes a status. still, when it is not nil, is asked in the loop
// whether the reason for it still holds.
func (r *Registry) setStatus(ctx context.Context, key checkKey, status weft.Health, output string, still func(*weft.Check) bool) error {
	_, err := r.once(ctx, "report", "check "+key.id, func(d *draft) error {
		o := d.owner(key)
		if !o.ok {
			return noCheck("report", key.node, key.id)
		}
		return editChecks(d, weft.InstanceKey{Node: key.node, ID: o.instance}, "report", func(checks []weft.Check) []weft.Check {
			c := findCheck(checks, key.id)
			if (c.Status != status || output != "") && (still == nil || still(c)) {
				c.Status, c.Output = status, shortOutput(output)
			}
			return checks
		})
	})
	return err
}

const (
	nodeMaintenance     = "_node_maintenance"
	instanceMaintenance = "_service_maintenance:" // + instance id
	noReason            = "Maintenance mode is on; no reason was given."
)

// Maintain takes an instance (or, when key.ID is empty, a node) out of service by
// a critical check, or puts it back. The ids of the checks are the ones by which
// Consul's clients know them.
func (r *Registry) Maintain(ctx context.Context, key weft.InstanceKey, on bool, reason string) error {
	_, err := r.operations.maintain(ctx, maintenance{r.onOwnNode(key), on, reason})
	return err
}

// maintenance begins or ends being out of service.
type maintenance struct {
	Key    weft.InstanceKey
	On     bool
	Reason string
}

func (r *Registry) maintainHere(ctx context.Context, m maintenance) (bool, error) {
	key, on, reason := m.Key, m.On, m.Reason
	c := weft.Check{
		ID: nodeMaintenance, Name: "Node Maintenance Mode", Kind: weft.MaintenanceCheck,
		Notes: orElse(reason, noReason), Status: weft.Critical,
	}
	if key.ID != "" {
		c.ID, c.Name = instanceMaintenance+key.ID, "Service Maintenance Mode"
	}
	_, err := r.once(ctx, "maintain", key.Node+"/"+key.ID, func(d *draft) error {
		if !on {
			return editChecks(d, key, "maintain", without(c.ID))
		}
		if key.ID != "" && d.instance(key) == nil {
			return noInstance("maintain", key)
		}
		return planCheck(d, key, c)
	})
	return err == nil, err
}
