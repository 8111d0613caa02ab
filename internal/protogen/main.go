// Command protogen generates Go code from .proto files in the current directory:
//
//	//go:generate go run ../../internal/protogen weft.proto
//
// It needs no protoc: protocompile parses the files, and the plugins
// protoc-gen-go and protoc-gen-go-grpc run as tools of this module, whose go.mod
// pins them. Output depends on nothing but the sources and those pins.
package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/bufbuild/protocompile"
	"github.com/bufbuild/protocompile/linker"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/pluginpb"
)

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "usage: protogen FILE.proto…")
		os.Exit(2)
	}
	generated, err := generate(os.Args[1:])
	for _, file := range generated {
		if err != nil {
			break
		}
		err = os.WriteFile(file.GetName(), []byte(file.GetContent()), 0o644)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "protogen:", err)
		os.Exit(1)
	}
}

type generatedFile = pluginpb.CodeGeneratorResponse_File

func generate(files []string) ([]*generatedFile, error) {
	compiler := protocompile.Compiler{
		Resolver:       protocompile.WithStandardImports(&protocompile.SourceResolver{}),
		SourceInfoMode: protocompile.SourceInfoStandard, // comments
	}
	compiled, err := compiler.Compile(context.Background(), files...)
	if err != nil {
		return nil, err
	}
	request, err := proto.MarshalOptions{Deterministic: true}.Marshal(codeRequest(files, compiled))
	if err != nil {
		return nil, err
	}
	var out []*generatedFile
	for _, plugin := range []string{"protoc-gen-go", "protoc-gen-go-grpc"} {
		generated, err := run(plugin, request)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", plugin, err)
		}
		out = append(out, generated...)
	}
	return out, nil
}

// codeRequest holds every file after those that it imports, as protoc does.
func codeRequest(files []string, compiled linker.Files) *pluginpb.CodeGeneratorRequest {
	var ordered []*descriptorpb.FileDescriptorProto
	seen := make(map[string]bool)
	var add func(protoreflect.FileDescriptor)
	add = func(file protoreflect.FileDescriptor) {
		if seen[file.Path()] {
			return
		}
		seen[file.Path()] = true
		for i := range file.Imports().Len() {
			add(file.Imports().Get(i))
		}
		ordered = append(ordered, protodesc.ToFileDescriptorProto(file))
	}
	for _, file := range compiled {
		add(file)
	}
	return &pluginpb.CodeGeneratorRequest{
		FileToGenerate: files,
		Parameter:      proto.String("paths=source_relative"),
		ProtoFile:      ordered,
	}
}

// run feeds a plugin and returns the files that it answers with.
func run(plugin string, request []byte) ([]*generatedFile, error) {
	cmd := exec.Command("go", "tool", plugin)
	cmd.Stdin, cmd.Stderr = bytes.NewReader(request), os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, err
	}
	var response pluginpb.CodeGeneratorResponse
	if err := proto.Unmarshal(out, &response); err != nil {
		return nil, err
	}
	if response.Error != nil {
		return nil, errors.New(response.GetError())
	}
	for _, file := range response.File {
		if !filepath.IsLocal(file.GetName()) {
			return nil, fmt.Errorf("it wants to write %s, outside the current directory", file.GetName())
		}
	}
	return response.File, nil
}
