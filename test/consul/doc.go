// Package consul judges registry/consul from outside: its tests drive the API
// with HashiCorp's unmodified Go client and its watch plans, and ask HashiCorp's
// own filter evaluator for a second opinion. It is a module of its own, so that
// these libraries stay out of weft's.
package consul
