package consulapi

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

const (
	passingFile = "passing.txt"
	skippedFile = "skipped.txt"
	// shards are processes that run tests side by side. A test spends most of its
	// time waiting: the harness looks at every new server for two seconds.
	shards = 4
	// limit of one shard. A test that hangs takes those beside it along.
	limit = 4 * time.Minute
)

// suites are the packages whose tests are run, by their name in the lists.
var suites = map[string]string{
	"api":   "github.com/hashicorp/consul/api",
	"watch": "github.com/hashicorp/consul/api/watch",
}

// A name is "api/TestAPI_ClientPutGetDelete".
type verdicts map[string]string // name -> PASS, FAIL, SKIP, or "" when it never ended

func TestClientsOwnTests(t *testing.T) {
	passing, skipped := readList(t, passingFile), readList(t, skippedFile)
	programs := build(t)
	names := list(t, programs)
	mode := os.Getenv("CONSULAPI")
	if mode != "" && mode != "update" {
		show(t, programs, names, regexp.MustCompile(mode))
		return
	}
	for name := range passing {
		if !slices.Contains(names, name) {
			t.Errorf("%s: there is no %s", passingFile, name)
		}
	}
	for _, name := range names {
		if _, known := passing[name]; !known && skipped[name] == "" && mode == "" {
			t.Errorf("%s is neither in %s nor, with a reason, in %s", name, passingFile, skippedFile)
		}
	}
	wanted := slices.DeleteFunc(slices.Clone(names), func(name string) bool {
		return mode == "" && strings.HasPrefix(skipped[name], "never: ")
	})
	got, output := run(t, programs, wanted)
	for _, name := range names {
		_, listed := passing[name]
		switch {
		case listed && got[name] != "PASS":
			t.Errorf("%s passed once, and now: %s\n%s", name, orNone(got[name]), output[name])
		case !listed && got[name] == "PASS":
			t.Logf("passes now: %s", name)
			if mode == "update" {
				passing[name] = ""
			}
		}
	}
	t.Logf("%d of %d tests are listed as passing", len(passing), len(names))
	if mode == "update" {
		update(t, names, passing, skipped)
	}
}

func orNone(verdict string) string {
	if verdict == "" {
		return "did not end"
	}
	return verdict
}

// build compiles the two suites, and the program that their harness starts, which
// comes first in PATH.
func build(t *testing.T) map[string]string {
	t.Helper()
	dir := t.TempDir()
	bin := filepath.Join(dir, "bin")
	compile(t, "build", "-o", filepath.Join(bin, "consul"), "./consul")
	t.Setenv("PATH", bin+string(os.PathListSeparator)+os.Getenv("PATH"))
	programs := make(map[string]string)
	for suite, pkg := range suites {
		programs[suite] = filepath.Join(dir, suite+".test")
		compile(t, "test", "-c", "-o", programs[suite], pkg)
	}
	return programs
}

func compile(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), "go", args...).CombinedOutput(); err != nil {
		t.Fatalf("go %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// list returns the names of all tests, sorted.
func list(t *testing.T, programs map[string]string) []string {
	t.Helper()
	var names []string
	for suite, program := range programs {
		out, err := exec.CommandContext(t.Context(), program, "-test.list", "^Test").Output()
		if err != nil {
			t.Fatalf("list the tests of %s: %v", suite, err)
		}
		for name := range strings.FieldsSeq(string(out)) {
			names = append(names, suite+"/"+name)
		}
	}
	slices.Sort(names)
	return names
}

// run runs the tests in several processes, and returns how each ended, with what
// the failed ones printed.
func run(t *testing.T, programs map[string]string, names []string) (verdicts, map[string]string) {
	t.Helper()
	got, output := make(verdicts), make(map[string]string)
	var mu sync.Mutex
	var work sync.WaitGroup
	for i := range shards {
		for suite := range suites {
			var mine []string
			for k, name := range names {
				if rest, ok := strings.CutPrefix(name, suite+"/"); ok && k%shards == i {
					mine = append(mine, rest)
				}
			}
			if len(mine) == 0 {
				continue
			}
			work.Go(func() {
				text := runShard(t.Context(), programs[suite], mine)
				mu.Lock()
				defer mu.Unlock()
				read(suite, text, got, output)
			})
		}
	}
	work.Wait()
	return got, output
}

func runShard(ctx context.Context, program string, tests []string) []byte {
	ctx, cancel := context.WithTimeout(ctx, limit+10*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, "-test.v", "-test.parallel=4",
		"-test.timeout="+limit.String(), "-test.run", "^("+strings.Join(tests, "|")+")$")
	cmd.WaitDelay = time.Second
	out, _ := cmd.CombinedOutput() // how each test ended is in the text
	return out
}

var (
	ends   = regexp.MustCompile(`^--- (PASS|FAIL|SKIP): (\S+) `)
	begins = regexp.MustCompile(`^=== (?:RUN|CONT|NAME)\s+([^/\s]+)`)
)

// read takes the verdicts out of what a test binary prints with -test.v, and sorts
// the rest by the test that it belongs to.
func read(suite string, text []byte, got verdicts, output map[string]string) {
	current := ""
	lines := bufio.NewScanner(bytes.NewReader(text))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line := lines.Text()
		if m := begins.FindStringSubmatch(line); m != nil {
			current = suite + "/" + m[1]
			continue
		}
		if m := ends.FindStringSubmatch(line); m != nil {
			current = suite + "/" + m[2]
			got[current] = m[1]
		}
		if !strings.Contains(line, "CONFIG JSON") {
			output[current] += line + "\n"
		}
	}
}

// show runs what fits the pattern, and prints it.
func show(t *testing.T, programs map[string]string, names []string, pattern *regexp.Regexp) {
	var wanted []string
	for _, name := range names {
		if pattern.MatchString(name) {
			wanted = append(wanted, name)
		}
	}
	got, output := run(t, programs, wanted)
	for _, name := range wanted {
		t.Logf("%s: %s", name, orNone(got[name]))
		if got[name] != "PASS" {
			t.Errorf("%s\n%s", name, output[name])
		}
	}
}

// readList reads lines of "name" or "name: text". Lines with # are comments.
func readList(t *testing.T, file string) map[string]string {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	list := make(map[string]string)
	for line := range strings.Lines(string(b)) {
		if line = strings.TrimSpace(line); line == "" || line[0] == '#' {
			continue
		}
		name, text, _ := strings.Cut(line, ": ")
		list[name] = text
	}
	return list
}

func update(t *testing.T, names []string, passing, skipped map[string]string) {
	t.Helper()
	var pass, skip strings.Builder
	for _, name := range names {
		if _, ok := passing[name]; ok {
			fmt.Fprintln(&pass, name)
			continue
		}
		reason := skipped[name]
		if reason == "" {
			reason = "not looked at"
		}
		fmt.Fprintf(&skip, "%s: %s\n", name, reason)
	}
	for file, text := range map[string]string{
		passingFile: "# Tests that pass. This list may only grow.\n" + pass.String(),
		skippedFile: "# Tests that do not pass, each with its reason. \"never: \" begins the reasons that no release mends; those are not run.\n" + skip.String(),
	} {
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}
