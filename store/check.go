package store

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/client/pkg/v3/fileutil"
	"go.etcd.io/etcd/server/v3/storage/mvcc"
	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.etcd.io/etcd/server/v3/storage/wal/walpb"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// The files are checked before etcd sees them. Close writes their checksums; a store
// that was closed is checked by these. After a kill, the log is checked by its own
// checksums and against the database, and the database by its structure and its
// records (a second for a gigabyte or two; see BenchmarkCheck).

// damaged is a file that cannot be used.
func damaged(path string, err error) error {
	return fmt.Errorf("%s is damaged: %w; restore the store from a backup, or in a cluster join again with an empty directory", path, err)
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func sumsPath(dir string) string { return filepath.Join(dir, "SUMS") }

// dataFiles are those of which etcd reads anything.
func dataFiles(dir string) ([]string, error) {
	logs, err := filepath.Glob(filepath.Join(dir, "member", "wal", "*.wal"))
	if err != nil {
		return nil, err
	}
	return append(logs, databasePath(dir)), nil
}

func databasePath(dir string) string { return filepath.Join(dir, "member", "snap", "db") }

// writeSums is the last thing that happens to a store.
func writeSums(dir string) error {
	files, err := dataFiles(dir)
	if err != nil {
		return err
	}
	var text strings.Builder
	for _, path := range files {
		sum, size, err := sumFile(path)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		fmt.Fprintf(&text, "%08x %d %s\n", sum, size, rel)
	}
	return writeFile(dir, sumsPath(dir), fmt.Sprintf("%s%08x\n", text.String(), crc32.Checksum([]byte(text.String()), castagnoli)))
}

func sumFile(path string) (sum uint32, size int64, err error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, 0, err
	}
	h := crc32.New(castagnoli)
	size, err = io.CopyBuffer(h, struct{ io.Reader }{f}, make([]byte, 1<<20))
	return h.Sum32(), size, errors.Join(err, f.Close())
}

// checkFiles finds damaged files. Afterwards the checksums are gone: they are no
// longer those of a store that was closed.
func checkFiles(dir string) error {
	if _, err := os.Stat(filepath.Join(dir, "member")); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	b, err := os.ReadFile(sumsPath(dir))
	if errors.Is(err, fs.ErrNotExist) {
		return checkStructure(dir)
	}
	if err != nil {
		return err
	}
	if err := checkSums(dir, string(b)); err != nil {
		return err
	}
	if err := os.Remove(sumsPath(dir)); err != nil {
		return err
	}
	return syncDir(dir)
}

func checkSums(dir, text string) error {
	end := strings.LastIndexByte(strings.TrimSuffix(text, "\n"), '\n') + 1
	if text[end:] != fmt.Sprintf("%08x\n", crc32.Checksum([]byte(text[:end]), castagnoli)) {
		return damaged(sumsPath(dir), errors.New("its own checksum does not fit; without this file the others are checked by their structure"))
	}
	listed := make(map[string]bool)
	for line := range strings.Lines(text[:end]) {
		var want uint32
		var size int64
		var rel string
		if _, err := fmt.Sscanf(line, "%x %d %s\n", &want, &size, &rel); err != nil {
			return damaged(sumsPath(dir), err)
		}
		path := filepath.Join(dir, rel)
		sum, have, err := sumFile(path)
		if err != nil {
			return damaged(path, err)
		}
		if have != size {
			return damaged(path, fmt.Errorf("it has %d bytes, and had %d when it was closed", have, size))
		}
		if sum != want {
			return damaged(path, errors.New("it is not as it was when it was closed"))
		}
		listed[path] = true
	}
	files, err := dataFiles(dir)
	for _, path := range files {
		if err == nil && !listed[path] {
			err = damaged(path, errors.New("it was not there when the store was closed"))
		}
	}
	return err
}

// checkStructure is for a store that was not closed.
func checkStructure(dir string) error {
	applied, err := checkDatabase(databasePath(dir))
	if err != nil {
		return err
	}
	return checkLog(filepath.Join(dir, "member", "wal"), applied)
}

// checkDatabase returns the index up to which the database has applied the log.
func checkDatabase(path string) (applied uint64, err error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil // etcd says what that means
	}
	if err != nil {
		return 0, err
	}
	defer f.Close()
	err = walkPages(f, func(bucket string, key, value []byte) error {
		switch {
		case bucket == "key":
			return checkRecord(key, value)
		case bucket == "meta" && string(key) == "consistent_index" && len(value) == 8:
			applied = binary.BigEndian.Uint64(value)
		}
		return nil
	})
	if err != nil {
		return 0, damaged(path, err)
	}
	return applied, nil
}

// checkRecord looks at what etcd believes without looking.
func checkRecord(key, value []byte) (err error) {
	if len(key) != 17 && (len(key) != 18 || key[17] != 't') || key[8] != '_' || key[0]&0x80 != 0 || key[9]&0x80 != 0 {
		return fmt.Errorf("the revision %x cannot be", key)
	}
	if len(value) == 0 {
		return nil // the mark of a restored store
	}
	var kv mvccpb.KeyValue
	if err := proto.Unmarshal(value, &kv); err != nil {
		return fmt.Errorf("a record cannot be read: %w", err)
	}
	rev := mvcc.BytesToRev(key).Main
	switch {
	case len(kv.Key) == 0:
		return fmt.Errorf("the record of revision %d has no key", rev)
	case mvcc.IsTombstone(key):
	case kv.ModRevision != rev, kv.CreateRevision > rev, kv.CreateRevision < 1, kv.Version < 1,
		(kv.Version == 1) != (kv.CreateRevision == rev):
		return fmt.Errorf("the record of revision %d says that it is of %d (created at %d, version %d)",
			rev, kv.ModRevision, kv.CreateRevision, kv.Version)
	}
	return nil
}

// logCheck reads the log's segments one after the other.
type logCheck struct {
	crc       uint32 // at the end of the segment before
	lastIndex uint64
	commit    uint64
	metadata  string
}

// checkLog checks each record's checksum, that no entry is missing, and that the log
// reaches as far as the database.
func checkLog(dir string, applied uint64) (err error) {
	names, err := filepath.Glob(filepath.Join(dir, "*.wal"))
	if err != nil || len(names) == 0 {
		return err // etcd says what that means
	}
	var c logCheck
	for i, path := range names {
		if err := c.segment(path, i == len(names)-1); err != nil {
			return damaged(path, err)
		}
	}
	if last := names[len(names)-1]; c.lastIndex < max(applied, c.commit) {
		return damaged(last, fmt.Errorf("it ends with entry %d, and entry %d was acknowledged", c.lastIndex, max(applied, c.commit)))
	}
	return nil
}

func (c *logCheck) segment(path string, isLast bool) (err error) {
	defer func() {
		if p := recover(); p != nil { // how etcd says that it cannot read a record
			err = fmt.Errorf("%v", p)
		}
	}()
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	d := wal.NewDecoder(fileutil.NewFileReader(f))
	for n := 0; ; n++ {
		var rec walpb.Record
		err := d.Decode(&rec)
		switch {
		case errors.Is(err, io.EOF):
			c.crc = d.LastCRC()
			return c.afterEnd(f, d.LastOffset(), isLast)
		case errors.Is(err, io.ErrUnexpectedEOF) && isLast:
			return nil // a write that was never acknowledged; etcd cuts it off
		case err != nil:
			return err
		}
		if rec.GetType() == wal.CrcType {
			if have := d.LastCRC(); n == 0 && c.crc != 0 && rec.GetCrc() != c.crc || n > 0 && have != rec.GetCrc() {
				return wal.ErrCRCMismatch
			}
			d.UpdateCRC(rec.GetCrc())
		} else if n == 0 {
			return errors.New("its beginning is missing")
		}
		if err := c.record(&rec); err != nil {
			return err
		}
	}
}

func (c *logCheck) record(rec *walpb.Record) error {
	switch rec.GetType() {
	case wal.EntryType:
		e := wal.MustUnmarshalEntry(rec.Data)
		if c.lastIndex != 0 && e.GetIndex() > c.lastIndex+1 {
			return fmt.Errorf("entry %d follows entry %d", e.GetIndex(), c.lastIndex)
		}
		if e.GetIndex() == 0 || e.GetTerm() == 0 || e.GetType() > raftpb.EntryConfChangeV2 {
			return errors.New("an entry that cannot be")
		}
		c.lastIndex = e.GetIndex()
	case wal.StateType:
		c.commit = max(c.commit, wal.MustUnmarshalState(rec.Data).GetCommit())
	case wal.MetadataType:
		if c.metadata != "" && c.metadata != string(rec.Data) {
			return wal.ErrMetadataConflict
		}
		c.metadata = string(rec.Data)
	case wal.SnapshotType:
		var s walpb.Snapshot
		if err := proto.Unmarshal(rec.Data, &s); err != nil {
			return err
		}
		// What a leader sent takes the place of entries that never came.
		c.lastIndex = max(c.lastIndex, s.GetIndex())
	case wal.CrcType:
	default:
		return fmt.Errorf("a record of unknown kind %d", rec.GetType())
	}
	return nil
}

// afterEnd looks for records behind what looks like the end: a segment's rest is
// zeros.
func (c *logCheck) afterEnd(f *os.File, end int64, isLast bool) error {
	if _, err := f.Seek(end, io.SeekStart); err != nil {
		return err
	}
	r := bufio.NewReaderSize(f, 64<<10)
	for {
		b, err := r.ReadByte()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		case b != 0 && !isLast:
			return errors.New("records behind its end")
		case b != 0:
			return nil // of a write that was torn when the machine stopped
		}
	}
}
