module github.com/weftmesh/weft/test/resilience

go 1.26.0

require (
	github.com/failsafe-go/failsafe-go v0.9.8
	github.com/weftmesh/weft v0.0.0
	pgregory.net/rapid v1.3.0
)

require github.com/bits-and-blooms/bitset v1.24.4 // indirect

replace github.com/weftmesh/weft => ../..
