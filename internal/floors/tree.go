package floors

import (
	"bufio"
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
)

// tree is the repository's Go sources, those of the modules under test/ included,
// and its go.mod files.
type tree struct {
	set   *token.FileSet
	files []source
	mods  map[string][]byte // go.mod files by path
}

type source struct {
	folder string // "." is the root
	test   bool
	*ast.File
}

// read parses every Go file, whatever its build tags, outside testdata and hidden
// folders.
func read(root fs.FS) (*tree, error) {
	t := &tree{set: token.NewFileSet(), mods: make(map[string][]byte)}
	return t, fs.WalkDir(root, ".", func(name string, d fs.DirEntry, err error) error {
		base := path.Base(name)
		switch {
		case err != nil:
			return err
		case d.IsDir() && name != "." && (base == "testdata" || base[0] == '.' || base[0] == '_'):
			return fs.SkipDir
		case d.IsDir() || base != "go.mod" && !strings.HasSuffix(base, ".go"):
			return nil
		}
		text, err := fs.ReadFile(root, name)
		if err != nil {
			return err
		}
		if base == "go.mod" {
			t.mods[name] = text
			return nil
		}
		file, err := parser.ParseFile(t.set, name, text, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		t.files = append(t.files, source{path.Dir(name), strings.HasSuffix(base, "_test.go"), file})
		return nil
	})
}

// at makes a finding: place and what is wrong.
func (t *tree) at(pos token.Pos, format string, args ...any) string {
	p := t.set.Position(pos)
	return fmt.Sprintf("%s:%d: %s", p.Filename, p.Line, fmt.Sprintf(format, args...))
}

// homeless finds folders on no floor, once each.
func (t *tree) homeless() (found []string) {
	seen := make(map[string]bool)
	for _, f := range t.files {
		if _, ok := roomOf(f.folder); !ok && !seen[f.folder] {
			seen[f.folder] = true
			found = append(found, t.at(f.Package, "%s is on no floor: give it a row in plan, in internal/floors/floors.go", f.folder))
		}
	}
	return found
}

// imports finds the imports that break a wall.
func (t *tree) imports() (found []string) {
	for _, f := range t.files {
		for _, spec := range f.Imports {
			imported, _ := strconv.Unquote(spec.Path.Value)
			if why := judge(f.folder, imported, f.test); why != "" {
				found = append(found, t.at(spec.Pos(), "%s imports %s: %s", f.folder, short(imported), why))
			}
		}
	}
	return found
}

// names finds folders and packages named for nothing.
func (t *tree) names() (found []string) {
	for _, f := range t.files {
		for _, name := range append(strings.Split(f.folder, "/"), f.Name.Name) {
			if slices.Contains(vague, name) {
				found = append(found, t.at(f.Package, "the name %q says nothing: name it by what is in it, or put it with its only caller", name))
				break
			}
		}
	}
	return found
}

// docs finds packages without a package comment, or with two. A package of tests
// only has it in a test file.
func (t *tree) docs() (found []string) {
	type pkg struct {
		first token.Pos
		docs  int
	}
	pkgs := make(map[string]*pkg)
	shipped := make(map[string]bool)
	for _, f := range t.files {
		shipped[f.folder] = shipped[f.folder] || !f.test
	}
	for _, f := range t.files {
		if f.test == shipped[f.folder] {
			continue
		}
		p := pkgs[f.folder]
		if p == nil {
			p = &pkg{first: f.Package}
			pkgs[f.folder] = p
		}
		if f.Doc == nil {
			continue
		}
		if p.docs++; p.docs > 1 {
			found = append(found, t.at(f.Doc.Pos(), "a second package comment: put the two together"))
		}
		want := "Package " + strings.TrimSuffix(f.Name.Name, "_test") + " "
		if f.Name.Name == "main" {
			want = "Command " + path.Base(f.folder) + " "
		}
		if !strings.HasPrefix(f.Doc.Text(), want) {
			found = append(found, t.at(f.Doc.Pos(), "the package comment must begin with %q", want))
		}
	}
	for folder, p := range pkgs {
		if p.docs == 0 {
			found = append(found, t.at(p.first, "%s has no package comment: say how to use it without reading it", folder))
		}
	}
	slices.Sort(found)
	return found
}

// requires finds dead modules that a go.mod names itself; what comes with other
// modules is their business.
func (t *tree) requires() (found []string) {
	for name, text := range t.mods {
		block := false
		lines := bufio.NewScanner(bytes.NewReader(text))
		for n := 1; lines.Scan(); n++ {
			line, comment, _ := strings.Cut(lines.Text(), "//")
			words := strings.Fields(line)
			switch {
			case len(words) == 0:
				continue
			case words[0] == "require" && len(words) > 1 && words[1] == "(":
				block = true
				continue
			case words[0] == ")":
				block = false
				continue
			case words[0] == "require":
				words = words[1:]
			case !block:
				continue
			}
			instead, bad := dead[words[0]]
			if bad && strings.TrimSpace(comment) != "indirect" {
				found = append(found, fmt.Sprintf("%s:%d: %s: %s", name, n, words[0], instead))
			}
		}
	}
	slices.Sort(found)
	return found
}
