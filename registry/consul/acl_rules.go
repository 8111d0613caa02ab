package consul

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/hashicorp/hcl"
	"github.com/hashicorp/hcl/hcl/ast"

	"github.com/weftmesh/weft"
)

// maxRules bounds the text of one policy. It also bounds how deep the parser of its
// language can be sent.
const maxRules = 64 << 10

// access is how much of a resource somebody may have. A greater one contains the
// lesser: who may write may list, who may list may read.
type access uint8

const (
	noRule access = iota // nothing is said: the next rule decides
	denied
	readable
	listable
	writable
)

var accessWords = map[string]access{"deny": denied, "read": readable, "list": listable, "write": writable}

func (a access) String() string {
	for word, known := range accessWords {
		if a == known {
			return word
		}
	}
	return "none"
}

// The resources that rules are about, by the words of the language.
const (
	aclResource       = "acl"
	agentResource     = "agent"
	eventResource     = "event"
	intentionResource = "intention"
	keyResource       = "key"
	keyringResource   = "keyring"
	meshResource      = "mesh"
	nodeResource      = "node"
	operatorResource  = "operator"
	peeringResource   = "peering"
	queryResource     = "query"
	serviceResource   = "service"
	sessionResource   = "session"
)

// named are the resources whose things have names: each has a block for one name,
// and one for all names that begin so, as in key_prefix.
var named = []string{agentResource, eventResource, keyResource, nodeResource, queryResource, serviceResource, sessionResource}

// whole are the resources without names: `operator = "read"`.
var whole = []string{aclResource, keyringResource, meshResource, operatorResource, peeringResource}

// rule says what a policy allows of one name, or of all that begin so.
type rule struct {
	resource   string
	name       string
	prefix     bool
	access     access
	intentions access // of a service: to what it calls and what calls it
}

// rules are what the text of one policy says.
type rules []rule

// parseRules reads the Rules of a policy, in HCL or in JSON. What it does not know
// it refuses: a misspelt rule must not grant or deny anything by chance.
func parseRules(text string) (rules, error) {
	if len(text) > maxRules {
		return nil, weft.Errorf(weft.TooLarge, "read rules", "", "over %d bytes", maxRules)
	}
	if trimmed := strings.TrimSpace(text); strings.HasPrefix(trimmed, "{") && !json.Valid([]byte(trimmed)) {
		return nil, weft.Errorf(weft.Invalid, "read rules", "", "the JSON is malformed") // which the library reads half
	}
	file, err := parseHCL(text)
	if err != nil {
		return nil, weft.Errorf(weft.Invalid, "read rules", "", "%w", err)
	}
	list, ok := file.Node.(*ast.ObjectList)
	if !ok {
		return nil, weft.Errorf(weft.Invalid, "read rules", "", "want rules such as service \"web\" { policy = \"read\" }")
	}
	var out rules
	for _, item := range list.Items {
		if out, err = out.add(item); err != nil {
			return nil, weft.Errorf(weft.Invalid, "read rules", "", "%w", err)
		}
	}
	return out, nil
}

// parseHCL turns a panic of the library, which some broken texts cause, into an
// error: the text comes from a client.
func parseHCL(text string) (file *ast.File, err error) {
	defer func() {
		if recover() != nil {
			file, err = nil, fmt.Errorf("the text cannot be read")
		}
	}()
	return hcl.Parse(text)
}

// add reads one item of the text. JSON nests what HCL writes in one line:
// {"service": {"web": {"policy": "read"}}}.
func (r rules) add(item *ast.ObjectItem) (rules, error) {
	word, err := keyText(item, 0)
	if err != nil {
		return nil, err
	}
	if slices.Contains(whole, word) {
		value, err := literal(item)
		if err != nil {
			return nil, fmt.Errorf("%s at line %d: %w", word, item.Pos().Line, err)
		}
		a, err := parseAccess(value, false)
		return append(r, rule{resource: word, access: a}), wrapRule(err, word, "")
	}
	resource, prefix := strings.CutSuffix(word, "_prefix")
	if !slices.Contains(named, resource) {
		return nil, fmt.Errorf("unknown rule %q at line %d; known are %s", word, item.Pos().Line, strings.Join(knownRules(), ", "))
	}
	switch len(item.Keys) {
	case 1:
		return r.addNested(item, resource, prefix)
	case 2:
		name, err := keyText(item, 1)
		if err != nil {
			return nil, err
		}
		return r.addBlock(item, rule{resource: resource, name: name, prefix: prefix})
	}
	return nil, fmt.Errorf("%s at line %d: want one name, as in %s \"name\" { … }", word, item.Pos().Line, word)
}

// addNested reads an object from names to blocks.
func (r rules) addNested(item *ast.ObjectItem, resource string, prefix bool) (rules, error) {
	body, ok := item.Val.(*ast.ObjectType)
	if !ok {
		return nil, fmt.Errorf("%s at line %d: want a name and a block, as in %s \"name\" { policy = \"read\" }", resource, item.Pos().Line, resource)
	}
	for _, inner := range body.List.Items {
		name, err := keyText(inner, 0)
		if err != nil {
			return nil, err
		}
		if len(inner.Keys) != 1 {
			return nil, fmt.Errorf("%s at line %d: want one name", resource, inner.Pos().Line)
		}
		if r, err = r.addBlock(inner, rule{resource: resource, name: name, prefix: prefix}); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// addBlock reads { policy = "…" } into a rule.
func (r rules) addBlock(item *ast.ObjectItem, to rule) (rules, error) {
	body, ok := item.Val.(*ast.ObjectType)
	if !ok {
		return nil, wrapRule(fmt.Errorf("want a block, as in { policy = \"read\" }"), to.resource, to.name)
	}
	for _, field := range body.List.Items {
		word, err := keyText(field, 0)
		if err != nil {
			return nil, err
		}
		value, err := literal(field)
		if err != nil {
			return nil, wrapRule(fmt.Errorf("%s: %w", word, err), to.resource, to.name)
		}
		switch {
		case word == "policy" && to.access == noRule:
			to.access, err = parseAccess(value, to.resource == keyResource)
		case word == "intentions" && to.resource == serviceResource && to.intentions == noRule:
			to.intentions, err = parseAccess(value, false)
		case word == "policy" || word == "intentions" && to.resource == serviceResource:
			err = fmt.Errorf("%s is written twice", word)
		default:
			err = fmt.Errorf("unknown field %q", word)
		}
		if err != nil {
			return nil, wrapRule(err, to.resource, to.name)
		}
	}
	if to.access == noRule {
		return nil, wrapRule(fmt.Errorf("policy is missing"), to.resource, to.name)
	}
	return append(r, to), nil
}

// keyText is the text of one of an item's keys: service "web" has two.
func keyText(item *ast.ObjectItem, i int) (string, error) {
	if i >= len(item.Keys) {
		return "", fmt.Errorf("line %d: a name is missing", item.Pos().Line)
	}
	switch v := item.Keys[i].Token.Value().(type) {
	case string:
		return v, nil
	default:
		return "", fmt.Errorf("line %d: want a name, not %v", item.Pos().Line, v)
	}
}

func literal(item *ast.ObjectItem) (string, error) {
	if l, ok := item.Val.(*ast.LiteralType); ok && len(item.Keys) == 1 {
		if s, ok := l.Token.Value().(string); ok {
			return s, nil
		}
	}
	return "", fmt.Errorf("want a text such as \"read\"")
}

func parseAccess(word string, lists bool) (access, error) {
	a, ok := accessWords[word]
	if !ok || a == listable && !lists {
		return noRule, fmt.Errorf("invalid policy %q, want read, write or deny", word)
	}
	return a, nil
}

func wrapRule(err error, resource, name string) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s %q: %w", resource, name, err)
}

func knownRules() []string {
	out := slices.Clone(whole)
	for _, n := range named {
		out = append(out, n, n+"_prefix")
	}
	slices.Sort(out)
	return out
}

// permissions are the rules of a token, from all its policies, in the form that
// answers questions. They are immutable.
type permissions struct {
	accessor   string // the token's; never its secret
	index      uint64 // of the newest record that they are made of; 0: of none
	management bool   // allowed everything
	byDefault  access // readable..writable never: denied or writable
	exact      map[string]map[string]grant
	prefixes   map[string][]prefixGrant // longest first
	whole      map[string]access
}

// grant is what was said of one name.
type grant struct{ access, intentions access }

type prefixGrant struct {
	prefix string
	grant
}

// newPermissions joins the rules of several policies. Where two say something of the
// same name, "deny" is stronger than "write", and that than "list" and "read".
func newPermissions(accessor string, byDefault access, policies ...rules) *permissions {
	p := &permissions{
		accessor: accessor, byDefault: byDefault,
		exact: make(map[string]map[string]grant), prefixes: make(map[string][]prefixGrant), whole: make(map[string]access),
	}
	begin := make(map[string]map[string]grant)
	for _, r := range slices.Concat(policies...) {
		switch {
		case slices.Contains(whole, r.resource):
			p.whole[r.resource] = stronger(p.whole[r.resource], r.access)
		case r.prefix:
			merge(begin, r)
		default:
			merge(p.exact, r)
		}
	}
	for resource, names := range begin {
		for _, prefix := range slices.Sorted(maps.Keys(names)) {
			p.prefixes[resource] = append(p.prefixes[resource], prefixGrant{prefix, names[prefix]})
		}
		slices.SortStableFunc(p.prefixes[resource], func(a, b prefixGrant) int { return len(b.prefix) - len(a.prefix) })
	}
	return p
}

func merge(into map[string]map[string]grant, r rule) {
	names := into[r.resource]
	if names == nil {
		names = make(map[string]grant)
		into[r.resource] = names
	}
	// Who may see a service may see its intentions; writing them takes a word.
	intentions := r.intentions
	if intentions == noRule && r.resource == serviceResource {
		intentions = min(r.access, readable)
	}
	g := names[r.name]
	names[r.name] = grant{stronger(g.access, r.access), stronger(g.intentions, intentions)}
}

func stronger(a, b access) access {
	if a == denied || b == denied {
		return denied
	}
	return max(a, b)
}

// allows says whether a thing may be had. The rule for its very name decides, else
// the longest prefix of it, else the default.
func (p *permissions) allows(resource, name string, want access) bool {
	if p.management {
		return true
	}
	a := noRule
	switch resource {
	case aclResource, keyringResource, operatorResource:
		a = p.whole[resource]
	case meshResource, peeringResource: // narrower words for what operators do
		if a = p.whole[resource]; a == noRule {
			a = p.whole[operatorResource]
		}
	case intentionResource:
		a = p.grant(serviceResource, name).intentions
	default:
		a = p.grant(resource, name).access
	}
	if a == noRule {
		a = p.byDefault
		// A default of "allow" does not make everybody a manager of tokens.
		if resource == aclResource {
			a = denied
		}
	}
	return a != denied && a >= want
}

func (p *permissions) grant(resource, name string) grant {
	if g, ok := p.exact[resource][name]; ok {
		return g
	}
	for _, g := range p.prefixes[resource] {
		if strings.HasPrefix(name, g.prefix) {
			return g.grant
		}
	}
	return grant{}
}

// allowsBelow says whether all things that begin with a prefix may be had: each rule
// below it must allow, too.
func (p *permissions) allowsBelow(resource, prefix string, want access) bool {
	if p.management {
		return true
	}
	covered := p.byDefault
	for _, g := range p.prefixes[resource] {
		if strings.HasPrefix(prefix, g.prefix) {
			covered = g.access
			break
		}
	}
	if covered == denied || covered < want {
		return false
	}
	for name, g := range p.exact[resource] {
		if strings.HasPrefix(name, prefix) && (g.access == denied || g.access < want) {
			return false
		}
	}
	for _, g := range p.prefixes[resource] {
		if strings.HasPrefix(g.prefix, prefix) && (g.access == denied || g.access < want) {
			return false
		}
	}
	return true
}
