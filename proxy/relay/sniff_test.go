package relay

import (
	"regexp"
	"strings"
	"testing"
)

const hello = "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"

var sniffed = []struct {
	name, bytes string
	want        Kind
	more        bool
}{
	{"nothing", "", Unknown, true},

	{"request", "GET / HTTP/1.1\r\nHost: a\r\n", HTTP1, false},
	{"absolute form", "GET http://a/ HTTP/1.0\r\n", HTTP1, false},
	{"CONNECT", "CONNECT a:443 HTTP/1.1\r\n", HTTP1, false},
	{"asterisk", "OPTIONS * HTTP/1.1\r\n", HTTP1, false},
	{"own method", "x-Purge! /a HTTP/1.1\r\n", HTTP1, false},
	{"bare LF: the engine refuses it in HTTP's words", "GET / HTTP/1.1\n", HTTP1, false},
	{"unknown version, as well", "GET / HTTP/9.9\r\n", HTTP1, false},
	{"space in the target, as well", "GET /a b HTTP/1.1\r\n", HTTP1, false},
	{"UTF-8 in the target, as well", "GET /ü HTTP/1.1\r\n", HTTP1, false},
	{"4 KiB without an end, as well", "GET /" + strings.Repeat("a", 4<<10), HTTP1, false},
	{"one letter", "G", Unknown, true},
	{"method", "GET", Unknown, true},
	{"method, space", "GET ", Unknown, true},
	{"version", "GET / HTTP/1.1", Unknown, true},
	{"carriage return", "GET / HTTP/1.1\r", Unknown, true},
	{"PRI of HTTP/1", "PRI /a HTTP/1.1\r\n", HTTP1, false},

	{"preface", preface, HTTP2, false},
	{"preface and SETTINGS", preface + "\x00\x00\x00\x04", HTTP2, false},
	{"P", "P", Unknown, true},
	{"preface but for a byte", preface[:23], Unknown, true},
	{"another preface", preface[:20] + "XX\r\n", HTTP1, false}, // 505

	{"ClientHello", hello, TLS, false},
	{"record header", hello[:5], Unknown, true},
	{"first byte", hello[:1], Unknown, true},
	{"another handshake message", "\x16\x03\x01\x02\x00\x02", Raw, false},
	{"another version", "\x16\x02", Raw, false},
	{"another minor version", "\x16\x03\x05", Raw, false},
	{"an alert", "\x15\x03\x01\x00\x02\x01\x00", Raw, false},

	{"Redis", "*1\r\n$4\r\nPING\r\n", Raw, false},
	{"Redis, inline", "GET key\r\n", Raw, false},
	{"Redis, inline, half", "GET key", Unknown, true},
	{"NATS", "CONNECT {\"verbose\":false}\r\n", Raw, false},
	{"memcached", "gets key\r\n", Raw, false},
	{"SMTP", "EHLO a\r\n", Raw, false},
	{"STOMP", "CONNECT\naccept-version:1.2\n", Raw, false},
	{"RTSP", "OPTIONS rtsp://a RTSP/1.0\r\n", Raw, false},
	{"HTTP/0.9", "GET /\r\n", Raw, false},
	{"no target", "GET  HTTP/1.1\r\n", Raw, false},
	{"no target at all", "GET HTTP/1.1\r\n", Raw, false},
	{"control byte in the target", "GET /\x00", Raw, false},
	{"CR in the target", "GET /\rx", Raw, false},
	{"binary", "\x00\x00\x00\x08", Raw, false},
	{"line feed", "\n", Raw, false},
	{"high bit in the method", "G\xffT", Raw, false},
	{"method of 25 letters", strings.Repeat("A", 25), Raw, false},
	{"method of 24 letters", strings.Repeat("A", 24), Unknown, true},
}

func TestSniff(t *testing.T) {
	for _, c := range sniffed {
		kind, more := Sniff([]byte(c.bytes))
		if kind != c.want || more != c.more {
			t.Errorf("%s: %v, more %v; want %v, more %v", c.name, kind, more, c.want, c.more)
		}
	}
}

// Slow and obvious: what a whole beginning must look like.
var (
	requestLine = regexp.MustCompile("^[!#$%&'*+.^_`|~0-9A-Za-z-]{1,24} [^\x00-\x20\x7f][^\x00-\x1f\x7f]* HTTP/[0-9]\\.[0-9]\r?\n")
	clientHello = regexp.MustCompile("^(?s:\x16\x03[\x00-\x04]..\x01)")
)

// FuzzSniff: the kind does not depend on how the bytes were cut, and is the one
// that a regular expression finds.
func FuzzSniff(f *testing.F) {
	for _, c := range sniffed {
		f.Add([]byte(c.bytes))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		want, wantMore := Sniff(b)
		if wantMore && want != Unknown || !wantMore && want == Unknown {
			t.Fatalf("%v, more %v", want, wantMore)
		}
		decided := false
		for i := range min(len(b), 200) {
			kind, more := Sniff(b[:i])
			if more && !decided {
				continue
			}
			decided = true
			if kind != want || more != wantMore {
				t.Fatalf("%q cut at %d: %v, %v; whole: %v, %v", b, i, kind, more, want, wantMore)
			}
		}
		if len(b) >= mostLine || wantMore {
			return
		}
		latin := make([]rune, len(b)) // the expressions are about bytes
		for i, c := range b {
			latin[i] = rune(c)
		}
		text := string(latin)
		slow := Raw
		switch {
		case clientHello.MatchString(text):
			slow = TLS
		case strings.HasPrefix(text, preface):
			slow = HTTP2
		case requestLine.MatchString(text):
			slow = HTTP1
		}
		if slow != want {
			t.Errorf("%q: %v; the slow way: %v", b, want, slow)
		}
	})
}

func TestSniffAllocates(t *testing.T) {
	if n := testing.AllocsPerRun(100, func() {
		for _, c := range sniffed[:8] {
			Sniff([]byte(c.bytes))
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
