module github.com/weftmesh/weft/test/websocket

go 1.26.0

require (
	github.com/coder/websocket v1.8.15
	github.com/gorilla/websocket v1.5.3
	github.com/weftmesh/weft v0.0.0-00010101000000-000000000000
	github.com/weftmesh/weft/test/frames v0.0.0-00010101000000-000000000000
	golang.org/x/net v0.62.0
)

require golang.org/x/text v0.43.0 // indirect

replace (
	github.com/weftmesh/weft => ../..
	github.com/weftmesh/weft/test/frames => ../frames
)
