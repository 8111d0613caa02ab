package registry

// ServerDialect is the dialect of the instances that the servers themselves are, of the
// service "consul", by which Consul's clients find servers. Where people list their own
// services these are left out.
const ServerDialect = "server"
