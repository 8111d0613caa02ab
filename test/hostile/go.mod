module github.com/weftmesh/weft/test/hostile

go 1.26.0

require (
	github.com/weftmesh/weft v0.0.0
	github.com/weftmesh/weft/test/frames v0.0.0
	golang.org/x/net v0.62.0
)

require golang.org/x/text v0.43.0 // indirect

replace (
	github.com/weftmesh/weft => ../..
	github.com/weftmesh/weft/test/frames => ../frames
)
