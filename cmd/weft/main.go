// Command weft is registry, gateway and service mesh in one binary; see package
// cli.
package main

import (
	"os"

	"github.com/weftmesh/weft/cli"
)

func main() {
	os.Exit(cli.Main(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}
