package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestCommittedCodeIsCurrent(t *testing.T) {
	t.Chdir("../../control/weftpb")
	generated, err := generate([]string{"weft.proto"})
	if err != nil {
		t.Fatal(err)
	}
	if len(generated) != 2 {
		t.Errorf("%d files, want messages and services", len(generated))
	}
	for _, file := range generated {
		committed, err := os.ReadFile(file.GetName())
		if err != nil {
			t.Error(err)
			continue
		}
		if string(committed) != file.GetContent() {
			t.Errorf("%s is not what weft.proto gives; run make generate", file.GetName())
		}
	}
}

func TestErrorsNameFileAndLine(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "bad.proto"), []byte("syntax = \"proto3\";\nmessage A { Nothing x = 1; }\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Chdir(dir)
	_, err := generate([]string{"bad.proto"})
	if err == nil || !strings.Contains(err.Error(), "bad.proto:2:13") {
		t.Errorf("got %v", err)
	}
}
