package http1

import (
	"os"
	"strconv"
	"strings"
	"testing"
)

// A wireCase is one block of a file in testdata:
//
//	title of the case
//	? HEAD
//	> HTTP/1.1 200 OK
//	> Content-Length: 5
//	>
//	= framing none
//	= length 5
//
// Lines with ">" are the message. Each ends in CRLF unless it ends in \c; Go's
// escapes (\n, \r, \t, \x00) stand for bytes, also in the facts named value:…. "?" is the request's method where
// that matters. Lines with "=" are facts that must hold; a single "= 400 bare_lf"
// is a refusal, "= incomplete" asks for more bytes. "#" begins a comment, an empty
// line ends the block.
type wireCase struct {
	title  string
	line   int
	method string
	wire   []byte
	want   []string
}

func readCases(t testing.TB, file string) []wireCase {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var cases []wireCase
	var c wireCase
	for i, line := range strings.Split(string(text)+"\n\n", "\n") {
		switch {
		case strings.HasPrefix(line, "#"):
		case line == "":
			if c.title != "" {
				cases = append(cases, c)
			}
			c = wireCase{}
		case strings.HasPrefix(line, ">"):
			c.wire = append(c.wire, wireLine(t, file, i+1, strings.TrimPrefix(line[1:], " "))...)
		case strings.HasPrefix(line, "? "):
			c.method = line[2:]
		case strings.HasPrefix(line, "= "):
			c.want = append(c.want, line[2:])
		case c.title == "":
			c.title, c.line = line, i+1
		default:
			t.Fatalf("%s:%d: what is %q?", file, i+1, line)
		}
	}
	for _, c := range cases {
		if len(c.want) == 0 {
			t.Fatalf("%s:%d: %q expects nothing", file, c.line, c.title)
		}
	}
	return cases
}

func wireLine(t testing.TB, file string, n int, text string) string {
	t.Helper()
	text, whole := strings.CutSuffix(text, `\c`)
	out, err := strconv.Unquote(`"` + strings.ReplaceAll(text, `"`, `\"`) + `"`)
	if err != nil {
		t.Fatalf("%s:%d: %v", file, n, err)
	}
	if !whole {
		out += "\r\n"
	}
	return out
}

// refusal is how a wireCase writes an error.
func refusal(err error) string {
	if err == ErrIncomplete {
		return "incomplete"
	}
	e := err.(*Error)
	return strconv.Itoa(e.Status) + " " + e.Reason
}

// check compares what was expected with the facts of a message, or its refusal.
func (c *wireCase) check(t *testing.T, facts map[string]string, err error) {
	t.Helper()
	if err != nil {
		if got := refusal(err); len(c.want) != 1 || c.want[0] != got {
			t.Errorf("refused: %s, want %q", got, c.want)
		}
		return
	}
	for _, want := range c.want {
		key, value, _ := strings.Cut(want, " ")
		got, known := facts[key]
		if !known {
			t.Errorf("accepted, want %q", want)
		} else if got != value {
			t.Errorf("%s is %q, want %q", key, got, value)
		}
	}
}

var framingNames = map[Framing]string{NoBody: "none", FixedLength: "fixed", Chunked: "chunked", UntilClose: "close"}

// headFacts are the facts that requests and responses share. "kept" and "dropped"
// list field names in lower case.
func headFacts(h *Head) map[string]string {
	var kept, dropped []string
	for i := range h.Fields {
		name := strings.ToLower(string(h.Name(i)))
		if h.Fields[i].Drop {
			dropped = append(dropped, name)
		} else {
			kept = append(kept, name)
		}
	}
	facts := map[string]string{
		"kept":    strings.Join(kept, " "),
		"dropped": strings.Join(dropped, " "),
		"fields":  strconv.Itoa(len(h.Fields)),
	}
	for i := range h.Fields {
		key := "value:" + strings.ToLower(string(h.Name(i)))
		if _, again := facts[key]; !again {
			quoted := strconv.QuoteToASCII(string(h.Value(i)))
			facts[key] = quoted[1 : len(quoted)-1]
		}
	}
	return facts
}
