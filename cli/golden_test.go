package cli

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/weftmesh/weft/client"
)

var update = flag.Bool("update", false, "rewrite stdout, stderr and exit of testdata/*.txt; only commit what you understand")

func TestMain(m *testing.M) {
	flag.Parse()
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("os/signal.loop"))
}

// TestGolden runs every testdata/*.txt; testdata/README.md says what is in them.
func TestGolden(t *testing.T) {
	paths, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no cases: %v", err)
	}
	for _, path := range paths {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txt"), func(t *testing.T) {
			path, err := filepath.Abs(path)
			if err != nil {
				t.Fatal(err)
			}
			c := readCase(t, path)
			stdout, stderr, code := c.run(t)
			if *update {
				c.write(t, path, stdout, stderr, code)
				return
			}
			got := stdout + "-- stderr --\n" + stderr + "-- exit --\n" + strconv.Itoa(code)
			want := c.text("stdout") + "-- stderr --\n" + c.text("stderr") + "-- exit --\n" + strings.TrimSpace(c.text("exit"))
			if d := cmp.Diff(want, got); d != "" {
				t.Error(d)
			}
		})
	}
}

// section is "-- name --" and the lines below it.
type section struct{ name, body string }

type goldenCase struct {
	comment  string
	sections []section
}

func readCase(t *testing.T, path string) *goldenCase {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	c := &goldenCase{}
	into := &c.comment
	for line := range strings.Lines(string(data)) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "-- "); ok && strings.HasSuffix(name, " --") {
			c.sections = append(c.sections, section{name: strings.TrimSuffix(name, " --")})
			into = &c.sections[len(c.sections)-1].body
			continue
		}
		*into += line
	}
	return c
}

func (c *goldenCase) text(name string) string {
	for _, s := range c.sections {
		if s.name == name {
			return s.body
		}
	}
	return ""
}

func (c *goldenCase) has(name string) bool {
	for _, s := range c.sections {
		if s.name == name {
			return true
		}
	}
	return false
}

// run executes the case's command line in an empty directory against a server
// that answers from the case. The server's address is written as ADDR.
func (c *goldenCase) run(t *testing.T) (stdout, stderr string, code int) {
	t.Helper()
	t.Chdir(t.TempDir())
	for _, s := range c.sections {
		if name, ok := strings.CutPrefix(s.name, "file "); ok {
			if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(name, []byte(s.body), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	addr := c.serve(t)
	t.Setenv(client.AddrEnv, addr)
	t.Setenv(tokenEnv, "")
	var args []string
	for line := range strings.Lines(c.text("args")) {
		args = append(args, strings.TrimSuffix(line, "\n"))
	}
	var out, err bytes.Buffer
	code = Main(args, strings.NewReader(c.text("stdin")), &out, &err)
	hide := func(b *bytes.Buffer) string { return strings.ReplaceAll(b.String(), addr, "ADDR") }
	return hide(&out), hide(&err), code
}

// serve starts a server that gives each request the answer of its section, and
// returns its address. A request without a section fails the test.
func (c *goldenCase) serve(t *testing.T) string {
	t.Helper()
	if c.has("no server") {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		return l.Addr().String()
	}
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		line := r.Method + " " + r.URL.RequestURI()
		for _, s := range c.sections {
			if s.name == "sent "+line {
				c.compareSent(t, r, s.body)
			}
		}
		for _, s := range c.sections {
			status, rest, _ := strings.Cut(s.name, " ")
			if code, err := strconv.Atoi(status); err == nil && rest == line {
				w.WriteHeader(code)
				io.WriteString(w, s.body)
				return
			}
		}
		t.Errorf("the case has no answer to %s", line)
		w.WriteHeader(http.StatusTeapot)
	}))
	s.Config.SetKeepAlivesEnabled(false) // each command has its own client, which nobody closes
	s.Start()
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

func (c *goldenCase) compareSent(t *testing.T, r *http.Request, want string) {
	data, err := io.ReadAll(r.Body)
	if err != nil {
		t.Error(err)
	}
	decode := func(b []byte) (v any) {
		if err := json.Unmarshal(b, &v); err != nil {
			t.Errorf("body %q: %v", b, err)
		}
		return v
	}
	if d := cmp.Diff(decode([]byte(want)), decode(data)); d != "" {
		t.Errorf("body of %s %s:\n%s", r.Method, r.URL, d)
	}
}

func (c *goldenCase) write(t *testing.T, path, stdout, stderr string, code int) {
	t.Helper()
	var b strings.Builder
	b.WriteString(c.comment)
	for _, s := range c.sections {
		if s.name != "stdout" && s.name != "stderr" && s.name != "exit" {
			fmt.Fprintf(&b, "-- %s --\n%s", s.name, s.body)
		}
	}
	fmt.Fprintf(&b, "-- stdout --\n%s-- stderr --\n%s-- exit --\n%d\n", stdout, stderr, code)
	if err := os.WriteFile(path, []byte(b.String()), 0o600); err != nil {
		t.Fatal(err)
	}
}
