package consul

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/weftmesh/weft"
)

// decodeStrict reads a body into the struct that to points at, by decodeFields.
func decodeStrict(body []byte, to any) error {
	parsed, err := parseJSON(body)
	if err != nil {
		return err
	}
	return decodeFields(parsed, reflect.ValueOf(to).Elem(), "")
}

// decodeFields reads decoded JSON into a struct, strictly: a field that the struct
// does not have, and that says something, is an error with its path. Keys of structs
// are taken in any case and with underscores; keys of maps are the user's, and stay.
func decodeFields(from any, to reflect.Value, path string) error {
	if from == nil {
		return nil
	}
	switch v := to.Addr().Interface().(type) {
	case *weft.Duration:
		return decodeOwn(from, v, path, "want a duration such as \"10s\"")
	case *time.Time:
		return decodeOwn(from, v, path, "want a time such as \"2026-01-31T00:00:00Z\"")
	}
	switch to.Kind() {
	case reflect.Interface:
		to.Set(reflect.ValueOf(from))
	case reflect.Pointer:
		if to.IsNil() {
			to.Set(reflect.New(to.Type().Elem()))
		}
		return decodeFields(from, to.Elem(), path)
	case reflect.Struct:
		return decodeStruct(from, to, path)
	case reflect.Slice:
		list, ok := from.([]any)
		if !ok {
			return fieldError(path, "want a list")
		}
		to.Set(reflect.MakeSlice(to.Type(), len(list), len(list)))
		for i := range list {
			if err := decodeFields(list[i], to.Index(i), fmt.Sprintf("%s[%d]", path, i)); err != nil {
				return err
			}
		}
	case reflect.Map:
		return decodeMap(from, to, path)
	default:
		return decodeScalar(from, to, path)
	}
	return nil
}

// decodeOwn reads what knows by itself how.
func decodeOwn(from any, to json.Unmarshaler, path, want string) error {
	b, err := json.Marshal(from)
	if err == nil {
		err = to.UnmarshalJSON(b)
	}
	if err != nil {
		return fieldError(path, "%s", want)
	}
	return nil
}

func decodeMap(from any, to reflect.Value, path string) error {
	object, ok := from.(map[string]any)
	if !ok {
		return fieldError(path, "want an object")
	}
	to.Set(reflect.MakeMapWithSize(to.Type(), len(object)))
	for key, v := range object {
		element := reflect.New(to.Type().Elem()).Elem()
		if err := decodeFields(v, element, path+"["+key+"]"); err != nil {
			return err
		}
		to.SetMapIndex(reflect.ValueOf(key), element)
	}
	return nil
}

func decodeStruct(from any, to reflect.Value, path string) error {
	object, ok := from.(map[string]any)
	if !ok {
		return fieldError(path, "want an object")
	}
	for _, key := range slices.Sorted(maps.Keys(object)) { // so that of several errors it is always the same
		v, at := object[key], key
		if path != "" {
			at = path + "." + key
		}
		bare := strings.ReplaceAll(key, "_", "")
		// The names of embedded structs, in small letters, are none of a client's.
		field := to.FieldByNameFunc(func(name string) bool { return name[0] <= 'Z' && strings.EqualFold(name, bare) })
		switch {
		case !field.IsValid() && saysNothing(v):
		case !field.IsValid() && instead[at] != "":
			return fieldError(at, "weft does not carry this out: %s", instead[at])
		case !field.IsValid():
			return fieldError(at, "weft does not carry this out")
		default:
			if err := decodeFields(v, field, at); err != nil {
				return err
			}
		}
	}
	return nil
}

// instead says what the mesh has in place of a field that it does not carry out.
var instead = map[string]string{
	// Failover is for when no instance is well, and never repeats what was answered.
	"Failover": "the fallback of a ResiliencePolicy names a service that answers in place of one that fails, by errors too",
}

// saysNothing reports whether a value is what a client sends for a field that nobody
// set.
func saysNothing(v any) bool {
	switch v := v.(type) {
	case nil:
		return true
	case string:
		return v == ""
	case bool:
		return !v
	case json.Number:
		return v == "0"
	case []any:
		return len(v) == 0
	case map[string]any:
		for _, inner := range v {
			if !saysNothing(inner) {
				return false
			}
		}
		return true
	}
	return false
}

func decodeScalar(from any, to reflect.Value, path string) error {
	switch to.Kind() {
	case reflect.String:
		if s, ok := from.(string); ok {
			to.SetString(s)
			return nil
		}
		return fieldError(path, "want a text")
	case reflect.Bool:
		if b, ok := from.(bool); ok {
			to.SetBool(b)
			return nil
		}
		return fieldError(path, "want true or false")
	}
	number, ok := from.(json.Number)
	if !ok {
		return fieldError(path, "want a number")
	}
	switch to.Kind() {
	case reflect.Float32, reflect.Float64:
		f, err := number.Float64()
		if err != nil || math.IsInf(f, 0) || to.OverflowFloat(f) {
			return fieldError(path, "the number is too large")
		}
		to.SetFloat(f)
		return nil
	case reflect.Uint32, reflect.Uint64:
		n, err := number.Int64()
		if err != nil || n < 0 || to.OverflowUint(uint64(n)) {
			return fieldError(path, "want a whole number from 0")
		}
		to.SetUint(uint64(n))
		return nil
	}
	n, err := number.Int64()
	if err != nil || to.OverflowInt(n) {
		return fieldError(path, "want a whole number")
	}
	to.SetInt(n)
	return nil
}

// fieldError names the field that an entry cannot have.
func fieldError(path, format string, args ...any) error {
	return refuse(http.StatusBadRequest, "%s: %s", path, fmt.Sprintf(format, args...))
}

// parseJSON decodes a body with its numbers as they are written.
func parseJSON(body []byte) (any, error) {
	d := json.NewDecoder(bytes.NewReader(body))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		return nil, weft.Errorf(weft.Invalid, "read body", "", "malformed JSON: %w", err)
	}
	if d.More() {
		return nil, weft.Errorf(weft.Invalid, "read body", "", "something follows the JSON object")
	}
	return v, nil
}
