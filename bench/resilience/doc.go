// Package resilience measures what a successful call costs under weft's package
// resilience, beside failsafe-go and sony/gobreaker:
//
//	go test -bench .
//
// Each lane is measured with one caller, and with sixteen on all cores ("parallel")
// that do nothing but call: no service is that fast, so this is the worst contention
// there can be. It is a module of its own, because the peers are.
package resilience
