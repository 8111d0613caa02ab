package http1

import (
	"errors"
	"fmt"
	"iter"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

var hexByte = regexp.MustCompile(`\\x[0-9a-f]{2}`)

var pathModes = []PathMode{PathNone, PathBase, PathMergeSlashes, PathDecodeAndMergeSlashes}

func TestPathCases(t *testing.T) {
	for line, columns := range pathTable(t, "testdata/paths.txt") {
		in, want := columns[0], strings.Join(columns[1:], " ")
		if got := normal(PathBase, in); got != want {
			t.Errorf("testdata/paths.txt:%d: %q gives %q, want %q", line, in, got, want)
		}
		checkPath(t, in)
	}
	if _, err := NormalizePath(nil, nil); err == nil {
		t.Error("an empty path was accepted")
	}
}

func TestPathModeCases(t *testing.T) {
	for line, columns := range pathTable(t, "testdata/path_modes.txt") {
		if len(columns) != 1+len(pathModes) {
			t.Fatalf("testdata/path_modes.txt:%d: %d columns", line, len(columns))
		}
		in := columns[0]
		for i, m := range pathModes {
			want := columns[1+i]
			if want == "." {
				want = columns[i]
				columns[1+i] = want
			}
			if got := strings.TrimPrefix(normal(m, in), "= 400 "); got != want {
				t.Errorf("testdata/path_modes.txt:%d: mode %d makes %q of %q, want %q", line, m, got, in, want)
			}
		}
		checkPath(t, in)
	}
}

// pathTable yields the number of each line of a table and its columns, the first
// with bytes for \xNN.
func pathTable(t *testing.T, file string) iter.Seq2[int, []string] {
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return func(yield func(int, []string) bool) {
		for i, line := range strings.Split(string(text), "\n") {
			if line == "" || line[0] == '#' {
				continue
			}
			columns := strings.Fields(line)
			columns[0] = hexByte.ReplaceAllStringFunc(columns[0], func(x string) string {
				c, _ := strconv.ParseUint(x[2:], 16, 8)
				return string([]byte{byte(c)})
			})
			if !yield(i+1, columns) {
				return
			}
		}
	}
}

// normal is a normal form or, behind "= ", a refusal.
func normal(m PathMode, path string) string {
	out, err := m.Normalize(nil, []byte(path))
	if err != nil {
		return "= " + refusal(err)
	}
	return string(out)
}

// checkPath holds Normalize in each mode against the plain version below, and
// checks that a normal form is left as it is.
func checkPath(t *testing.T, path string) {
	t.Helper()
	for _, m := range pathModes {
		scratch := make([]byte, 0, len(path))
		in := []byte(path)
		out, err := m.Normalize(scratch, in)
		want, wantErr := plainNormalize(m, path)
		if (err == nil) != (wantErr == nil) || err == nil && string(out) != want {
			t.Fatalf("mode %d: %q gives %q, %v; want %q, %v", m, path, out, err, want, wantErr)
		}
		if string(in) != path {
			t.Fatalf("mode %d: %q was changed to %q", m, path, in)
		}
		if err != nil {
			continue
		}
		if len(out) > len(path) {
			t.Fatalf("mode %d: %q grew to %q", m, path, out)
		}
		again, err := m.Normalize(nil, out)
		if err != nil || len(out) > 0 && &again[0] != &out[0] {
			t.Fatalf("mode %d: %q is not left as it is: %q, %v", m, out, again, err)
		}
	}
}

var (
	escapedSlash     = regexp.MustCompile(`(?i)%2f`)
	escapedBackslash = regexp.MustCompile(`(?i)%5c`)
	escapedControl   = regexp.MustCompile(`(?i)%([01][0-9a-f]|7f)`)
	slashes          = regexp.MustCompile(`/+`)
)

// plainNormalize does the steps of each mode one after the other.
func plainNormalize(m PathMode, path string) (string, error) {
	switch m {
	case PathNone:
		if path != "*" && !strings.HasPrefix(path, "/") || escapedControl.MatchString(path) ||
			strings.ContainsFunc(path, func(r rune) bool { return r <= ' ' || r >= 0x7f || r == '?' || r == '#' }) {
			return "", errors.New("refused")
		}
		return path, nil
	case PathMergeSlashes:
		path, err := plainBase(path)
		return slashes.ReplaceAllString(path, "/"), err
	case PathDecodeAndMergeSlashes:
		if escapedSlash.MatchString(path) || escapedBackslash.MatchString(path) {
			if path[0] == '%' {
				return "", errors.New("no slash")
			}
			path = escapedSlash.ReplaceAllString(escapedBackslash.ReplaceAllString(path, `\`), "/")
		}
		path, err := plainBase(path)
		return slashes.ReplaceAllString(path, "/"), err
	}
	return plainBase(path)
}

// plainBase is PathBase step by step, as the RFCs tell it: unescape what is
// unreserved (RFC 3986 §6.2.2), split at slashes, walk the segments (§5.2.4).
func plainBase(path string) (string, error) {
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
			for _, m := range pathModes {
				if _, err := m.Normalize(scratch, path); err != nil {
					t.Error(err)
				}
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
