package resource

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Bounds of one file. Aliases and merges are expanded, so a small file could
// otherwise become a large tree, or an endless one.
const (
	maxFileBytes = 1 << 20
	maxValues    = 200_000
	maxDepth     = 64
)

// form is what kind of value a node is, named as problems name it.
type form string

const (
	nothing form = "nothing"
	text    form = "text"
	number  form = "a number"
	boolean form = "true or false"
	list    form = "a list"
	object  form = "an object"
)

// node is a YAML value with aliases and merge keys resolved.
type node struct {
	form   form
	line   int
	text   string // of a scalar; a number in JSON form
	fields []field
	items  []*node
}

// field is one entry of an object. Its line is the key's.
type field struct {
	name  string
	line  int
	value *node
}

// get returns the value of a field, or nil.
func (n *node) get(name string) *node {
	for i := range n.fields {
		if n.fields[i].name == name {
			return n.fields[i].value
		}
	}
	return nil
}

// String describes the value for a problem, by at most 40 bytes of it.
func (n *node) String() string {
	switch n.form {
	case text:
		return fmt.Sprintf("the text %q", n.text[:min(len(n.text), 40)])
	case number, boolean:
		return n.text
	}
	return string(n.form)
}

// document is one YAML document of a file, with what is wrong with it as YAML.
type document struct {
	root *node // nil when it is no YAML at all
	bad  []complaint
}

// complaint is a problem found before it is known which resource it is of.
type complaint struct {
	line          int
	message, mend string
}

// documents returns all documents of a file but the empty ones. One that is no
// YAML costs only itself: each is read alone.
func documents(data []byte) []document {
	if len(data) > maxFileBytes {
		return []document{{bad: []complaint{{1, fmt.Sprintf("the file is larger than %d bytes", maxFileBytes), "split it"}}}}
	}
	var docs []document
	e := &expansion{}
	for _, part := range splitDocuments(data) {
		e.offset = part.line
		dec := yaml.NewDecoder(bytes.NewReader(part.data))
		for !e.full {
			var doc yaml.Node
			err := dec.Decode(&doc)
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				line, message := part.syntaxError(err)
				docs = append(docs, document{bad: []complaint{{part.line + line, message, ""}}})
				break
			}
			e.bad = nil
			d := document{root: e.expand(doc.Content[0], 0)}
			d.bad = e.bad
			if e.full {
				d.root = nil // a part of it: what is missing there says nothing
			}
			if len(d.bad) > 0 || d.root.form != nothing {
				docs = append(docs, d)
			}
		}
	}
	return docs
}

// part is the text of a document, and how many lines are before it.
type part struct {
	line int
	data []byte
}

// splitDocuments cuts at lines that begin with "---", which YAML forbids inside
// a document. Directives and comments stay with the document after them.
func splitDocuments(data []byte) []part {
	parts := []part{{}}
	start, content := 0, false
	for at, line := 0, 0; at < len(data); line++ {
		text, _, _ := bytes.Cut(data[at:], []byte("\n"))
		word := bytes.TrimSpace(text)
		marker := bytes.HasPrefix(text, []byte("---")) && (len(word) == 3 || text[3] == ' ' || text[3] == '\t')
		if marker && content {
			parts[len(parts)-1].data = data[start:at]
			parts = append(parts, part{line: line})
			start, content = at, false
		}
		content = content || marker || len(word) > 0 && word[0] != '#' && word[0] != '%'
		at += len(text) + 1
	}
	parts[len(parts)-1].data = data[start:]
	return parts
}

var (
	syntaxLine    = regexp.MustCompile(`^yaml: (?:line (\d+): )?(.*)`)
	unknownAnchor = regexp.MustCompile(`^unknown anchor '(.*)' referenced`)
)

// syntaxError takes apart the parser's error, which has no type. A missing line
// is the first, except for anchors, and those of the grammar count from 0.
func (p part) syntaxError(err error) (line int, message string) {
	m := syntaxLine.FindStringSubmatch(err.Error())
	if m == nil {
		return 1, "not YAML: " + err.Error()
	}
	line, _ = strconv.Atoi(m[1])
	if line > 0 && strings.HasPrefix(m[2], "did not find expected") {
		line++
	}
	if a := unknownAnchor.FindStringSubmatch(m[2]); a != nil {
		before, _, _ := bytes.Cut(p.data, []byte("*"+a[1]))
		line = bytes.Count(before, []byte("\n")) + 1
	}
	last := bytes.Count(bytes.TrimRight(p.data, "\n"), []byte("\n")) + 1
	return min(max(line, 1), last), "not YAML: " + m[2]
}

// expansion turns yaml.Nodes into nodes, within bounds.
type expansion struct {
	offset int  // lines before the present document
	values int  // made so far, of all documents
	full   bool // a bound was reached
	bad    []complaint
}

func (e *expansion) complain(line int, message, mend string) {
	e.bad = append(e.bad, complaint{line, message, mend})
}

// expand returns nil for what it complained of.
func (e *expansion) expand(y *yaml.Node, depth int) *node {
	if e.full {
		return nil
	}
	line := y.Line + e.offset
	if e.values++; e.values > maxValues || depth > maxDepth {
		e.full = true
		e.complain(line, fmt.Sprintf("more than %d values, or more than %d levels", maxValues, maxDepth),
			"split the file; look for an alias inside its own anchor")
		return nil
	}
	switch {
	case y.Kind == yaml.AliasNode:
		return e.expand(y.Alias, depth+1)
	case y.Kind == yaml.MappingNode && y.ShortTag() == "!!map":
		return e.mapping(y, depth)
	case y.Kind == yaml.SequenceNode && y.ShortTag() == "!!seq":
		n := &node{form: list, line: line}
		for _, item := range y.Content {
			if v := e.expand(item, depth+1); v != nil {
				n.items = append(n.items, v)
			}
		}
		return n
	case y.Kind == yaml.ScalarNode:
		return e.scalar(y)
	}
	e.complain(line, "the tag "+y.Tag+" is not known", "leave it out")
	return nil
}

func (e *expansion) mapping(y *yaml.Node, depth int) *node {
	n := &node{form: object, line: y.Line + e.offset}
	var merged []field
	lines := make(map[string]int, len(y.Content)/2)
	for i := 0; i+1 < len(y.Content); i += 2 {
		key := y.Content[i]
		line := key.Line + e.offset
		if key.Kind == yaml.AliasNode {
			key = key.Alias
		}
		if key.Kind != yaml.ScalarNode {
			e.complain(line, "a key must be text", "")
			continue
		}
		v := e.expand(y.Content[i+1], depth+1)
		first, twice := lines[key.Value]
		switch {
		case v == nil: // complained of
		case key.ShortTag() == "!!merge":
			merged = append(merged, e.merge(v)...)
		case twice:
			e.complain(line, fmt.Sprintf("the key %q is written twice", key.Value), fmt.Sprintf("the first is on line %d", first))
		default:
			lines[key.Value] = line
			n.fields = append(n.fields, field{key.Value, line, v})
		}
	}
	for _, f := range merged {
		if _, own := lines[f.name]; !own {
			lines[f.name] = f.line
			n.fields = append(n.fields, f)
		}
	}
	return n
}

// merge returns the fields that "<<" brings: of an object, or of a list of
// objects of which the first has precedence.
func (e *expansion) merge(v *node) []field {
	from := []*node{v}
	if v.form == list {
		from = v.items
	}
	var out []field
	for _, n := range from {
		if n.form != object {
			e.complain(n.line, "\"<<\" wants an object, got "+string(n.form), "")
			continue
		}
		out = append(out, n.fields...)
	}
	return out
}

func (e *expansion) scalar(y *yaml.Node) *node {
	n := &node{form: text, line: y.Line + e.offset, text: y.Value}
	switch y.ShortTag() {
	case "!!str", "!!timestamp": // a date without quotes is text, as in Kubernetes
	case "!!null":
		n.form = nothing
	case "!!bool":
		n.form, n.text = boolean, strings.ToLower(y.Value)
		if n.text != "true" && n.text != "false" {
			e.complain(n.line, fmt.Sprintf("%q is neither true nor false", y.Value), "")
			return nil
		}
	case "!!int", "!!float":
		var v any
		if err := y.Decode(&v); err != nil {
			e.complain(n.line, fmt.Sprintf("%q is no number", y.Value), "")
			return nil
		}
		n.form, n.text = number, fmt.Sprint(v)
	default:
		e.complain(n.line, "the tag "+y.Tag+" is not known", "leave it out")
		return nil
	}
	return n
}
