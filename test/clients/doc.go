// Package clients judges weft from outside by programs that others wrote for Consul,
// Eureka and DNS, unmodified and as their users run them, against the real program
// "weft server":
//
//   - Prometheus' discovery by Consul and by Eureka,
//   - go-kit's registrar and instancer,
//   - consul-template, which renders files from services and keys,
//   - HashiCorp's locks, semaphores and watch plans, with ten clients that contend,
//   - the npm package consul, which is installed by npm into a directory of the test,
//   - python-consul as Debian has it,
//   - the resolvers of Go and of Node.js, miekg/dns, and dig,
//   - curl, with what clients send that no library would.
//
// Each test looks at what a user sees: that an instance is found, that a change is
// noticed soon, that a departure is, and that a blocked query waits instead of asking
// again and again. A program that is not on the machine, or packages that cannot be
// fetched, skip their test with the reason. It is a module of its own, so that these
// libraries stay out of weft's.
package clients
