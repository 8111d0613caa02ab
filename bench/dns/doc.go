// Command dns measures weft's DNS server beside CoreDNS:
//
//	go run .                  # in this folder; about a minute
//	go run . -seconds 10 -rounds 3
//
// Both answer the same question with the same ten A records in random order: weft
// from its registry, where ten instances are registered; CoreDNS from a zone file,
// with its plugin loadbalance, which is the cheapest way it has. Each server is a
// process of its own on one core, the load is on the other; the other server is
// idle meanwhile, and rounds are interleaved.
//
// Saturation: four sockets, each with 32 questions on their way; an answer brings the
// next question. Half: as many questions in a second as half of what this server
// took, at a constant rate. A question has a time at which it is due, and its latency
// counts from then; one that is never answered counts as a second. An answer that has not ten records is an error, and ends the
// measurement. Where dnsperf is installed (Debian: apt-get install dnsperf) it asks
// too, as a second opinion.
//
// It is a module of its own, because CoreDNS is large.
package main
