package accesslog

import (
	"log/slog"
	"math"
	"strconv"
	"sync"
	"time"
	"unicode/utf8"
)

// Line is being built by one goroutine, between Begin and End. It must not be
// used after End.
type Line struct {
	w   *Writer
	buf []byte
}

// keptLine is how large a line's buffer may be to be used again.
const keptLine = 4 << 10

var lines = sync.Pool{New: func() any { return &Line{buf: make([]byte, 0, 1024)} }}

// Begin starts a line with the fields that every record has.
func (w *Writer) Begin(t time.Time, level slog.Level, msg string) *Line {
	l := lines.Get().(*Line)
	l.w = w
	l.buf = append(l.buf[:0], '{')
	if !t.IsZero() {
		l.buf = append(l.buf, `"time":"`...)
		l.buf = t.AppendFormat(l.buf, time.RFC3339Nano)
		l.buf = append(l.buf, `",`...)
	}
	l.buf = append(l.buf, `"level":"`...)
	l.buf = append(l.buf, level.String()...)
	l.buf = append(l.buf, `","msg":`...)
	l.buf = appendString(l.buf, msg)
	return l
}

// End gives the line to the writer.
func (l *Line) End() {
	l.buf = append(l.buf, '}', '\n')
	l.w.add(l.buf)
	l.w = nil
	if cap(l.buf) <= keptLine {
		lines.Put(l)
	}
}

// Str adds a text. Bytes that are no UTF-8 become U+FFFD.
func (l *Line) Str(key, value string) {
	l.key(key)
	l.buf = appendString(l.buf, value)
}

// Int adds an integer.
func (l *Line) Int(key string, value int64) {
	l.key(key)
	l.buf = strconv.AppendInt(l.buf, value, 10)
}

// Hex adds bytes as a text of lower-case hex digits: an identifier of a trace.
func (l *Line) Hex(key string, value []byte) {
	l.key(key)
	l.buf = append(l.buf, '"')
	for _, c := range value {
		l.buf = append(l.buf, hex[c>>4], hex[c&15])
	}
	l.buf = append(l.buf, '"')
}

// Float adds a number, in the form of ECMAScript, as encoding/json does. What
// JSON has no number for is a text that says so, as slog does.
func (l *Line) Float(key string, value float64) {
	l.key(key)
	abs := math.Abs(value)
	switch {
	case math.IsNaN(value) || math.IsInf(value, 0):
		l.buf = append(l.buf, `"!ERROR:json: unsupported value: `...)
		l.buf = strconv.AppendFloat(l.buf, value, 'g', -1, 64)
		l.buf = append(l.buf, '"')
	case abs != 0 && (abs < 1e-6 || abs >= 1e21):
		l.buf = strconv.AppendFloat(l.buf, value, 'e', -1, 64)
		if n := len(l.buf); l.buf[n-4] == 'e' && l.buf[n-3] == '-' && l.buf[n-2] == '0' {
			l.buf[n-2] = l.buf[n-1] // e-09 is e-9
			l.buf = l.buf[:n-1]
		}
	default:
		l.buf = strconv.AppendFloat(l.buf, value, 'f', -1, 64)
	}
}

func (l *Line) key(key string) {
	l.buf = append(l.buf, ',')
	l.buf = appendString(l.buf, key)
	l.buf = append(l.buf, ':')
}

const hex = "0123456789abcdef"

// plain are the bytes that a JSON text has as they are, wherever they stand:
// ASCII without control characters, quote and backslash.
var plain = func() (set [256]bool) {
	for c := ' '; c < utf8.RuneSelf; c++ {
		set[c] = c != '"' && c != '\\'
	}
	return set
}()

func appendString(buf []byte, s string) []byte {
	buf = append(buf, '"')
	i := 0
	for i < len(s) && plain[s[i]] {
		i++
	}
	buf = append(buf, s[:i]...)
	if i < len(s) {
		buf = appendEscaped(buf, s[i:])
	}
	return append(buf, '"')
}

func appendEscaped(buf []byte, s string) []byte {
	for i := 0; i < len(s); {
		c := s[i]
		if plain[c] {
			buf = append(buf, c)
			i++
			continue
		}
		r, size := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && size == 1:
			buf = append(buf, `\ufffd`...)
		case r == '\u2028' || r == '\u2029': // they end a line in JavaScript
			buf = append(buf, `\u202`...)
			buf = append(buf, hex[r&15])
		case r >= utf8.RuneSelf:
			buf = append(buf, s[i:i+size]...)
		case r == '"' || r == '\\':
			buf = append(buf, '\\', c)
		case r == '\n':
			buf = append(buf, '\\', 'n')
		case r == '\r':
			buf = append(buf, '\\', 'r')
		case r == '\t':
			buf = append(buf, '\\', 't')
		default:
			buf = append(buf, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		}
		i += size
	}
	return buf
}
