package consul

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/weftmesh/weft"
)

func TestRules(t *testing.T) {
	const all = `
		acl = "read"
		operator = "write"
		key_prefix "" { policy = "read" }
		key_prefix "app/" { policy = "write" }
		key_prefix "app/secret/" { policy = "deny" }
		key "app/secret/name" { policy = "read" }
		key_prefix "list/" { policy = "list" }
		service "web" { policy = "write" intentions = "deny" }
		service_prefix "web" { policy = "read" intentions = "write" }
		service "db" { policy = "read" }
		service "gone" { policy = "deny" }
		node_prefix "" { policy = "read" }
		session "n1" { policy = "write" }
		event_prefix "deploy" { policy = "write" }
	`
	for _, c := range []struct {
		resource, name string
		want           access
		allowed        bool
	}{
		{"acl", "", readable, true},
		{"acl", "", writable, false},
		{"operator", "", writable, true},
		{"keyring", "", readable, false},
		{"mesh", "", writable, true},    // by operator
		{"peering", "", readable, true}, // by operator
		{"key", "other", readable, true},
		{"key", "other", writable, false},
		{"key", "app/x", writable, true},
		{"key", "app", writable, false}, // not below app/
		{"key", "app/secret/x", readable, false},
		{"key", "app/secret/name", readable, true}, // the very name before the prefix
		{"key", "list/x", listable, true},
		{"key", "list/x", readable, true},
		{"key", "list/x", writable, false},
		{"service", "web", writable, true},
		{"service", "web2", readable, true},
		{"service", "web2", writable, false},
		{"intention", "web", readable, false},
		{"intention", "web2", writable, true},
		{"intention", "db", readable, true}, // who sees the service sees its intentions
		{"intention", "db", writable, false},
		{"intention", "gone", readable, false},
		{"service", "other", readable, false}, // by default
		{"node", "any", readable, true},
		{"session", "n1", writable, true},
		{"session", "n2", readable, false},
		{"event", "deploy-web", writable, true},
		{"event", "other", writable, false},
		{"agent", "n1", readable, false},
		{"query", "q", readable, false},
	} {
		r, err := parseRules(all)
		if err != nil {
			t.Fatal(err)
		}
		p := newPermissions("somebody", denied, r)
		if got := p.allows(c.resource, c.name, c.want); got != c.allowed {
			t.Errorf("%s %q %s: allowed %v, want %v", c.resource, c.name, c.want, got, c.allowed)
		}
	}
}

// Two policies of one token: who denies, wins; else who allows more.
func TestPoliciesOfOneToken(t *testing.T) {
	for _, c := range []struct {
		one, other string
		want       access
		allowed    bool
	}{
		{`key "a" { policy = "read" }`, `key "a" { policy = "write" }`, writable, true},
		{`key "a" { policy = "write" }`, `key "a" { policy = "deny" }`, readable, false},
		{`key_prefix "a" { policy = "deny" }`, `key_prefix "a" { policy = "write" }`, readable, false},
		{`key_prefix "" { policy = "deny" }`, `key "a" { policy = "write" }`, writable, true},
		{`key "a" { policy = "list" }`, `key "a" { policy = "read" }`, listable, true},
	} {
		one, err := parseRules(c.one)
		if err != nil {
			t.Fatal(err)
		}
		other, err := parseRules(c.other)
		if err != nil {
			t.Fatal(err)
		}
		for _, order := range [][]rules{{one, other}, {other, one}} {
			if got := newPermissions("", denied, order...).allows("key", "a", c.want); got != c.allowed {
				t.Errorf("%s and %s: %s %v, want %v", c.one, c.other, c.want, got, c.allowed)
			}
		}
	}
}

func TestDefaultPolicy(t *testing.T) {
	allow, deny := newPermissions("", writable), newPermissions("", denied)
	for _, resource := range append(append([]string{}, named...), whole...) {
		if allow.allows(resource, "x", writable) != (resource != aclResource) {
			t.Errorf("default allow: %s", resource) // all but managing tokens
		}
		if deny.allows(resource, "x", readable) {
			t.Errorf("default deny: %s", resource)
		}
	}
}

func TestRulesInJSON(t *testing.T) {
	hcl, err := parseRules("acl = \"read\"\nservice \"web\" { policy = \"write\" intentions = \"read\" }\nkey_prefix \"\" { policy = \"list\" }")
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{
		`{"acl":"read","service":{"web":{"policy":"write","intentions":"read"}},"key_prefix":{"":{"policy":"list"}}}`,
		`{"acl":"read","service":[{"web":[{"policy":"write","intentions":"read"}]}],"key_prefix":{"":{"policy":"list"}}}`,
	} {
		got, err := parseRules(text)
		if err != nil || fmt.Sprint(got) != fmt.Sprint(hcl) {
			t.Errorf("%s: %v %v, want %v", text, got, err, hcl)
		}
	}
}

func TestWrongRules(t *testing.T) {
	for text, want := range map[string]string{
		`servce "web" { policy = "read" }`:                         `unknown rule "servce" at line 1`,
		`service "web" { policy = "list" }`:                        `invalid policy "list"`,
		`key "a" { policy = "rea" }`:                               `invalid policy "rea"`,
		`acl = "list"`:                                             `invalid policy "list"`,
		`acl "x" { policy = "read" }`:                              `acl at line 1`,
		`service "web" { }`:                                        `policy is missing`,
		`service "web" { intentions = "read" }`:                    `policy is missing`,
		`key "a" { policy = "read" intentions = "read" }`:          `unknown field "intentions"`,
		`service "web" { policy = "read" policy = "write" }`:       `policy is written twice`,
		`service "a" "b" { policy = "read" }`:                      `want one name`,
		`service = "read"`:                                         `want a name and a block`,
		`service "web" { policy = 7 }`:                             `want a text`,
		`service "web" { policy = ["read"] }`:                      `want a text`,
		`service "web" {`:                                          `object expected closing`,
		`{"service":`:                                              ``,
		`key_prefix "` + strings.Repeat("a", maxRules) + `" { }`:   `over 65536 bytes`,
		strings.Repeat(`service "a" { policy = `, 500):             ``,
		`service_prefix "" { policy = "read" } acl = "everything"`: `invalid policy "everything"`,
	} {
		_, err := parseRules(text)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.60s: %v, want %q", text, err, want)
		}
		if k := weft.KindOf(err); k != weft.Invalid && k != weft.TooLarge {
			t.Errorf("%.60s: kind %v", text, k)
		}
	}
}

// Texts that nest as deep as their size allows are refused, and soon.
func TestDeepRules(t *testing.T) {
	for _, part := range []string{"[", "{", "key {", `{"a":`, `key = [`, "(", `key "${`} {
		if _, err := parseRules(strings.Repeat(part, maxRules/len(part))); err == nil {
			t.Errorf("%s… was read", part)
		}
	}
}

// slowly answers as the documentation tells it, rule by rule: the rules of the very
// name, else those of the longest prefix that has any, else the default; among equals
// "deny" before the strongest.
func slowly(all rules, byDefault access, resource, name string, want access) bool {
	longest := -1
	for _, r := range all {
		if r.resource == resource && r.prefix && strings.HasPrefix(name, r.name) {
			longest = max(longest, len(r.name))
		}
	}
	verdict := func(fits func(rule) bool) (access, bool) {
		best, found := noRule, false
		for _, r := range all {
			if r.resource != resource || !fits(r) {
				continue
			}
			if r.access == denied {
				return denied, true
			}
			best, found = max(best, r.access), true
		}
		return best, found
	}
	a, found := verdict(func(r rule) bool { return !r.prefix && r.name == name })
	if !found {
		a, found = verdict(func(r rule) bool { return r.prefix && len(r.name) == longest && strings.HasPrefix(name, r.name) })
	}
	if !found {
		a = byDefault
	}
	return a != denied && a >= want
}

// slowlyBelow asks for every name that can make a difference.
func slowlyBelow(all rules, byDefault access, prefix string, want access, names []string) bool {
	for _, name := range names {
		if strings.HasPrefix(name, prefix) && !slowly(all, byDefault, "key", name, want) {
			return false
		}
	}
	return true
}

func TestPermissionsAreThoseOfTheSlowWay(t *testing.T) {
	// All names of up to four letters of two, and longer ones that no rule has.
	names := []string{""}
	for i := 0; i < len(names) && len(names[i]) < 4; i++ {
		names = append(names, names[i]+"a", names[i]+"b")
	}
	random := rand.New(rand.NewPCG(1, 2))
	levels := []access{denied, readable, listable, writable}
	for range 3000 {
		var policies []rules
		var all rules
		for range 1 + random.IntN(3) {
			var one rules
			for range random.IntN(6) {
				one = append(one, rule{
					resource: "key", name: names[random.IntN(15)], prefix: random.IntN(2) == 0, access: levels[random.IntN(4)],
				})
			}
			policies, all = append(policies, one), append(all, one...)
		}
		byDefault := []access{denied, writable}[random.IntN(2)]
		p := newPermissions("", byDefault, policies...)
		for _, want := range []access{readable, listable, writable} {
			for _, name := range names {
				if got, slow := p.allows("key", name, want), slowly(all, byDefault, "key", name, want); got != slow {
					t.Fatalf("%v by default %v: %s of %q is %v, want %v", all, byDefault, want, name, got, slow)
				}
			}
			for _, prefix := range names[:15] {
				if got, slow := p.allowsBelow("key", prefix, want), slowlyBelow(all, byDefault, prefix, want, names); got && !slow {
					t.Fatalf("%v by default %v: %s below %q is allowed, but not of each name", all, byDefault, want, prefix)
				}
			}
		}
	}
}

// What is read means the same when it is written by the canonical form of its rules.
func FuzzParseRules(f *testing.F) {
	for _, text := range []string{
		``, `acl = "read"`, `service "web" { policy = "write" intentions = "read" }`, `key_prefix "" { policy = "list" }`,
		`{"service":{"web":{"policy":"write"}},"operator":"read"}`, "# a comment\nnode_prefix \"\" { policy = \"deny\" }",
		`agent "a" { policy = "read" } agent "b" { policy = "write" }`, `key "${x}" { policy = "read" }`, `session "\u0000" {policy="read"}`,
		"event <<EOF\nx\nEOF\n", `service { "web" { policy = "read" } }`,
	} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		first, err := parseRules(text)
		if err != nil {
			return
		}
		var b strings.Builder
		for _, r := range first {
			if strings.ContainsAny(r.name, "\"\\\n\r\t${}") || strings.ToValidUTF8(r.name, "") != r.name || strings.ContainsFunc(r.name, func(c rune) bool { return c < ' ' || c > '~' }) {
				return // their quoting is the library's matter
			}
			word := r.resource
			if r.prefix {
				word += "_prefix"
			}
			switch {
			case slices.Contains(whole, r.resource):
				fmt.Fprintf(&b, "%s = %q\n", word, r.access)
			case r.intentions != noRule:
				fmt.Fprintf(&b, "%s %q {\n policy = %q\n intentions = %q\n}\n", word, r.name, r.access, r.intentions)
			default:
				fmt.Fprintf(&b, "%s %q {\n policy = %q\n}\n", word, r.name, r.access)
			}
		}
		again, err := parseRules(b.String())
		if err != nil || fmt.Sprint(again) != fmt.Sprint(first) {
			t.Fatalf("%q is %v; written again it is %v, %v", text, first, again, err)
		}
	})
}
