package eureka

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/weftmesh/weft"
)

// maxBody is the limit of a request's body, also of what it is when it is unpacked.
// A registration is one or two kilobytes.
const maxBody = 1 << 20

// readBody reads a whole body.
func readBody(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	var src io.Reader = http.MaxBytesReader(w, r.Body, maxBody)
	switch encoding := r.Header.Get("Content-Encoding"); encoding {
	case "", "identity":
	case "gzip":
		z, err := gzip.NewReader(src)
		if err != nil {
			return nil, weft.Errorf(weft.Invalid, "read body", r.URL.Path, "%w", err)
		}
		src = io.LimitReader(z, maxBody+1)
	default:
		return nil, weft.Errorf(weft.Invalid, "read body", r.URL.Path, "Content-Encoding %q is not known; use gzip, or none", encoding)
	}
	body, err := io.ReadAll(src)
	if tooBig := (*http.MaxBytesError)(nil); errors.As(err, &tooBig) || len(body) > maxBody {
		return nil, tooLarge(r)
	}
	if err != nil {
		return nil, weft.Errorf(weft.Invalid, "read body", r.URL.Path, "%w", err)
	}
	return body, nil
}

func tooLarge(r *http.Request) error {
	return weft.Errorf(weft.TooLarge, "read body", r.URL.Path, "is over %d bytes", maxBody)
}

// decodeInstance reads a registration. A Content-Type that names neither JSON nor
// XML leaves it to the first character.
func decodeInstance(contentType string, body []byte) (*record, error) {
	body = bytes.TrimSpace(body)
	if len(body) == 0 {
		return nil, errors.New("is empty, want an instance in JSON or XML")
	}
	if isJSON(contentType, body[0]) {
		return decodeJSON(body)
	}
	return decodeXML(body)
}

func isJSON(contentType string, first byte) bool {
	switch {
	case strings.Contains(contentType, "json"):
		return true
	case strings.Contains(contentType, "xml"):
		return false
	}
	return first != '<'
}

func decodeJSON(body []byte) (*record, error) {
	var whole struct {
		Instance *record `json:"instance"`
	}
	if err := unmarshal(body, &whole); err != nil {
		return nil, err
	}
	if whole.Instance == nil {
		return nil, errors.New(`malformed JSON: want {"instance":{…}}`)
	}
	whole.Instance.normalize()
	return whole.Instance, nil
}

// unmarshal is json.Unmarshal with the position in its errors.
func unmarshal(body []byte, v any) error {
	err := json.Unmarshal(body, v)
	var syntax *json.SyntaxError
	var wrongType *json.UnmarshalTypeError
	switch {
	case errors.As(err, &syntax):
		return fmt.Errorf("malformed JSON: at byte %d: %w", syntax.Offset, err)
	case errors.As(err, &wrongType):
		return fmt.Errorf("malformed JSON: at byte %d: field %s: want %s, not %s", wrongType.Offset, wrongType.Field, wrongType.Type, wrongType.Value)
	case err != nil:
		return fmt.Errorf("malformed JSON: %w", err)
	}
	return nil
}

func decodeXML(body []byte) (*record, error) {
	var whole struct {
		XMLName xml.Name
		record
	}
	d := xml.NewDecoder(bytes.NewReader(body))
	if err := d.Decode(&whole); err != nil {
		return nil, fmt.Errorf("malformed XML: at byte %d: %w", d.InputOffset(), err)
	}
	if whole.XMLName.Local != "instance" {
		return nil, fmt.Errorf("malformed XML: want <instance>, not <%s>", whole.XMLName.Local)
	}
	// What follows the element must be nothing.
	for {
		t, err := d.Token()
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("malformed XML: at byte %d: %w", d.InputOffset(), err)
		}
		if _, more := t.(xml.StartElement); more {
			return nil, fmt.Errorf("malformed XML: at byte %d: more than one element", d.InputOffset())
		}
	}
	r := whole.record
	r.normalize()
	return &r, nil
}
