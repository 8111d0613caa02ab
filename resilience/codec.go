package resilience

import (
	"bytes"
	"encoding/json"
	"errors"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
)

// ParseSpec reads a Spec from JSON and validates it. The error joins a *FieldError
// for everything that is wrong: unknown and repeated fields, values of another
// type, values out of range.
func ParseSpec(document []byte) (*Spec, error) {
	var s Spec
	var d decoder
	d.read(document, &s)
	d.check(&s)
	if err := d.err(); err != nil {
		return nil, err
	}
	return &s, nil
}

// UnmarshalJSON is ParseSpec. s is unchanged after an error.
func (s *Spec) UnmarshalJSON(document []byte) error {
	parsed, err := ParseSpec(document)
	if err == nil {
		*s = *parsed
	}
	return err
}

// MarshalJSON writes s in the order of its fields, without those that are zero.
// ParseSpec reads it back.
func (s Spec) MarshalJSON() ([]byte, error) {
	var b bytes.Buffer
	err := encode(&b, reflect.ValueOf(s))
	return b.Bytes(), err
}

// decoder walks a document beside the structs that it fills. encoding/json alone
// would stop at the first problem and know neither its path nor durations.
type decoder struct {
	problems
	zeros []zeroField
	blank []string // paths that hold nothing because theirs was not readable
}

// zeroField was written down as 0, "" or [].
type zeroField struct {
	path string // of the document
	at   []int  // the same as indexes of struct fields
	text string
}

func (d *decoder) read(document []byte, s *Spec) {
	if !json.Valid(document) {
		var v any
		err := json.Unmarshal(document, &v)
		d.add("", "not JSON: %v", err)
		return
	}
	d.value("", nil, bytes.TrimSpace(document), reflect.ValueOf(s).Elem())
}

var durationType = reflect.TypeFor[time.Duration]()

// value reads one valid JSON value into v, which at leads to.
func (d *decoder) value(path string, at []int, raw json.RawMessage, v reflect.Value) {
	raw = bytes.TrimSpace(raw)
	if string(raw) == "null" {
		d.wrong(path, "null is no value; leave the field out")
		return
	}
	d.fill(path, at, raw, v)
	if k := v.Kind(); k != reflect.Pointer && k != reflect.Struct && k != reflect.Map && v.IsZero() {
		d.zeros = append(d.zeros, zeroField{path, at, excerpt(raw)})
	}
}

func (d *decoder) fill(path string, at []int, raw json.RawMessage, v reflect.Value) {
	if v.Type() == durationType {
		d.duration(path, raw, v)
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		d.value(path, at, raw, v.Elem())
	case reflect.Struct:
		d.object(path, raw, func(name string, raw json.RawMessage) {
			field, ok := fieldNamed(v.Type(), name)
			if !ok {
				d.add(join(path, name), "there is no such field")
				return
			}
			d.value(join(path, name), append(at[:len(at):len(at)], field), raw, v.Field(field))
		})
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		d.object(path, raw, func(name string, raw json.RawMessage) {
			if text, ok := d.text(join(path, name), raw); ok {
				v.SetMapIndex(reflect.ValueOf(name), reflect.ValueOf(text))
			}
		})
	case reflect.Slice:
		d.texts(path, raw, v)
	case reflect.String:
		if text, ok := d.text(path, raw); ok {
			v.SetString(text)
		}
	case reflect.Bool:
		if json.Unmarshal(raw, v.Addr().Interface()) != nil {
			d.wrong(path, "%s is neither true nor false", excerpt(raw))
		}
	case reflect.Int:
		if n, err := strconv.ParseInt(string(raw), 10, 64); err != nil {
			d.wrong(path, "%s is no whole number", excerpt(raw))
		} else {
			v.SetInt(n)
		}
	case reflect.Float64:
		n, err := strconv.ParseFloat(string(raw), 64)
		if err != nil {
			d.wrong(path, "%s is no number", excerpt(raw))
		} else if n != 0 { // -0 is 0
			v.SetFloat(n)
		}
	}
}

// wrong is add for a value that could not be read: what else is said about the
// field would only repeat it.
func (d *decoder) wrong(path, format string, args ...any) {
	d.add(path, format, args...)
	d.blank = append(d.blank, path)
}

// excerpt of a value for an error.
func excerpt(raw json.RawMessage) string {
	if len(raw) > 40 {
		return strings.ToValidUTF8(string(raw[:40]), "") + "…"
	}
	return string(raw)
}

func (d *decoder) duration(path string, raw json.RawMessage, v reflect.Value) {
	var text string
	if json.Unmarshal(raw, &text) != nil {
		d.wrong(path, "%s is no duration; write it as in \"1m30s\"", excerpt(raw))
		return
	}
	n, err := time.ParseDuration(text)
	if err != nil {
		d.wrong(path, "%q is no duration; write it as in \"1m30s\"", text)
		return
	}
	v.SetInt(int64(n))
}

func (d *decoder) text(path string, raw json.RawMessage) (text string, ok bool) {
	if json.Unmarshal(raw, &text) != nil || raw[0] != '"' {
		d.wrong(path, "%s is no text", excerpt(raw))
		return "", false
	}
	return text, true
}

// texts reads a list of them. Numbers pass as the text that they are: 503 in a list of
// statuses, which YAML does not quote, has but one meaning.
func (d *decoder) texts(path string, raw json.RawMessage, v reflect.Value) {
	var items []json.RawMessage
	if json.Unmarshal(raw, &items) != nil {
		d.wrong(path, "%s is no list", excerpt(raw))
		return
	}
	for i, item := range items {
		text := string(bytes.TrimSpace(item))
		if c := text[0]; c < '0' || c > '9' {
			var ok bool
			if text, ok = d.text(index(path, i), bytes.TrimSpace(item)); !ok {
				d.blank = append(d.blank, path)
				continue
			}
		}
		v.Set(reflect.Append(v, reflect.ValueOf(text)))
	}
}

// object calls field for each name in a JSON object, once.
func (d *decoder) object(path string, raw json.RawMessage, field func(name string, raw json.RawMessage)) {
	if raw[0] != '{' {
		d.wrong(path, "%s is no object", excerpt(raw))
		return
	}
	in := json.NewDecoder(bytes.NewReader(raw))
	in.Token() // the brace; raw is valid
	seen := map[string]bool{}
	for in.More() {
		token, _ := in.Token()
		name, _ := token.(string)
		var raw json.RawMessage
		in.Decode(&raw)
		if seen[name] {
			d.add(join(path, name), "is there twice")
			continue
		}
		seen[name] = true
		field(name, raw)
	}
}

// check adds what is wrong with the values of s, and the fields that were written
// as zero and would silently become something else.
func (d *decoder) check(s *Spec) {
	var found problems
	s.check(&found)
	said := map[string]bool{}
	for _, err := range found.list {
		var field *FieldError
		if errors.As(err, &field) && !d.isBlank(field.Field) {
			d.list = append(d.list, err)
			said[field.Field] = true
		}
	}
	full := reflect.ValueOf(s.withDefaults())
	for _, zero := range d.zeros {
		v, err := full.FieldByIndexErr(zero.at)
		if err == nil && !v.IsZero() && !said[zero.path] && !d.isBlank(zero.path) {
			d.add(zero.path, "%s is out of range; without the field it is %s", zero.text, plain(v))
		}
	}
}

// isBlank reports whether the value of a field, or of one that it is in, could not
// be read.
func (d *decoder) isBlank(field string) bool {
	return slices.ContainsFunc(d.blank, func(path string) bool {
		rest, in := strings.CutPrefix(field, path)
		return in && (path == "" || rest == "" || rest[0] == '.' || rest[0] == '[')
	})
}

func plain(v reflect.Value) string {
	if v.Type() == durationType {
		return formatDuration(time.Duration(v.Int()))
	}
	text, _ := json.Marshal(v.Interface())
	return string(text)
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

func fieldNamed(t reflect.Type, name string) (int, bool) {
	for i := range t.NumField() {
		if tagName(t.Field(i)) == name {
			return i, true
		}
	}
	return 0, false
}

func tagName(f reflect.StructField) string {
	name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
	return name
}

// encode writes what decoder reads.
func encode(b *bytes.Buffer, v reflect.Value) error {
	switch {
	case v.Type() == durationType:
		b.WriteString(strconv.Quote(formatDuration(time.Duration(v.Int()))))
	case v.Kind() == reflect.Pointer:
		return encode(b, v.Elem())
	case v.Kind() == reflect.Struct:
		b.WriteByte('{')
		first := true
		for i := range v.NumField() {
			f := v.Type().Field(i)
			if v.Field(i).IsZero() && strings.Contains(f.Tag.Get("json"), ",omit") {
				continue
			}
			if !first {
				b.WriteByte(',')
			}
			first = false
			b.WriteString(strconv.Quote(tagName(f)) + ":")
			if err := encode(b, v.Field(i)); err != nil {
				return err
			}
		}
		b.WriteByte('}')
	default:
		text, err := json.Marshal(v.Interface())
		if err != nil {
			return err
		}
		b.Write(text)
	}
	return nil
}
