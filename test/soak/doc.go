// Package soak runs weft for minutes while everything around it breaks, and judges
// what its users see:
//
//	make soak                    two minutes
//	SOAK=20m SOAK_SEED=7 make soak
//	SOAK=1m SOAK_RACE=1 make soak
//
// The world is a server, a gateway, three instances of one service, a service of
// raw TCP with a client that speaks first and one with a server that does, a service
// of WebSockets, and a caller, each under its sidecar: all of them the real program
// and processes of their own. Clients speak HTTP/1 (kept connections, new ones,
// pipelined), HTTP/2, gRPC, WebSocket and raw TCP, through the gateway and through
// sidecars, with bodies from none to 5 MB, slowly and fast, and give up in the middle.
//
// First nothing happens, then only what nobody may notice: routes change, gateway
// and sidecars are upgraded. Then storms, with pauses between them: instances,
// sidecars and the server are killed, stopped for a while, and started again, and
// connections are reset and stalled. What is asked of weft:
//
//   - every byte that arrives is the one that was meant: all bodies follow from a
//     number that is in the request and comes back in the answer, and both ends check
//     them. What was cut off shows as an error;
//   - nothing fails without a storm, nothing from ten seconds after one, and a bounded
//     share within; nothing hangs;
//   - no process ends that was not killed, none says panic or DATA RACE;
//   - when the load is over, files, threads, goroutines and memory of gateway and
//     sidecars are near what they were before it.
//
// The seed of what happens is printed; when it happens depends on the machine, too.
// Without SOAK in the environment the test is skipped.
package soak
