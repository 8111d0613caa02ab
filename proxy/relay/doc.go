// Package relay carries bytes that nobody looks into: TCP, TLS passthrough, CONNECT
// and WebSocket. It joins two connections, finds out what a connection speaks, and
// takes PROXY headers off.
package relay
