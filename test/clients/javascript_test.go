package clients

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"
	"time"
)

// unreachable is npm when it cannot fetch packages.
var unreachable = regexp.MustCompile(`ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ECONNRESET|ETIMEDOUT|ENETUNREACH|network`)

// install puts the packages, as the lock file has them, into a directory of the test.
func install(t *testing.T, script string) (dir string) {
	t.Helper()
	npm := program(t, "npm")
	dir = t.TempDir()
	for _, name := range []string{"package.json", "package-lock.json", "steps.js", script} {
		b, err := os.ReadFile(name)
		must(t, err)
		must(t, os.WriteFile(filepath.Join(dir, name), b, 0o644))
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	ci := exec.CommandContext(ctx, npm, "ci", "--no-audit", "--no-fund", "--ignore-scripts", "--prefer-offline", "--fetch-retries=1")
	ci.Dir = dir
	out, err := ci.CombinedOutput()
	if err != nil && (ctx.Err() != nil || unreachable.Match(out)) {
		t.Skipf("npm cannot fetch the packages: %v\n%s", err, out)
	}
	if err != nil {
		t.Fatalf("npm ci: %v\n%s", err, out)
	}
	return dir
}

// steps runs a program that tells of each of its steps by a line of JSON.
func steps(t *testing.T, dir, name string, args ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Errorf("%s: %v\n%s", name, err, stderr.String())
	}
	n := 0
	for lines := bufio.NewScanner(bytes.NewReader(out)); lines.Scan(); n++ {
		var step struct{ Name, Error string }
		if err := json.Unmarshal(lines.Bytes(), &step); err != nil {
			t.Fatalf("%s: %v", lines.Text(), err)
		}
		t.Run(step.Name, func(t *testing.T) {
			if step.Error != "" {
				t.Error(step.Error)
			}
		})
	}
	if n == 0 {
		t.Errorf("%s took no step\n%s", name, stderr.String())
	}
}

func TestNodeConsul(t *testing.T) {
	node := program(t, "node")
	dir := install(t, "consul.js")
	s := start(t)
	steps(t, dir, node, "consul.js", s.counted)
	// A client that waits asks seldom: what is over is some watch that spins.
	if n := s.requests.of("/v1/health/service/nobody"); n > 2 {
		t.Errorf("%d requests for a service that never was", n)
	}
	if n := s.requests.of("/v1/health/service/web"); n > 30 {
		t.Errorf("%d requests for a service in 1.3 s with a wait of 300 ms", n)
	}
}
