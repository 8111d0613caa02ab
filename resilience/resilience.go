// Package resilience holds the mechanisms that keep failures small: a retry
// budget and outlier ejection. Every method takes the time from its caller and
// none starts a timer or a goroutine; the happy path allocates nothing and takes
// no lock.
//
// The package imports only the standard library and is part of the stable API.
package resilience
