module github.com/weftmesh/weft/test/cluster

go 1.26.0

require (
	github.com/anishathalye/porcupine v1.3.1
	github.com/weftmesh/weft v0.0.0
	golang.org/x/sys v0.49.0
)

replace github.com/weftmesh/weft => ../..
