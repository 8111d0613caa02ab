package http1

import (
	"errors"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

var hexByte = regexp.MustCompile(`\\x[0-9a-f]{2}`)

func TestPathCases(t *testing.T) {
	text, err := os.ReadFile("testdata/paths.txt")
	if err != nil {
		t.Fatal(err)
	}
	for i, line := range strings.Split(string(text), "\n") {
		if line == "" || line[0] == '#' {
			continue
		}
		in, want, _ := strings.Cut(line, " ")
		want = strings.TrimSpace(want)
		in = hexByte.ReplaceAllStringFunc(in, func(x string) string {
			c, _ := strconv.ParseUint(x[2:], 16, 8)
			return string([]byte{byte(c)})
		})
		out, err := NormalizePath(nil, []byte(in))
		got := string(out)
		if err != nil {
			got = "= " + refusal(err)
		}
		if got != want {
			t.Errorf("testdata/paths.txt:%d: %q gives %q, want %q", i+1, in, got, want)
		}
		checkPath(t, in)
	}
	if _, err := NormalizePath(nil, nil); err == nil {
		t.Error("an empty path was accepted")
	}
}

// checkPath holds NormalizePath against the plain version below, and checks that
// a normal form is left as it is.
func checkPath(t *testing.T, path string) {
	t.Helper()
	scratch := make([]byte, 0, len(path))
	out, err := NormalizePath(scratch, []byte(path))
	want, wantErr := plainNormalize(path)
	if (err == nil) != (wantErr == nil) || err == nil && string(out) != want {
		t.Fatalf("%q gives %q, %v; want %q, %v", path, out, err, want, wantErr)
	}
	if err != nil {
		return
	}
	if len(out) > len(path) {
		t.Fatalf("%q grew to %q", path, out)
	}
	again, err := NormalizePath(nil, out)
	if err != nil || len(out) > 0 && &again[0] != &out[0] {
		t.Fatalf("%q is not left as it is: %q, %v", out, again, err)
	}
}

// plainNormalize does the same step by step, as the RFCs tell it: unescape what is
// unreserved (RFC 3986 §6.2.2), split at slashes, walk the segments (§5.2.4).
func plainNormalize(path string) (string, error) {
	if path == "*" {
		return path, nil
	}
	var plain strings.Builder
	for i := 0; i < len(path); i++ {
		c := path[i]
		switch {
		case c <= ' ' || c >= 0x7f || c == '?' || c == '#':
			return "", errors.New("bad byte")
		case c == '\\':
			plain.WriteByte('/')
		case c == '%':
			if i+3 > len(path) {
				return "", errors.New("short escape")
			}
			value, err := strconv.ParseUint(path[i+1:i+3], 16, 8)
			if err != nil || path[i+1] == '+' {
				return "", errors.New("bad escape")
			}
			v := byte(value)
			switch {
			case v < ' ' || v == 0x7f:
				return "", errors.New("control byte")
			case strings.ContainsRune("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~", rune(v)):
				plain.WriteByte(v)
			default:
				fmt.Fprintf(&plain, "%%%02X", v)
			}
			i += 2
		default:
			plain.WriteByte(c)
		}
	}
	rest, rooted := strings.CutPrefix(plain.String(), "/")
	if !rooted || path[0] == '%' {
		return "", errors.New("no slash")
	}
	segments := strings.Split(rest, "/")
	var kept []string
	for i, s := range segments {
		last := i == len(segments)-1
		switch s {
		case ".":
		case "..":
			if len(kept) == 0 {
				return "", errors.New("above the root")
			}
			kept = kept[:len(kept)-1]
		default:
			kept = append(kept, s)
			continue
		}
		if last {
			kept = append(kept, "")
		}
	}
	return "/" + strings.Join(kept, "/"), nil
}

func TestNormalizePathAllocatesNothing(t *testing.T) {
	scratch := make([]byte, 0, 64)
	plain, escaped, crooked := []byte("/api/orders/1"), []byte("/.a/b%20c"), []byte("/a/b/%2e%2e/./c")
	if n := testing.AllocsPerRun(100, func() {
		for _, path := range [][]byte{plain, escaped, crooked} {
			if _, err := NormalizePath(scratch, path); err != nil {
				t.Error(err)
			}
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkNormalizePath(b *testing.B) {
	path := []byte("/api/orders/1/items")
	b.ReportAllocs()
	for b.Loop() {
		NormalizePath(nil, path)
	}
}
