// Package resilience judges the circuit breaker of weft's package resilience from
// outside, twice: a model that keeps every call and counts all of them again each
// time is driven with it through random histories; and failsafe-go's breaker is
// given the same outcomes, where both claim the same. It is a module of its own,
// because the judges are.
package resilience
