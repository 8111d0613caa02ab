// Package consulapi judges registry/consul by the tests that HashiCorp wrote for
// its own Go client: those of github.com/hashicorp/consul/api and of its watch
// package, unmodified, compiled from the module cache. Their harness starts a
// program named consul; here that is ./consul, which serves weft.
//
// passing.txt names the tests that pass, one a line, and may only grow: each must
// pass again. skipped.txt names the others, each with the reason why it does not
// pass; they run too, and those that have come to pass are told.
//
//	CONSULAPI=update go test -count=1 .    moves what passes now to passing.txt
//	CONSULAPI=TestAPI_KV go test -v .      runs the tests of this pattern and prints all
package consulapi

import (
	// What the tests of these packages import must be in this module's go.sum.
	_ "github.com/hashicorp/consul/api"
	_ "github.com/hashicorp/consul/api/watch"
	_ "github.com/hashicorp/consul/sdk/testutil"
)
