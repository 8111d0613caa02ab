package eureka

import (
	"fmt"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// appendJSONText appends s as a JSON string. Bytes that are no UTF-8 become U+FFFD.
func appendJSONText(b []byte, s string) []byte {
	const hex = "0123456789abcdef"
	b = append(b, '"')
	for i := 0; i < len(s); {
		c := s[i]
		switch {
		case c == '"' || c == '\\':
			b = append(b, '\\', c)
		case c < ' ':
			b = append(b, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		case c < utf8.RuneSelf:
			b = append(b, c)
		default:
			r, n := utf8.DecodeRuneInString(s[i:])
			b = utf8.AppendRune(b, r)
			i += n
			continue
		}
		i++
	}
	return append(b, '"')
}

// appendXMLText appends s as character data. Characters that XML has not become
// U+FFFD.
func appendXMLText(b []byte, s string) []byte {
	for _, r := range s {
		switch {
		case r == '&':
			b = append(b, "&amp;"...)
		case r == '<':
			b = append(b, "&lt;"...)
		case r == '>':
			b = append(b, "&gt;"...)
		case r == '"':
			b = append(b, "&#34;"...)
		case r == '\r': // else a parser makes "\n" of it
			b = append(b, "&#13;"...)
		case !inXML(r):
			b = utf8.AppendRune(b, utf8.RuneError)
		default:
			b = utf8.AppendRune(b, r)
		}
	}
	return b
}

// inXML reports whether XML 1.0 §2.2 has the character.
func inXML(r rune) bool {
	return r == '\t' || r == '\n' || r == '\r' || r >= ' ' && r != 0xfffe && r != 0xffff
}

// toXMLName returns a name of a metadatum as a name of an element. What cannot stand
// there, and what would be read as such an escape, is _xHHHH_ (ISO/IEC 9075-14).
func toXMLName(s string) string {
	var b strings.Builder
	plain := true
	for i, r := range s {
		bad := !inXMLName(r) || i == 0 && !beginsXMLName(r) || r == '_' && isEscape(s[i:]) || s == noName && i == 0
		if bad {
			fmt.Fprintf(&b, "_x%04X_", r)
		} else {
			b.WriteRune(r)
		}
		plain = plain && !bad
	}
	if s == "" {
		return noName
	}
	if plain {
		return s
	}
	return b.String()
}

// fromXMLName undoes toXMLName.
func fromXMLName(s string) string {
	if s == noName {
		return ""
	}
	if !strings.Contains(s, "_x") {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '_' && isEscape(s[i:]) {
			end := i + 2 + strings.IndexByte(s[i+2:], '_')
			r, _ := strconv.ParseUint(s[i+2:end], 16, 32) // isEscape saw the digits
			b.WriteRune(rune(r))
			i = end
			continue
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// noName is the element of the metadatum whose name is empty.
const noName = "_x_"

// isEscape reports whether s begins with _xHHHH_.
func isEscape(s string) bool {
	rest, ok := strings.CutPrefix(s, "_x")
	if !ok {
		return false
	}
	digits, _, ok := strings.Cut(rest, "_")
	if !ok || len(digits) < 4 || len(digits) > 6 {
		return false
	}
	for _, c := range digits {
		if !strings.ContainsRune("0123456789ABCDEF", c) {
			return false
		}
	}
	return true
}

// beginsXMLName and inXMLName allow a little less than XML 1.0 §2.3: ":" would be
// the end of a prefix, and letters beyond ASCII are escaped, as parsers disagree on
// them.
func beginsXMLName(r rune) bool {
	return r < unicode.MaxASCII && (r == '_' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z')
}

func inXMLName(r rune) bool {
	return beginsXMLName(r) || r >= '0' && r <= '9' || r == '-' || r == '.'
}
