package file

import (
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/weftmesh/weft"
)

// reader takes values out of the trees of one file, and collects what is wrong.
type reader struct {
	file     string
	problems []problem
	left     int // of maxNodes
}

// maxProblems are told of one file.
const maxProblems = 20

func (r *reader) wrong(n *yaml.Node, format string, args ...any) {
	if len(r.problems) >= maxProblems {
		return
	}
	r.problems = append(r.problems, problem{r.file, n.Line, n.Column, fmt.Sprintf(format, args...)})
}

// resolve follows an alias, and counts.
func (r *reader) resolve(n *yaml.Node) *yaml.Node {
	if r.left--; r.left == 0 {
		r.wrong(n, "the file says more than %d values; split it", maxNodes)
	}
	if n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	if r.left <= 0 {
		return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!null", Line: n.Line, Column: n.Column}
	}
	return n
}

// object is a mapping whose keys are known. Keys are taken in any case, and with or
// without underscores, as Consul does. A method that reads a key returns the zero
// value when it is not there or is wrong.
type object struct {
	*reader
	at     *yaml.Node
	path   string // "services[0].check", for messages
	values map[string]*yaml.Node
	keys   map[string]*yaml.Node
	known  []string
}

func fold(key string) string { return strings.ToLower(strings.ReplaceAll(key, "_", "")) }

// object reads n as a mapping; nil when it is none.
func (r *reader) object(n *yaml.Node, path string) *object {
	n = r.resolve(n)
	if n.Kind != yaml.MappingNode {
		r.wrong(n, "%swant a mapping of keys to values, not %s", prefix(path), kindOf(n))
		return nil
	}
	o := &object{reader: r, at: n, path: path, values: make(map[string]*yaml.Node), keys: make(map[string]*yaml.Node)}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], r.resolve(n.Content[i+1])
		name := fold(key.Value)
		if first := o.keys[name]; first != nil {
			r.wrong(key, "%skey %q stands twice, also in line %d; keep one", prefix(path), key.Value, first.Line)
			continue
		}
		o.keys[name], o.values[name] = key, value
	}
	return o
}

func prefix(path string) string {
	if path == "" {
		return ""
	}
	return path + ": "
}

func kindOf(n *yaml.Node) string {
	switch {
	case n.Kind == yaml.MappingNode:
		return "a mapping"
	case n.Kind == yaml.SequenceNode:
		return "a list"
	case isNull(n):
		return "nothing"
	}
	return strconv.Quote(n.Value)
}

func (o *object) has(key string) bool {
	n := o.values[fold(key)]
	return n != nil && !isNull(n)
}

// take returns the value of a key, nil when it is not there.
func (o *object) take(key string) *yaml.Node {
	o.known = append(o.known, key)
	if !o.has(key) {
		return nil
	}
	return o.values[fold(key)]
}

func (o *object) name(key string) string {
	if o.path == "" {
		return key
	}
	return o.path + "." + key
}

// scalar returns the value of a key, when it is one of these types of YAML, or any
// single value when none is given.
func (o *object) scalar(key, want string, tags ...string) (n *yaml.Node, ok bool) {
	if n = o.take(key); n == nil {
		return nil, false
	}
	if n.Kind != yaml.ScalarNode || len(tags) > 0 && !slices.Contains(tags, n.Tag) {
		o.wrong(n, "%s: want %s, not %s", o.name(key), want, kindOf(n))
		return nil, false
	}
	return n, true
}

func (o *object) text(key string) string {
	if n, ok := o.scalar(key, "a text"); ok {
		return n.Value
	}
	return ""
}

func (o *object) number(key string) int {
	n, ok := o.scalar(key, "a whole number", "!!int")
	if !ok {
		return 0
	}
	v, err := strconv.Atoi(n.Value)
	if err != nil {
		o.wrong(n, "%s: want a whole number, not %s", o.name(key), kindOf(n))
	}
	return v
}

func (o *object) flag(key string) bool {
	n, ok := o.scalar(key, "true or false", "!!bool")
	return ok && strings.EqualFold(n.Value, "true")
}

func (o *object) duration(key string) weft.Duration {
	n, ok := o.scalar(key, "a time such as \"10s\"", "!!str")
	if !ok {
		return 0
	}
	d, err := time.ParseDuration(n.Value)
	if err != nil || d < 0 {
		o.wrong(n, "%s: want a time such as \"10s\", not %s", o.name(key), kindOf(n))
		return 0
	}
	return weft.Duration(d)
}

// list returns the elements of a key.
func (o *object) list(key string) []*yaml.Node {
	n := o.take(key)
	if n == nil {
		return nil
	}
	if n.Kind != yaml.SequenceNode {
		o.wrong(n, "%s: want a list, not %s", o.name(key), kindOf(n))
		return nil
	}
	return n.Content
}

func (o *object) texts(key string) []string {
	var out []string
	for i, n := range o.list(key) {
		if o.left <= 0 {
			break
		}
		if n = o.resolve(n); n.Kind != yaml.ScalarNode || isNull(n) {
			o.wrong(n, "%s[%d]: want a text, not %s", o.name(key), i, kindOf(n))
			continue
		}
		out = append(out, n.Value)
	}
	return out
}

// dict reads a mapping whose keys are the user's own.
func (o *object) dict(key string) map[string]string {
	n := o.take(key)
	if n == nil {
		return nil
	}
	if n.Kind != yaml.MappingNode {
		o.wrong(n, "%s: want a mapping of keys to texts, not %s", o.name(key), kindOf(n))
		return nil
	}
	out := make(map[string]string)
	for i := 0; i+1 < len(n.Content) && o.left > 0; i += 2 {
		name, value := n.Content[i], o.resolve(n.Content[i+1])
		_, twice := out[name.Value]
		switch {
		case twice:
			o.wrong(name, "%s: key %q stands twice; keep one", o.name(key), name.Value)
		case value.Kind != yaml.ScalarNode || isNull(value):
			o.wrong(value, "%s.%s: want a text, not %s", o.name(key), name.Value, kindOf(value))
		default:
			out[name.Value] = value.Value
		}
	}
	return out
}

// child reads a mapping with known keys, nil when it is not there.
func (o *object) child(key string) *object {
	n := o.take(key)
	if n == nil {
		return nil
	}
	return o.object(n, o.name(key))
}

func (o *object) children(key string) []*object {
	var out []*object
	for i, n := range o.list(key) {
		if o.left <= 0 {
			break
		}
		if c := o.object(n, fmt.Sprintf("%s[%d]", o.name(key), i)); c != nil {
			out = append(out, c)
		}
	}
	return out
}

// refuse says of keys that people may well write that they do nothing here.
func (o *object) refuse(mend string, keys ...string) {
	for _, key := range keys {
		if n := o.take(key); n != nil {
			o.wrong(o.keys[fold(key)], "%s: is not supported in files; %s", o.name(key), mend)
		}
	}
}

// end complains of keys that nobody asked for.
func (o *object) end() {
	for i := 0; i+1 < len(o.at.Content); i += 2 {
		key := o.at.Content[i]
		if !slices.ContainsFunc(o.known, func(k string) bool { return fold(k) == fold(key.Value) }) {
			mend := "known are " + strings.Join(o.known, ", ")
			if near := nearest(fold(key.Value), o.known); near != "" {
				mend = fmt.Sprintf("did you mean %q?", near)
			}
			o.wrong(key, "%sunknown key %q; %s", prefix(o.path), key.Value, mend)
		}
	}
}

// nearest returns the known key that differs least, when it is at most two edits.
func nearest(key string, known []string) string {
	best, least := "", 3
	for _, k := range known {
		if d := distance(key, fold(k)); d < least {
			best, least = k, d
		}
	}
	return best
}

// distance is Levenshtein's.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

// hostPort reports whether s is "host:port" with a port from 1 to 65535.
func hostPort(s string) (host string, port int, ok bool) {
	host, text, err := net.SplitHostPort(s)
	if err != nil || host == "" {
		return "", 0, false
	}
	port, err = strconv.Atoi(text)
	return host, port, err == nil && port > 0 && port < 1<<16
}
