// Package imports judges the ways into the catalogue that are no API of weft's: its
// tests run Debian's etcd and ZooKeeper, register there as others' libraries do, and
// look what weft's registry has of it, also while the source is killed, silent or
// back; and they kill a `weft register`.
//
// They need the packages etcd-server, libzookeeper-java and default-jre-headless; a
// test whose program is not there says so and is skipped.
package imports
