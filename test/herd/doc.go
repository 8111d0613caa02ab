// Package herd judges what happens when a service comes back that many clients are
// waiting for: with full jitter and a retry budget they come as they always did, and
// without both all at once. It asks package resilience in virtual time, and a sidecar
// in real time.
package herd
