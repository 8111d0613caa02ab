// Package hostile judges weft by its enemies: clients that flood, stall and lie, and
// upstreams that answer nonsense, against the built program on loopback, bounded in
// number and time. What is asked of weft is always the same: its memory stays
// bounded, honest clients on other connections get their answers, and a counter says
// what was refused.
package hostile
