// Command registry measures weft's registry: how many durable registrations and lease
// renewals a second two cores give, beside the puts of Debian's etcd (apt-get install
// etcd-server) in the same run; and what a catalogue of 172,000 instances in 1,000
// services costs: memory, the time of a cold start, the time until 10,000 blocked
// watchers have seen a change, what each of them costs while it waits, and how many are
// woken by changes elsewhere.
//
//	go run ./bench/registry                 # all, about three minutes
//	go run ./bench/registry -run write      # or: read, scale
//	go run ./bench/registry -run write -seconds 10 -clients 512
//
// Registrations and renewals go through the Go API, from goroutines of the registry's
// process; etcd's puts have the same size as a registration's record, and come from
// goroutines over several connections, as in etcd's own benchmark. Both have a fresh
// directory on the same disk, and rounds are interleaved. Processor time is that of all
// processes that take part, clients included: it says how much of a rate was lost to
// whatever else the machine did.
//
// Reads are Consul's, of a service with ten instances, by wrk (apt-get install wrk) from
// the real server, without and with 1,000 changes a second to other services.
//
// Nothing here is a test: nothing fails because it is slow. Linux only.
package main
