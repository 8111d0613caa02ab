package store

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"hash/maphash"
	"os"

	"go.etcd.io/etcd/server/v3/storage/mvcc"
	"google.golang.org/protobuf/encoding/protowire"
)

// Neither etcd nor bbolt can tell whether a value is as it was written. So each is
// stored with a checksum over its key and itself behind it, which every read checks.
const sealBytes = 4

func seal(key string, value []byte) []byte {
	b := make([]byte, len(value), len(value)+sealBytes)
	copy(b, value)
	return binary.LittleEndian.AppendUint32(b, sealOf([]byte(key), value))
}

func sealOf(key, value []byte) uint32 {
	return crc32.Update(crc32.Update(0, castagnoli, key), castagnoli, value)
}

// unseal returns what was sealed.
func unseal(key, sealed []byte) ([]byte, error) {
	n := len(sealed) - sealBytes
	if n < 0 || binary.LittleEndian.Uint32(sealed[n:]) != sealOf(key, sealed[:n]) {
		return nil, fmt.Errorf("the value of %.100q does not fit its checksum", key)
	}
	return sealed[:n:n], nil
}

// recordCheck looks at etcd's records, which come in the order of their revisions.
// Those of one key must follow one another: created, changed, deleted.
type recordCheck struct {
	seed      maphash.Seed
	alive     map[uint64]life // by the hash of the key
	newest    mvcc.Revision   // of the records so far
	orphan    int64           // newest revision with a record whose predecessor is not there
	compacted int64           // up to here predecessors may be gone
	applied   uint64          // index of the log's entry that the database has last
}

type life struct{ created, version int64 }

// checkDatabase walks through the whole file.
func checkDatabase(path string) (*recordCheck, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	c := &recordCheck{
		seed: maphash.MakeSeed(), alive: make(map[uint64]life),
		newest: mvcc.Revision{Main: 1}, // etcd's first commit makes the second
	}
	if err := walkPages(f, c.record); err != nil {
		return nil, err
	}
	if c.orphan > c.compacted {
		return nil, fmt.Errorf("what comes before the record of revision %d is not there", c.orphan)
	}
	if c.compacted > c.newest.Main {
		return nil, fmt.Errorf("it says that it was compacted at revision %d, and ends with %d", c.compacted, c.newest.Main)
	}
	return c, nil
}

// bucketNames are etcd's. One of another name would be taken for one that is not there.
var bucketNames = map[string]bool{
	"alarm": true, "auth": true, "authRoles": true, "authUsers": true, "cluster": true,
	"key": true, "lease": true, "members": true, "members_removed": true, "meta": true,
}

func (c *recordCheck) record(bucket string, key, value []byte) error {
	switch {
	case bucket == "key":
		return c.revision(key, value)
	case bucket != "meta":
		return nil
	}
	switch name := string(key); {
	case name == "confState", name == "storageVersion", name == "term":
	case name == "consistent_index":
		if len(value) != 8 {
			return fmt.Errorf("the index %x cannot be", value)
		}
		c.applied = binary.BigEndian.Uint64(value)
	case name == "scheduledCompactRev" || name == "finishedCompactRev":
		if !isRevision(value) {
			return fmt.Errorf("the revision %x cannot be", value)
		}
		c.compacted = max(c.compacted, mvcc.BytesToRev(value).Main)
	default:
		return fmt.Errorf("%.40q is unknown", name)
	}
	return nil
}

// isRevision says whether etcd can read b: two numbers, and a mark for a deletion.
func isRevision(b []byte) bool {
	return (len(b) == 17 || len(b) == 18 && b[17] == 't') && b[8] == '_' && b[0]&0x80 == 0 && b[9]&0x80 == 0
}

// revision looks at what etcd believes without looking.
func (c *recordCheck) revision(key, value []byte) error {
	if !isRevision(key) {
		return fmt.Errorf("the revision %x cannot be", key)
	}
	revision := mvcc.BytesToRev(key)
	rev := revision.Main
	if revision.Main != c.newest.Main+1 || revision.Sub != 0 {
		if revision.Main != c.newest.Main || revision.Sub != c.newest.Sub+1 {
			c.orphan = rev
		}
	}
	c.newest = revision
	if len(value) == 0 {
		return nil // the mark of a restored store
	}
	kv, err := parseRecord(value)
	if err != nil {
		return fmt.Errorf("the record of revision %d cannot be read: %w", rev, err)
	}
	if len(kv.key) == 0 {
		return fmt.Errorf("the record of revision %d has no key", rev)
	}
	id := maphash.Bytes(c.seed, kv.key)
	before, there := c.alive[id]
	if mvcc.IsTombstone(key) {
		if !there {
			c.orphan = rev
		}
		delete(c.alive, id)
		return nil
	}
	if _, err := unseal(kv.key, kv.value); err != nil {
		return fmt.Errorf("the record of revision %d: %w", rev, err)
	}
	if kv.mod != rev || kv.created < 1 || kv.version < 1 || (kv.version == 1) != (kv.created == rev) ||
		there && (kv.created != before.created || kv.version != before.version+1) {
		return fmt.Errorf("the record of revision %d says that it is of %d (created at %d, version %d)",
			rev, kv.mod, kv.created, kv.version)
	}
	if !there && kv.version > 1 {
		c.orphan = rev
	}
	c.alive[id] = life{kv.created, kv.version}
	return nil
}

// record is etcd's mvccpb.KeyValue, in place: the check reads all there are.
type record struct {
	key, value            []byte
	created, mod, version int64
}

func parseRecord(b []byte) (r record, err error) {
	for len(b) > 0 {
		number, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return r, protowire.ParseError(n)
		}
		b = b[n:]
		var v uint64
		var data []byte
		switch {
		case kind == protowire.VarintType && number >= 2 && number <= 4:
			v, n = protowire.ConsumeVarint(b)
		case kind == protowire.BytesType && (number == 1 || number == 5):
			data, n = protowire.ConsumeBytes(b)
		default:
			return r, fmt.Errorf("it has a field %d of kind %d", number, kind)
		}
		if n < 0 {
			return r, protowire.ParseError(n)
		}
		b = b[n:]
		switch number {
		case 1:
			r.key = data
		case 2:
			r.created = int64(v)
		case 3:
			r.mod = int64(v)
		case 4:
			r.version = int64(v)
		case 5:
			r.value = data
		}
	}
	return r, nil
}
