// Package grpc judges weft's gRPC from outside: the interoperability client and
// server of google.golang.org/grpc run as real processes, with a gateway or two
// sidecars between them; and a client and servers of our own ask what those do not:
// balancing by call, deadlines, failures, metrics. It is a module of its own,
// because the client brings Google's credentials with it.
package grpc
