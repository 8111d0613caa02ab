package store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"hash/maphash"
	"os"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/server/v3/storage/mvcc"
	"google.golang.org/protobuf/proto"
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
func unseal(kv *mvccpb.KeyValue) ([]byte, error) {
	n := len(kv.Value) - sealBytes
	if n < 0 || binary.LittleEndian.Uint32(kv.Value[n:]) != sealOf(kv.Key, kv.Value[:n]) {
		return nil, fmt.Errorf("%w: the record of %.100q at revision %d does not fit its checksum", errDamaged, kv.Key, kv.ModRevision)
	}
	return kv.Value[:n:n], nil
}

// errDamaged is met by a read when the disk has changed what it held at the start.
var errDamaged = errors.New("the database is damaged")

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
	var kv mvccpb.KeyValue
	if err := proto.Unmarshal(value, &kv); err != nil {
		return fmt.Errorf("the record of revision %d cannot be read: %w", rev, err)
	}
	if len(kv.Key) == 0 {
		return fmt.Errorf("the record of revision %d has no key", rev)
	}
	id := maphash.Bytes(c.seed, kv.Key)
	before, there := c.alive[id]
	if mvcc.IsTombstone(key) {
		if !there {
			c.orphan = rev
		}
		delete(c.alive, id)
		return nil
	}
	if _, err := unseal(&kv); err != nil {
		return err
	}
	if kv.ModRevision != rev || kv.CreateRevision < 1 || (kv.Version == 1) != (kv.CreateRevision == rev) ||
		there != (kv.Version > 1) && (there || kv.Version < 1) ||
		there && (kv.CreateRevision != before.created || kv.Version != before.version+1) {
		return fmt.Errorf("the record of revision %d says that it is of %d (created at %d, version %d)",
			rev, kv.ModRevision, kv.CreateRevision, kv.Version)
	}
	if !there && kv.Version > 1 {
		c.orphan = rev
	}
	c.alive[id] = life{kv.CreateRevision, kv.Version}
	return nil
}
