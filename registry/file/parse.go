package file

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

const (
	maxFile  = 4 << 20
	maxDepth = 64      // of what is nested
	maxNodes = 1 << 20 // that are read of one file, aliases expanded
)

// problem is one thing that is wrong in a file.
type problem struct {
	file         string
	line, column int // from 1; 0 is not known
	text         string
}

func (p problem) String() string { return p.place() + ": " + p.text }

// place is "web.yaml:3:5".
func (p problem) place() string {
	pos := p.file
	if p.line > 0 {
		pos += ":" + strconv.Itoa(p.line)
		if p.column > 0 {
			pos += ":" + strconv.Itoa(p.column)
		}
	}
	return pos
}

// parse reads the documents of a file as trees that know their places: one of JSON,
// any number of YAML.
func parse(path string, content []byte) ([]*yaml.Node, *problem) {
	if len(bytes.TrimSpace(content)) == 0 {
		return nil, &problem{file: path, line: 1, column: 1,
			text: "the file is empty; write what is registered (\"services: []\" for nothing), or remove the file"}
	}
	if strings.HasSuffix(path, ".json") {
		return parseJSON(path, content)
	}
	return parseYAML(path, content)
}

// yamlPlace finds the line in an error of the YAML parser, which has no other way
// to tell it.
var yamlPlace = regexp.MustCompile(`^yaml: (?:line (\d+): )?`)

func parseYAML(path string, content []byte) ([]*yaml.Node, *problem) {
	var docs []*yaml.Node
	for d := yaml.NewDecoder(bytes.NewReader(content)); ; {
		var doc yaml.Node
		err := d.Decode(&doc)
		if err == io.EOF {
			break
		}
		if err != nil {
			p := &problem{file: path}
			place := yamlPlace.FindStringSubmatch(err.Error())
			if len(place) == 2 {
				p.line, _ = strconv.Atoi(place[1])
				p.column = indent(content, p.line)
			}
			p.text = "it is no YAML: " + strings.TrimSpace(yamlPlace.ReplaceAllString(err.Error(), "")) + "; what the file said before stands until it is mended"
			return nil, p
		}
		if len(doc.Content) == 1 && !isNull(doc.Content[0]) {
			docs = append(docs, doc.Content[0])
		}
	}
	if len(docs) == 0 {
		return nil, &problem{file: path, line: 1, column: 1,
			text: "the file says nothing; write what is registered (\"services: []\" for nothing), or remove the file"}
	}
	return docs, nil
}

// indent is the column of the first character of a line that is no space.
func indent(content []byte, line int) int {
	for n, text := range bytes.Split(content, []byte("\n")) {
		if n == line-1 {
			return len(text) - len(bytes.TrimLeft(text, " \t")) + 1
		}
	}
	return 0
}

// jsonReader makes a tree of JSON, which the YAML parser does not take wherever
// there are tabs.
type jsonReader struct {
	content []byte
	tokens  *json.Decoder

	line      int   // of the last token, from 0
	lineStart int64 // offset of that line
	seen      int64 // offset of that token
}

func parseJSON(path string, content []byte) ([]*yaml.Node, *problem) {
	r := &jsonReader{content: content, tokens: json.NewDecoder(bytes.NewReader(content))}
	r.tokens.UseNumber()
	// First the syntax of the whole: only there an error knows its place.
	var whole json.RawMessage
	err := json.Unmarshal(content, &whole)
	offset := int64(len(content))
	var syntax *json.SyntaxError
	if errors.As(err, &syntax) && syntax.Offset < offset {
		offset = syntax.Offset - 1 // it counts the byte that is wrong
	}
	if err == nil {
		var doc *yaml.Node
		if doc, err = r.value(0); err == nil {
			return []*yaml.Node{doc}, nil
		}
		offset = r.seen
	}
	p := &problem{file: path, text: "it is no JSON: " + err.Error() + "; what the file said before stands until it is mended"}
	p.line, p.column = r.place(offset)
	return nil, p
}

// place is the line and column of an offset, which is not before the last one that
// was asked for.
func (r *jsonReader) place(offset int64) (line, column int) {
	offset = max(r.seen, min(offset, int64(len(r.content))))
	passed := r.content[r.seen:offset]
	if end := bytes.LastIndexByte(passed, '\n'); end >= 0 {
		r.line += bytes.Count(passed, []byte("\n"))
		r.lineStart = r.seen + int64(end) + 1
	}
	r.seen = offset
	return r.line + 1, utf8.RuneCount(r.content[r.lineStart:offset]) + 1
}

// start is the offset of the next token.
func (r *jsonReader) start() int64 {
	at := r.tokens.InputOffset()
	for at < int64(len(r.content)) && strings.IndexByte(" \t\r\n,:", r.content[at]) >= 0 {
		at++
	}
	return at
}

func (r *jsonReader) value(depth int) (*yaml.Node, error) {
	if depth > maxDepth {
		return nil, fmt.Errorf("it is nested deeper than %d levels", maxDepth)
	}
	at := r.start()
	token, err := r.tokens.Token()
	if err != nil {
		return nil, err
	}
	n := &yaml.Node{Kind: yaml.ScalarNode}
	n.Line, n.Column = r.place(at)
	switch v := token.(type) {
	case json.Delim:
		n.Kind = yaml.SequenceNode
		if v == '{' {
			n.Kind = yaml.MappingNode
		}
		for r.tokens.More() { // keys come as values do
			child, err := r.value(depth + 1)
			if err != nil {
				return nil, err
			}
			n.Content = append(n.Content, child)
		}
		_, err = r.tokens.Token()
	case string:
		n.Tag, n.Value = "!!str", v
	case json.Number:
		n.Tag, n.Value = "!!int", v.String()
		if strings.ContainsAny(n.Value, ".eE") {
			n.Tag = "!!float"
		}
	case bool:
		n.Tag, n.Value = "!!bool", strconv.FormatBool(v)
	case nil:
		n.Tag, n.Value = "!!null", "null"
	}
	return n, err
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.Tag == "!!null" }
