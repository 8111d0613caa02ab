package consul

import (
	"encoding/json"
	"errors"
	"net/http"
	"strings"

	"github.com/weftmesh/weft"
)

// maxBody is the limit of a request's body. A registration is a few hundred bytes.
const maxBody = 1 << 20

// decode reads the body of q into v, whatever its Content-Type says. Keys are
// taken in any case, and with underscores: "check_id" is "CheckID".
func decode(w http.ResponseWriter, q *query, v any) error {
	r := q.request
	body, err := readBody(w, q, maxBody)
	if err != nil {
		return err
	}
	if len(body) == 0 {
		return weft.Errorf(weft.Invalid, "read body", r.URL.Path, "is empty, want a JSON object")
	}
	if err := unmarshal(body, v); err != nil {
		return weft.Errorf(weft.Invalid, "read body", r.URL.Path, "%w", err)
	}
	return nil
}

func tooLarge(r *http.Request, limit int64) error {
	return weft.Errorf(weft.TooLarge, "read body", r.URL.Path, "is over %d bytes", limit)
}

// unmarshal is json.Unmarshal with Consul's tolerance for keys, and with the
// position in every error. It changes body.
func unmarshal(body []byte, v any) error {
	var whole json.RawMessage
	err := json.Unmarshal(body, &whole) // the syntax, before keys are changed
	if err == nil {
		foldKeys(body)
		err = json.Unmarshal(body, v)
	}
	var syntax *json.SyntaxError
	var wrongType *json.UnmarshalTypeError
	switch {
	case errors.As(err, &syntax):
		return weft.Errorf(weft.Invalid, "malformed JSON", "", "at byte %d: %w", syntax.Offset, err)
	case errors.As(err, &wrongType) && wrongType.Field != "":
		return weft.Errorf(weft.Invalid, "field "+strings.ReplaceAll(wrongType.Field, "serviceFields.", ""), "", "at byte %d: want %s, not %s",
			wrongType.Offset, wrongType.Type, wrongType.Value)
	case errors.As(err, &wrongType):
		return weft.Errorf(weft.Invalid, "JSON", "", "at byte %d: want an object, not %s", wrongType.Offset, wrongType.Value)
	}
	return err
}

// freeKeys name the objects whose keys are the user's own.
var freeKeys = map[string]bool{"meta": true, "nodemeta": true, "header": true, "taggedaddresses": true, "config": true, "arguments": true}

// foldKeys takes the underscores out of the keys of valid JSON, in place: the key
// is written without them, and padded after its closing quote, so that byte
// offsets stay true. Keys of free objects are left alone.
func foldKeys(b []byte) {
	type object struct{ isMap, free bool }
	var stack []object
	var key string   // of the value that comes next
	inFree := false  // of the innermost object
	wantKey := false // the next string is a key
	for i := 0; i < len(b); i++ {
		switch b[i] {
		case '{', '[':
			stack = append(stack, object{isMap: b[i] == '{', free: inFree})
			inFree = inFree || freeKeys[key]
			wantKey, key = b[i] == '{', ""
		case '}', ']':
			inFree, wantKey = stack[len(stack)-1].free, false
			stack = stack[:len(stack)-1]
		case ',':
			wantKey, key = stack[len(stack)-1].isMap, ""
		case '"':
			end := stringEnd(b, i)
			if wantKey {
				key = strings.ToLower(strings.ReplaceAll(string(b[i+1:end]), "_", ""))
				if !inFree {
					dropUnderscores(b[i+1 : end+1])
				}
				wantKey = false
			}
			i = end
		}
	}
}

// stringEnd returns the index of the quote that closes the string opened at i.
func stringEnd(b []byte, i int) int {
	for i++; b[i] != '"'; i++ {
		if b[i] == '\\' {
			i++
		}
	}
	return i
}

// dropUnderscores rewrites `check_id"` to `checkid" `.
func dropUnderscores(b []byte) {
	n := 0
	for _, c := range b {
		if c != '_' {
			b[n] = c
			n++
		}
	}
	for ; n < len(b); n++ {
		b[n] = ' '
	}
}

// duration is a length of time as clients send it: "10s", or nanoseconds. It is
// parsed later, where the field has a name.
type duration string

func (d *duration) UnmarshalJSON(b []byte) error {
	*d = duration(b)
	return nil
}

// parse returns 0 for what was not sent or is empty.
func (d duration) parse(field string) (weft.Duration, error) {
	if d == "" || d == `""` || d == "null" {
		return 0, nil
	}
	var v weft.Duration
	if err := json.Unmarshal([]byte(d), &v); err != nil {
		return 0, weft.Errorf(weft.Invalid, "read "+field, strings.Trim(string(d), `"`), "invalid duration, want one such as \"10s\"")
	}
	return v, nil
}
