// Package resource reads what users write (Istio's YAML), checks it, and
// compiles it to weft's nouns.
package resource

import (
	"github.com/weftmesh/weft"
	"google.golang.org/protobuf/proto"
)

// File is one file of resources.
type File struct {
	Name string // as problems and sources name it
	Data []byte // YAML or JSON, any number of documents, at most 1 MiB
}

// Resource is one checked document. It is immutable once it is in a Set.
type Resource struct {
	Kind        string // "VirtualService"
	APIVersion  string // "networking.istio.io/v1", as written
	Namespace   string // "default" when none is written
	Name        string
	Labels      map[string]string
	Annotations map[string]string
	Source      weft.SourceRef // of the document
	Spec        proto.Message  // *networking.VirtualService and the like

	// JSON is what a store keeps and Decode reads: the resource in canonical
	// form, and under "source" the file and lines it came from. Parse reads it too.
	JSON []byte

	// Created orders resources that compete for a host: the lowest wins. Whoever
	// stores resources sets it to the store's revision of the creation; 0, not
	// stored yet, is after all others.
	Created int64
}

// Parse reads files strictly and returns the resources without errors, and
// every problem of all files at once (errors, and warnings of what was accepted).
func Parse(files []File) ([]*Resource, weft.Problems) { return nil, nil }

// Decode reads a Resource's JSON. src is used when the JSON does not say where
// it came from.
func Decode(json []byte, src weft.SourceRef) (*Resource, error) {
	return nil, weft.Errorf(weft.Invalid, "decode", "resource", "not built yet")
}

// Manifest is the resource in canonical JSON, without its source.
func (r *Resource) Manifest() []byte { return nil }
