// Package resources holds the files that `weft demo` applies, as a user would
// with `weft apply -f examples/shop/resources`.
package resources

import "embed"

// Files are the YAML files of this folder.
//
//go:embed *.yaml
var Files embed.FS

// Path is where the folder lies in the repository: messages name files by it.
const Path = "examples/shop/resources"
