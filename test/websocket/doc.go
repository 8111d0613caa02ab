// Package websocket judges weft's WebSockets from outside: github.com/coder/websocket
// and github.com/gorilla/websocket talk to each other through a gateway, in plain
// text and over TLS, and through two sidecars, by HTTP/1's Upgrade; raw sockets and
// raw frames ask what libraries do not, and how it is by HTTP/2 (RFC 8441). It is a
// module of its own for the sake of those libraries.
package websocket
