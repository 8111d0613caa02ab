// Package weftpb is what the control plane and its proxies say to each other:
// the messages and the service that are generated from weft.proto, and the
// conversion between them and package weft's nouns.
//
// Encode… functions never fail: nouns are valid. Decode… functions check what
// came over the wire and report the first thing that is wrong.
package weftpb

//go:generate go run ../../internal/protogen weft.proto
