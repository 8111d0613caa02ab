package cli

import (
	"bytes"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/client"
	"github.com/weftmesh/weft/node"
)

// runMain runs a command line and returns what it printed.
func runMain(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	var out, err bytes.Buffer
	code = Main(args, strings.NewReader(""), &out, &err)
	return out.String(), err.String(), code
}

func TestVersion(t *testing.T) {
	out, _, code := runMain(t, "version")
	if code != 0 || !strings.HasPrefix(out, "weft "+weft.Version+"\n") {
		t.Errorf("version: code %d, %q", code, out)
	}
	out, _, code = runMain(t, "--version")
	if code != 0 || out != "weft "+weft.Version+"\n" {
		t.Errorf("--version: code %d, %q", code, out)
	}
}

func TestHelpIsNoFailure(t *testing.T) {
	for _, args := range [][]string{nil, {"--help"}, {"help", "explain"}, {"completion", "bash"}} {
		out, stderr, code := runMain(t, args...)
		if code != 0 || out == "" || stderr != "" {
			t.Errorf("%v: code %d, %d bytes on stdout, stderr %q", args, code, len(out), stderr)
		}
	}
}

// What the help claims is executed: every command explains itself, and every
// example is a command line that weft takes.
func TestEveryCommandHasHelpAndExamplesThatParse(t *testing.T) {
	a := &app{out: io.Discard, err: io.Discard}
	for _, cmd := range a.root().Commands() {
		if cmd.Hidden {
			continue
		}
		if cmd.Short == "" || cmd.Long == "" || cmd.Example == "" {
			t.Errorf("%s: short, long or example is missing", cmd.CommandPath())
		}
		for line := range strings.Lines(cmd.Example) {
			// Flags keep their values: each example gets a fresh command.
			root := a.root()
			words := shellWords(line)
			found, rest, err := root.Find(words[1:])
			if words[0] != "weft" || err != nil || found == root {
				t.Errorf("%s: example %q is no weft command", cmd.Name(), line)
				continue
			}
			if err := found.ParseFlags(rest); err != nil {
				t.Errorf("%s: example %q: %v", cmd.Name(), line, err)
			}
			if err := found.ValidateArgs(found.Flags().Args()); err != nil {
				t.Errorf("%s: example %q: %v", cmd.Name(), line, err)
			}
		}
	}
}

// shellWords splits a line up to its first pipe, as a shell does with single
// quotes.
func shellWords(line string) []string {
	var words []string
	var word strings.Builder
	quoted := false
	for _, r := range strings.TrimSpace(line) + " " {
		switch {
		case r == '\'':
			quoted = !quoted
		case r == '|' && !quoted:
			return words
		case r == ' ' && !quoted:
			if word.Len() > 0 {
				words = append(words, word.String())
				word.Reset()
			}
		default:
			word.WriteRune(r)
		}
	}
	return words
}

func TestCompletionDoesNotWaitForASlowServer(t *testing.T) {
	release := make(chan struct{})
	s := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-release }))
	defer s.Close()
	defer close(release)
	t.Setenv(client.AddrEnv, s.URL)
	begin := time.Now()
	out, _, code := runMain(t, "__complete", "instances", "")
	// Far above the 300 ms that are meant, far below the client's own 30 s.
	if took := time.Since(begin); code != 0 || out != ":4\n" || took > 10*time.Second {
		t.Errorf("code %d, %q after %v", code, out, took)
	}
}

func TestATakenPortIsNamed(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, stderr, code := runMain(t, "server", "--data", t.TempDir(), "--api", l.Addr().String())
	if code != exitFailed || !strings.Contains(stderr, l.Addr().String()) || !strings.Contains(stderr, "--api") || strings.Count(stderr, "\n") != 1 {
		t.Errorf("code %d, %q", code, stderr)
	}
}

func TestTheAddressFlagBeatsTheEnvironment(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "[]") }))
	defer s.Close()
	t.Setenv(client.AddrEnv, "127.0.0.1:1")
	out, stderr, code := runMain(t, "services", "-o", "json", "--addr", s.Listener.Addr().String())
	if code != 0 || out != "[]\n" {
		t.Errorf("code %d, %q, %q", code, out, stderr)
	}
}

// The order in which a join token is looked for.
func TestJoinToken(t *testing.T) {
	t.Chdir(t.TempDir())
	write := func(path, text string) {
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want := func(file, token string) {
		t.Helper()
		if got, err := joinToken(file); got != token || err != nil {
			t.Errorf("got %q, %v; want %q", got, err, token)
		}
	}
	t.Setenv(tokenEnv, "")
	write(node.TokenFile(node.DefaultServer.DataDir), "of-the-server-here\n")
	want("", "of-the-server-here")
	t.Setenv(tokenEnv, " of-the-environment ")
	want("", "of-the-environment")
	write("given", "of-the-flag")
	want("given", "of-the-flag")
}

func TestFilesOverTheLimitAreNotSent(t *testing.T) {
	path := filepath.Join(t.TempDir(), "big.yaml")
	if err := os.WriteFile(path, bytes.Repeat([]byte("#"), maxFiles+1), 0o600); err != nil {
		t.Fatal(err)
	}
	_, stderr, code := runMain(t, "apply", "-f", path)
	if code != exitFailed || !strings.Contains(stderr, "more than 4 MiB") {
		t.Errorf("code %d, %q", code, stderr)
	}
}

func TestNumbersForPeople(t *testing.T) {
	for ms, want := range map[float64]string{
		0: "0µs", 0.0004: "0.40µs", 0.012: "12.0µs", 0.9994: "999µs", 0.9999: "1.00ms", 1: "1.00ms", 9.996: "10.0ms",
		99.96: "100ms", 999.4: "999ms", 999.9: "1.00s", 1234.5: "1.23s", 600000: "600s", -1.5: "-1.50ms",
	} {
		if got := millis(ms); got != want {
			t.Errorf("millis(%v) = %q, want %q", ms, got, want)
		}
	}
	for share, want := range map[float64]string{0: "0 %", 0.95: "95 %", 1: "100 %", 1.0 / 3: "33.33 %", 0.0005: "0.05 %"} {
		if got := percent(share); got != want {
			t.Errorf("percent(%v) = %q, want %q", share, got, want)
		}
	}
}

func TestServiceNames(t *testing.T) {
	for arg, want := range map[string]weft.ServiceName{
		"order-service":                         {Namespace: "shop", Name: "order-service"},
		"order-service.other":                   {Namespace: "other", Name: "order-service"},
		"order-service.other.svc.cluster.local": {Namespace: "other", Name: "order-service"},
	} {
		if got, err := serviceName(arg, "shop"); got != want || err != nil {
			t.Errorf("%s: %v, %v", arg, got, err)
		}
	}
	for _, arg := range []string{"", "a b/c:1", "*"} {
		if _, err := serviceName(arg, ""); err == nil {
			t.Errorf("%q was taken", arg)
		}
	}
}

func TestWrongUseIsNamed(t *testing.T) {
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"guard", "release"}, "want release and a SERVICE"},
		{[]string{"server", "--acl", "maybe"}, `--acl "maybe": use allow or deny`},
		{[]string{"server", "--dns-recursor", "banana"}, `--dns-recursor "banana": want host:port`},
		{[]string{"server", "--dns-recursor", "9.9.9.9:99999"}, `"9.9.9.9:99999": want host:port`},
	} {
		_, errs, code := runMain(t, c.args...)
		if code != 2 || !strings.Contains(errs, c.want) {
			t.Errorf("weft %q: code %d, %q; want 2 and %q", c.args, code, errs, c.want)
		}
	}
}
