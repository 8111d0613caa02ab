package cli

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/client"
)

// maxFiles is how many bytes of resources one call may carry, as the server's
// API has it.
const maxFiles = 4 << 20

// readFiles reads what -f names: files, directories (their .yaml, .yml and .json
// files, not deeper), or "-" for stdin. Files are named as the user wrote them,
// so that "file:line" can be opened.
func (a *app) readFiles(names []string) ([]client.File, error) {
	var files []client.File
	room := int64(maxFiles)
	add := func(name string, r io.Reader) error {
		data, err := io.ReadAll(io.LimitReader(r, room+1))
		if err != nil {
			return err
		}
		if room -= int64(len(data)); room < 0 {
			return weft.Errorf(weft.TooLarge, "read", name, "more than %d MiB of resources; apply them in several calls", maxFiles>>20)
		}
		files = append(files, client.File{Name: name, Data: string(data)})
		return nil
	}
	for _, name := range names {
		if name == "-" {
			if err := add("stdin", a.in); err != nil {
				return nil, err
			}
			continue
		}
		paths, err := resourceFiles(name)
		if err != nil {
			return nil, err
		}
		for _, p := range paths {
			if err := addFile(p, add); err != nil {
				return nil, err
			}
		}
	}
	return files, nil
}

func addFile(path string, add func(string, io.Reader) error) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return add(path, f)
}

// resourceFiles is the file itself, or the resource files of a directory, sorted.
func resourceFiles(name string) ([]string, error) {
	info, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	if !info.IsDir() {
		return []string{name}, nil
	}
	entries, err := os.ReadDir(name)
	if err != nil {
		return nil, err
	}
	var paths []string
	for _, e := range entries {
		ext := filepath.Ext(e.Name())
		if e.Type()&fs.ModeDir == 0 && slices.Contains([]string{".yaml", ".yml", ".json"}, ext) {
			paths = append(paths, filepath.Join(name, e.Name()))
		}
	}
	if len(paths) == 0 {
		return nil, fmt.Errorf("read %s: there is no .yaml, .yml or .json file in it", name)
	}
	return paths, nil
}
