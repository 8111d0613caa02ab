// Package docs holds what the documents claim against the tree: links lead
// somewhere, and the commands that they show exist, with the flags that they show.
package docs

import (
	"bytes"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/weftmesh/weft/cli"
)

const root = "../.."

// documents reads every Markdown file outside testdata and hidden folders.
func documents(t *testing.T) map[string]string {
	t.Helper()
	docs := make(map[string]string)
	err := fs.WalkDir(os.DirFS(root), ".", func(name string, d fs.DirEntry, err error) error {
		base := path.Base(name)
		if err != nil {
			return err
		}
		if d.IsDir() && name != "." && (base == "testdata" || base[0] == '.') {
			return fs.SkipDir
		}
		if path.Ext(name) != ".md" {
			return nil
		}
		text, err := os.ReadFile(filepath.Join(root, name))
		docs[name] = string(text)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"README.md", "ARCHITECTURE.md"} {
		if docs[name] == "" {
			t.Errorf("%s is missing", name)
		}
	}
	return docs
}

var link = regexp.MustCompile(`\]\(([^)\s]+)\)`)

func TestLinksLeadSomewhere(t *testing.T) {
	for name, text := range documents(t) {
		for _, m := range link.FindAllStringSubmatch(text, -1) {
			target, anchor, _ := strings.Cut(m[1], "#")
			if strings.Contains(target, "://") {
				continue
			}
			file := name
			if target != "" {
				file = path.Join(path.Dir(name), target)
			}
			body, err := os.ReadFile(filepath.Join(root, file))
			if info, statErr := os.Stat(filepath.Join(root, file)); statErr != nil {
				t.Errorf("%s links to %s, which is not there", name, m[1])
				continue
			} else if info.IsDir() && anchor == "" {
				continue
			}
			if err != nil || anchor != "" && !slices.Contains(anchors(string(body)), anchor) {
				t.Errorf("%s links to %s: %s has no such heading", name, m[1], file)
			}
		}
	}
}

// anchors are the names that a Markdown viewer gives to headings.
func anchors(text string) (names []string) {
	for line := range strings.Lines(text) {
		if title, ok := strings.CutPrefix(strings.TrimLeft(line, "#"), " "); ok && line[0] == '#' {
			name := strings.ReplaceAll(strings.ToLower(strings.TrimSpace(title)), " ", "-")
			names = append(names, notInAnchors.ReplaceAllString(name, ""))
		}
	}
	return names
}

var notInAnchors = regexp.MustCompile(`[^\p{L}\p{N}_-]`)

// commands are what a reader would type: the indented and fenced lines, and what
// stands in backquotes, each command of a pipe by itself.
func commands(text string) (all []string) {
	fenced := false
	for line := range strings.Lines(text) {
		switch {
		case strings.HasPrefix(line, "```"):
			fenced = !fenced
		case fenced || strings.HasPrefix(line, "    "):
			for command := range strings.SplitSeq(line, " | ") {
				all = append(all, strings.TrimPrefix(strings.TrimSpace(command), "$ "))
			}
		default:
			parts := strings.Split(line, "`")
			for i := 1; i < len(parts)-1; i += 2 {
				all = append(all, parts[i])
			}
		}
	}
	return all
}

// TestCommandsExist lets the command line parse each `weft …` that a document
// shows, with --help at its end, so that it does nothing.
func TestCommandsExist(t *testing.T) {
	makefile, err := os.ReadFile(filepath.Join(root, "Makefile"))
	if err != nil {
		t.Fatal(err)
	}
	seen := make(map[string]bool)
	for name, text := range documents(t) {
		for _, command := range commands(text) {
			words := strings.Fields(strings.Replace(command, "go run ./cmd/weft", "weft", 1))
			if len(words) < 2 || seen[command] {
				continue
			}
			seen[command] = true
			switch words[0] {
			case "weft":
				if problem := parse(words[1:]); problem != "" {
					t.Errorf("%s shows %q: %s", name, command, problem)
				}
			case "make":
				for _, target := range words[1:] {
					if !bytes.Contains(makefile, []byte("\n"+target+":")) {
						t.Errorf("%s shows %q: the Makefile has no %s", name, command, target)
					}
				}
			}
		}
	}
	for _, must := range []string{"go run ./cmd/weft demo", "make test"} {
		if !seen[must] {
			t.Errorf("no document shows %q", must)
		}
	}
}

// parse tells what is wrong with a command line of weft; "" when nothing is.
func parse(args []string) string {
	if strings.HasSuffix(args[0], ":") { // "weft server: …" is not a command
		return ""
	}
	if i := slices.Index(args, "--"); i >= 0 {
		args = args[:i]
	}
	var stdout, stderr bytes.Buffer
	code := cli.Main(append(slices.Clone(args), "--help"), strings.NewReader(""), &stdout, &stderr)
	if code != 0 {
		return strings.TrimSpace(stderr.String())
	}
	if !strings.HasPrefix(args[0], "-") && !strings.Contains(stdout.String(), "weft "+args[0]) {
		return "there is no command " + args[0]
	}
	return ""
}

func TestParse(t *testing.T) {
	for args, ok := range map[string]bool{
		"demo":                                 true,
		"apply -f examples/shop --dry-run":     true,
		"run --service hello -- ./hello --fly": true,
		"apply --fly -f x":                     false,
		"fly":                                  false,
		"run --service":                        false,
		"traces --limit many":                  false,
	} {
		if problem := parse(strings.Fields(args)); (problem == "") != ok {
			t.Errorf("weft %s: %q; want right: %t", args, problem, ok)
		}
	}
}

func TestCommands(t *testing.T) {
	got := commands("Say `weft demo` or\n\n    $ weft get all -o yaml | weft apply -f -\n\n```\nmake test\n```\nnot `this\n")
	want := []string{"weft demo", "weft get all -o yaml", "weft apply -f -", "make test"}
	if !slices.Equal(got, want) {
		t.Errorf("%q; want %q", got, want)
	}
}

func TestAnchors(t *testing.T) {
	got := anchors("# How weft is built\n## A request\n#no\n## `kill -9`, now\n")
	if want := []string{"how-weft-is-built", "a-request", "kill--9-now"}; !slices.Equal(got, want) {
		t.Errorf("%q; want %q", got, want)
	}
}
