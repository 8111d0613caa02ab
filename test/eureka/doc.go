// Package eureka judges registry/eureka from outside: its tests drive the API with
// fargo, a Go client, in XML and in JSON, and with eureka-js-client, which runs in a
// process of its own under Node.js and is installed by npm into a directory of the
// test; without Node.js, npm or a way to the packages that test is skipped. Others ask
// Consul's API and DNS in the same process for what was registered here, and the
// other way round. It is a module of its own, so that these libraries stay out of
// weft's.
package eureka
