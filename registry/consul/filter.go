package consul

import (
	"reflect"
	"regexp"
	"strconv"
	"strings"

	"github.com/weftmesh/weft"
)

// The language of "?filter=", as Consul documents it:
//
//	or         = and { "or" and }
//	and        = not { "and" not }
//	not        = "not" not | "(" or ")" | match
//	match      = selector ( "==" | "!=" ) value
//	           | selector [ "not" ] ( "contains" | "matches" ) value
//	           | selector "is" [ "not" ] "empty"
//	           | value [ "not" ] "in" selector
//	selector   = name { "." name | "[" string "]" }
//	value      = string | word
//
// A selector walks the fields of the endpoint's record (see wire.go): Service.Port,
// Service.Meta.version, Meta["a.b"]. Through a list of records (Checks.Status) a
// match is one of any element. A key that a map does not have equals nothing, and
// is empty. A selector that the record does not have, or an operator that does not
// fit the field's type, is an error: a filter that can never match is a mistake.

const (
	maxFilter      = 8 << 10 // bytes
	maxFilterDepth = 64      // of parentheses and nots
)

// filter is a parsed filter, for records of one type.
type filter struct{ match func(reflect.Value) bool }

// parseFilter compiles text for records of type t. Errors name the position, in
// bytes from 1.
func parseFilter(text string, t reflect.Type) (*filter, error) {
	if len(text) > maxFilter {
		return nil, filterError(1, "longer than %d bytes", maxFilter)
	}
	p := &filterParser{text: text, record: t}
	if err := p.next(); err != nil {
		return nil, err
	}
	m, err := p.or(0)
	if err != nil {
		return nil, err
	}
	if p.tok.kind != endToken {
		return nil, filterError(p.tok.at, "unexpected %q", p.tok.text)
	}
	return &filter{match: m}, nil
}

func filterError(at int, format string, args ...any) error {
	return weft.Errorf(weft.Invalid, "filter", "at "+strconv.Itoa(at), format, args...)
}

type tokenKind uint8

const (
	endToken    tokenKind = iota
	signToken             // ( ) == !=
	stringToken           // "…" or `…`, unquoted in text
	wordToken             // a keyword, a selector or a bare value
)

type token struct {
	kind tokenKind
	at   int // from 1
	text string
	path []string // of a word, as a selector
}

type match func(reflect.Value) bool

type filterParser struct {
	text   string
	pos    int // of what comes after tok
	tok    token
	record reflect.Type
}

func (p *filterParser) or(depth int) (match, error) {
	return p.chain(depth, "or", p.and, func(a, b match) match {
		return func(v reflect.Value) bool { return a(v) || b(v) }
	})
}

func (p *filterParser) and(depth int) (match, error) {
	return p.chain(depth, "and", p.not, func(a, b match) match {
		return func(v reflect.Value) bool { return a(v) && b(v) }
	})
}

func (p *filterParser) chain(depth int, word string, part func(int) (match, error), join func(a, b match) match) (match, error) {
	left, err := part(depth)
	for err == nil && p.is(word) {
		if err = p.next(); err != nil {
			break
		}
		var right match
		if right, err = part(depth); err == nil {
			left = join(left, right)
		}
	}
	return left, err
}

func (p *filterParser) not(depth int) (match, error) {
	if depth > maxFilterDepth {
		return nil, filterError(p.tok.at, "nested deeper than %d", maxFilterDepth)
	}
	switch {
	case p.is("not"):
		if err := p.next(); err != nil {
			return nil, err
		}
		m, err := p.not(depth + 1)
		return func(v reflect.Value) bool { return !m(v) }, err
	case p.sign("("):
		if err := p.next(); err != nil {
			return nil, err
		}
		m, err := p.or(depth + 1)
		if err == nil && !p.sign(")") {
			err = filterError(p.tok.at, "want \")\"")
		}
		if err != nil {
			return nil, err
		}
		return m, p.next()
	}
	return p.matchExpression()
}

// matchExpression reads one comparison. What comes first is a value when "in"
// follows, else a selector.
func (p *filterParser) matchExpression() (match, error) {
	first := p.tok
	if first.kind != wordToken && first.kind != stringToken {
		return nil, filterError(first.at, "want a selector or a value")
	}
	if err := p.next(); err != nil {
		return nil, err
	}
	if p.sign("==") || p.sign("!=") {
		return p.compare(first, "==", p.tok.text == "!=")
	}
	if p.is("is") {
		return p.emptiness(first)
	}
	negated := p.is("not")
	if negated {
		if err := p.next(); err != nil {
			return nil, err
		}
	}
	switch {
	case p.is("in"):
		return p.membership(first, negated)
	case p.is("contains"), p.is("matches"):
		return p.compare(first, p.tok.text, negated)
	}
	return nil, filterError(p.tok.at, "want ==, !=, in, not in, contains, matches, is empty or is not empty")
}

// compare reads what follows the operator that is the present token.
func (p *filterParser) compare(selector token, operator string, negated bool) (match, error) {
	if err := p.next(); err != nil {
		return nil, err
	}
	value := p.tok
	if value.kind != wordToken && value.kind != stringToken {
		return nil, filterError(value.at, "want a value")
	}
	s, err := p.resolve(selector)
	if err != nil {
		return nil, err
	}
	test, err := s.test(operator, value)
	if err != nil {
		return nil, err
	}
	return s.match(test, negated, false), p.next()
}

func (p *filterParser) membership(value token, negated bool) (match, error) {
	if err := p.next(); err != nil {
		return nil, err
	}
	s, err := p.resolve(p.tok)
	if err != nil {
		return nil, err
	}
	test, err := s.test("contains", value)
	if err != nil {
		return nil, err
	}
	return s.match(test, negated, false), p.next()
}

func (p *filterParser) emptiness(selector token) (match, error) {
	if err := p.next(); err != nil {
		return nil, err
	}
	negated := p.is("not")
	if negated {
		if err := p.next(); err != nil {
			return nil, err
		}
	}
	if !p.is("empty") {
		return nil, filterError(p.tok.at, "want \"empty\"")
	}
	s, err := p.resolve(selector)
	if err != nil {
		return nil, err
	}
	switch s.leaf.Kind() {
	case reflect.String, reflect.Slice, reflect.Map:
	default:
		return nil, filterError(selector.at, "%s is never empty", selector.text)
	}
	return s.match(func(v reflect.Value) bool { return v.Len() == 0 }, negated, true), p.next()
}

func (p *filterParser) is(word string) bool   { return p.tok.kind == wordToken && p.tok.text == word }
func (p *filterParser) sign(text string) bool { return p.tok.kind == signToken && p.tok.text == text }

// selector is a way through a record to a leaf.
type selector struct {
	token
	steps []step
	leaf  reflect.Type
}

// step goes to a field of a struct, to a key of a map, or to every element of a list.
type step struct {
	field int
	key   string
	kind  reflect.Kind // Struct, Map or Slice
}

// resolve finds the selector's way through the record. A list of records has no
// name for its elements, so the way goes on inside it by itself.
func (p *filterParser) resolve(t token) (*selector, error) {
	if t.kind != wordToken {
		return nil, filterError(t.at, "want a selector, such as %s", p.record.Field(0).Name)
	}
	s := &selector{token: t, leaf: p.record}
	for _, name := range t.path {
		if s.leaf.Kind() == reflect.Slice {
			s.steps = append(s.steps, step{kind: reflect.Slice})
			s.leaf = s.leaf.Elem()
		}
		if s.leaf.Kind() == reflect.Pointer {
			s.leaf = s.leaf.Elem()
		}
		switch s.leaf.Kind() {
		case reflect.Struct:
			f, ok := s.leaf.FieldByName(name)
			if !ok {
				return nil, filterError(t.at, "there is no %s to select", t.text)
			}
			s.steps = append(s.steps, step{kind: reflect.Struct, field: f.Index[0]})
			s.leaf = f.Type
		case reflect.Map:
			s.steps = append(s.steps, step{kind: reflect.Map, key: name})
			s.leaf = s.leaf.Elem()
		default:
			return nil, filterError(t.at, "there is no %s to select", t.text)
		}
	}
	return s, nil
}

// test returns the comparison of a leaf with a value.
func (s *selector) test(operator string, value token) (match, error) {
	text := value.text
	kind := s.leaf.Kind()
	switch {
	case operator == "==" && kind == reflect.String:
		return func(v reflect.Value) bool { return v.String() == text }, nil
	case operator == "==":
		return s.equals(value)
	case operator == "matches" && kind == reflect.String:
		re, err := regexp.Compile(text)
		if err != nil {
			return nil, filterError(value.at, "%w", err)
		}
		return func(v reflect.Value) bool { return re.MatchString(v.String()) }, nil
	case operator == "contains" && kind == reflect.String:
		return func(v reflect.Value) bool { return strings.Contains(v.String(), text) }, nil
	case operator == "contains" && kind == reflect.Map:
		return func(v reflect.Value) bool { return v.MapIndex(reflect.ValueOf(text)).IsValid() }, nil
	case operator == "contains" && s.leaf == reflect.TypeFor[[]string]():
		return func(v reflect.Value) bool {
			for i := range v.Len() { // not v.Interface: the records of logins have fields that are not exported
				if v.Index(i).String() == text {
					return true
				}
			}
			return false
		}, nil
	}
	return nil, filterError(s.at, "%q cannot be used on %s", operator, s.text)
}

func (s *selector) equals(value token) (match, error) {
	switch {
	case s.leaf.Kind() == reflect.Bool:
		want, err := strconv.ParseBool(value.text)
		if err != nil {
			return nil, filterError(value.at, "%q is not true or false", value.text)
		}
		return func(v reflect.Value) bool { return v.Bool() == want }, nil
	case s.leaf.Kind() == reflect.Int:
		want, err := strconv.ParseInt(value.text, 10, 64)
		if err != nil {
			return nil, filterError(value.at, "%q is not a number", value.text)
		}
		return func(v reflect.Value) bool { return v.Int() == want }, nil
	case s.leaf.Kind() >= reflect.Uint8 && s.leaf.Kind() <= reflect.Uint64:
		want, err := strconv.ParseUint(value.text, 10, 64)
		if err != nil {
			return nil, filterError(value.at, "%q is not a number", value.text)
		}
		return func(v reflect.Value) bool { return v.Uint() == want }, nil
	}
	return nil, filterError(s.at, "%s cannot be compared", s.text)
}

// match applies a test to the leaf, or to any of the leaves behind a list. missing
// is what the test says of a key that is not there.
func (s *selector) match(test match, negated, missing bool) match {
	missing = missing != negated
	var walk func(v reflect.Value, steps []step) bool
	walk = func(v reflect.Value, steps []step) bool {
		for v.Kind() == reflect.Pointer {
			if v.IsNil() {
				return missing
			}
			v = v.Elem()
		}
		if len(steps) == 0 {
			return test(v) != negated
		}
		switch steps[0].kind {
		case reflect.Struct:
			return walk(v.Field(steps[0].field), steps[1:])
		case reflect.Map:
			if v = v.MapIndex(reflect.ValueOf(steps[0].key)); !v.IsValid() {
				return missing
			}
			return walk(v, steps[1:])
		}
		for i := range v.Len() {
			if walk(v.Index(i), steps[1:]) {
				return true
			}
		}
		return false
	}
	return func(v reflect.Value) bool { return walk(v, s.steps) }
}

// next reads the next token.
func (p *filterParser) next() error {
	for p.pos < len(p.text) && strings.IndexByte(" \t\r\n", p.text[p.pos]) >= 0 {
		p.pos++
	}
	rest := p.text[p.pos:]
	p.tok = token{at: p.pos + 1}
	switch {
	case rest == "":
		return nil
	case rest[0] == '(' || rest[0] == ')':
		p.take(signToken, 1)
	case strings.HasPrefix(rest, "==") || strings.HasPrefix(rest, "!="):
		p.take(signToken, 2)
	case rest[0] == '"' || rest[0] == '`':
		text, err := p.quoted()
		if err != nil {
			return err
		}
		p.tok.kind, p.tok.text = stringToken, text
	default:
		return p.word()
	}
	return nil
}

func (p *filterParser) take(kind tokenKind, n int) {
	p.tok.kind, p.tok.text = kind, p.text[p.pos:p.pos+n]
	p.pos += n
}

// quoted reads a string in Go's quotes.
func (p *filterParser) quoted() (string, error) {
	raw, err := strconv.QuotedPrefix(p.text[p.pos:])
	if err != nil {
		return "", filterError(p.pos+1, "the string does not end, or is not well formed")
	}
	text, err := strconv.Unquote(raw)
	if err != nil {
		return "", filterError(p.pos+1, "%w", err)
	}
	p.pos += len(raw)
	return text, nil
}

// word reads a bare word, with the ["…"] that a selector may have. A word with
// these is no value.
func (p *filterParser) word() error {
	start := p.pos
	n := wordLength(p.text[start:])
	if n == 0 {
		return filterError(start+1, "unexpected %q", p.text[start])
	}
	p.take(wordToken, n)
	p.tok.path = strings.Split(p.tok.text, ".")
	for strings.HasPrefix(p.text[p.pos:], "[") {
		p.pos++
		key, err := p.quoted()
		if err != nil {
			return err
		}
		if !strings.HasPrefix(p.text[p.pos:], "]") {
			return filterError(p.pos+1, "want \"]\"")
		}
		p.pos++
		p.tok.path = append(p.tok.path, key)
		if n = wordLength(p.text[p.pos:]); n > 1 && p.text[p.pos] == '.' {
			p.tok.path = append(p.tok.path, strings.Split(p.text[p.pos+1:p.pos+n], ".")...)
			p.pos += n
		}
	}
	p.tok.text = p.text[start:p.pos]
	return nil
}

func wordLength(s string) int {
	if i := strings.IndexAny(s, " \t\r\n()[]=!\"`"); i >= 0 {
		return i
	}
	return len(s)
}
