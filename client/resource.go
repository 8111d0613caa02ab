package client

import (
	"encoding/json"

	"github.com/weftmesh/weft"
)

// File is one YAML or JSON file of resources, as the user wrote it.
type File struct {
	Name string `json:"name"` // for messages: "canary.yaml"
	Data string `json:"data"` // one or more documents; 4 MiB for all files of one call
}

// ApplyOptions of Client.Apply.
type ApplyOptions struct {
	Partial bool `json:"partial,omitempty"` // apply what is right though something else is wrong
	DryRun  bool `json:"dryRun,omitempty"`  // say what would happen, change nothing
}

// ApplyRequest is the body of an apply.
type ApplyRequest struct {
	Files []File `json:"files"`
	ApplyOptions
}

// ApplyResult says what became of every resource that was sent.
type ApplyResult struct {
	Resources []AppliedResource `json:"resources"` // in the order of the files
	// Problems are warnings; with Partial also the errors of what was left out.
	Problems weft.Problems `json:"problems,omitempty"`
}

// AppliedResource is one resource and what the apply did to it.
type AppliedResource struct {
	Kind      string `json:"kind"`
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	Action    string `json:"action"` // "created", "configured" or "unchanged"
	File      string `json:"file,omitempty"`
	Line      int    `json:"line,omitempty"`
}

// Resource is an applied resource.
type Resource struct {
	Kind       string          `json:"kind"`
	APIVersion string          `json:"apiVersion"`
	Namespace  string          `json:"namespace"`
	Name       string          `json:"name"`
	File       string          `json:"file,omitempty"` // that it was last applied from
	Line       int             `json:"line,omitempty"`
	Object     json.RawMessage `json:"object"` // the whole of it, as it can be applied again
}
