package resource

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A test case is a file of sections, each after a line "-- name --".
var update = flag.Bool("update", false, "rewrite the answers in testdata; read them before you commit")

type section struct{ name, text string }

// readCase returns the sections of a file, without what is before the first.
func readCase(t *testing.T, path string) []section {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var out []section
	for line := range strings.Lines(string(data)) {
		name, ok := strings.CutPrefix(strings.TrimRight(line, "\n"), "-- ")
		if name, end := strings.CutSuffix(name, " --"); ok && end {
			out = append(out, section{name: name})
		} else if len(out) > 0 {
			out[len(out)-1].text += line
		}
	}
	return out
}

// writeCase keeps what is before the first section.
func writeCase(t *testing.T, path string, sections []section) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	head, _, _ := strings.Cut("\n"+string(data), "\n-- ")
	out := strings.TrimPrefix(head+"\n", "\n")
	for _, s := range sections {
		out += "-- " + s.name + " --\n" + s.text
	}
	if err := os.WriteFile(path, []byte(out), 0o644); err != nil {
		t.Fatal(err)
	}
}

// eachCase runs a test for every file of a folder of testdata.
func eachCase(t *testing.T, folder string, run func(t *testing.T, path string)) {
	paths, err := filepath.Glob(filepath.Join("testdata", folder, "*.txt"))
	if err != nil || len(paths) == 0 {
		t.Fatalf("no cases in testdata/%s: %v", folder, err)
	}
	for _, path := range paths {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txt"), func(t *testing.T) { run(t, path) })
	}
}

// filesOf are the sections that are resources: all before the last.
func filesOf(sections []section) []File {
	var files []File
	for _, s := range sections[:len(sections)-1] {
		files = append(files, File{Name: s.name, Data: []byte(s.text)})
	}
	return files
}
