package registry

import (
	"fmt"

	"github.com/weftmesh/weft"
)

// An alias check is as bad as the worst check of what it names: an instance and the
// node that it is on, or a node alone. It is computed when a draft is settled, and so
// is written in the transaction that changes what it names, at the same index.
//
// Through aliases an alias looks at what those name, and never at itself: what counts
// in the end are the checks that are no aliases. So two instances that name each
// other do not hold each other down.

// aliases says who names what: the owners of alias checks, by what they look at.
type aliases map[weft.InstanceKey]map[weft.InstanceKey]bool

// replace takes over that an instance or node (ID "") has other checks.
func (a aliases) replace(owner weft.InstanceKey, before, after []weft.Check) {
	for i := range before {
		for _, target := range aliasTargets(owner, &before[i]) {
			if delete(a[target], owner); len(a[target]) == 0 {
				delete(a, target)
			}
		}
	}
	for i := range after {
		for _, target := range aliasTargets(owner, &after[i]) {
			if a[target] == nil {
				a[target] = make(map[weft.InstanceKey]bool)
			}
			a[target][owner] = true
		}
	}
}

// aliasTargets returns what an alias looks at; nothing for other checks.
func aliasTargets(owner weft.InstanceKey, c *weft.Check) []weft.InstanceKey {
	if c.Kind != weft.AliasCheck {
		return nil
	}
	node := weft.InstanceKey{Node: orElse(c.AliasNode, owner.Node)}
	if c.AliasService == "" {
		return []weft.InstanceKey{node}
	}
	return []weft.InstanceKey{node, {Node: node.Node, ID: c.AliasService}}
}

// changed returns the instances and nodes (ID "") that the draft changes.
func (d *draft) changed() (keys []weft.InstanceKey) {
	for key, after := range d.instances {
		if after != d.view.instance(key) {
			keys = append(keys, key)
		}
	}
	for name, after := range d.nodes {
		if after != d.view.node(name) {
			keys = append(keys, weft.InstanceKey{Node: name})
		}
	}
	return keys
}

// settleAliases computes the aliases that the draft's changes concern. An alias that
// cannot be written, because its instance is as large as a record may be, stays.
func (d *draft) settleAliases() {
	queue := d.changed()
	for _, key := range queue { // what aliases in this draft look at is known to them
		d.settleAliasesOf(key)
	}
	for len(queue) > 0 {
		target := queue[0]
		queue = queue[1:]
		for owner := range d.view.aliases[target] {
			if d.settleAliasesOf(owner) {
				queue = append(queue, owner) // who names it, too
			}
		}
	}
}

// settleAliasesOf computes the aliases of one instance or node, and returns whether
// any is different. The result does not depend on other aliases' statuses, so each
// owner changes once at most.
func (d *draft) settleAliasesOf(owner weft.InstanceKey) (changed bool) {
	checks := d.checksOf(owner)
	type result struct {
		status weft.Health
		output string
	}
	results := make(map[string]result)
	for i := range checks {
		if c := &checks[i]; c.Kind == weft.AliasCheck {
			if status, output := d.aliasHealth(owner, c); status != c.Status || c.Output == "" {
				results[c.ID] = result{status, output}
			}
		}
	}
	if len(results) == 0 {
		return false
	}
	if by := signerOf(d.records[recordOf(owner)]); by != "" {
		d.actor = by // who changes it anyway
		defer func() { d.actor = aliasActor }()
	}
	err := editChecks(d, owner, "alias", func(checks []weft.Check) []weft.Check {
		for i := range checks {
			if r, ok := results[checks[i].ID]; ok {
				checks[i].Status, checks[i].Output = r.status, shortOutput(r.output)
			}
		}
		return checks
	})
	return err == nil
}

// checksOf returns the checks of an instance, or of a node (ID "").
func (d *draft) checksOf(key weft.InstanceKey) []weft.Check {
	if key.ID == "" {
		if n := d.node(key.Node); n != nil {
			return n.Checks
		}
		return nil
	}
	if in := d.instance(key); in != nil {
		return in.Checks
	}
	return nil
}

func (d *draft) aliasHealth(owner weft.InstanceKey, c *weft.Check) (weft.Health, string) {
	w := aliasWalk{draft: d, seen: map[checkKey]bool{{owner.Node, c.ID}: true}, output: "No checks found."}
	w.follow(owner, c)
	return w.status, w.output
}

// aliasWalk finds the worst of what an alias looks at.
type aliasWalk struct {
	draft  *draft
	seen   map[checkKey]bool
	status weft.Health
	output string
}

func (w *aliasWalk) follow(owner weft.InstanceKey, c *weft.Check) {
	node := orElse(c.AliasNode, owner.Node)
	if c.AliasService != "" {
		key := weft.InstanceKey{Node: node, ID: c.AliasService}
		if w.draft.instance(key) == nil {
			w.is(weft.Critical, fmt.Sprintf("Service %s could not be found on node %s", c.AliasService, node))
			return
		}
		w.look(key)
	} else if w.draft.node(node) == nil {
		w.is(weft.Critical, fmt.Sprintf("Node %s could not be found", node))
		return
	}
	w.look(weft.InstanceKey{Node: node})
}

func (w *aliasWalk) look(key weft.InstanceKey) {
	checks := w.draft.checksOf(key)
	for i := range checks {
		c := &checks[i]
		id := checkKey{key.Node, c.ID}
		switch {
		case w.seen[id]:
			continue
		case c.Kind == weft.AliasCheck:
			w.seen[id] = true
			w.follow(key, c)
		case c.Status > weft.Passing:
			w.is(min(c.Status, weft.Critical), fmt.Sprintf("Aliased check %q failing: %s", c.Name, c.Output))
		case w.status == weft.Passing:
			w.output = "All checks passing."
		}
		w.seen[id] = true
	}
}

func (w *aliasWalk) is(status weft.Health, output string) {
	if status > w.status {
		w.status, w.output = status, output
	}
}
