package store

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"

	"go.etcd.io/etcd/client/pkg/v3/fileutil"
	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.etcd.io/etcd/server/v3/storage/wal/walpb"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// frameHead is the length that stands before each record of the log.
const frameHead = 8

// maxTerm is more than elections can come to. Members' ids are greater.
const maxTerm = 1 << 40

// logCheck reads the log's segments one after the other. It checks each record's
// checksum, and that no entry is missing.
type logCheck struct {
	files     []string
	first     uint64 // index with which the oldest segment begins; 0: the beginning of all
	crc       uint32 // at the end of the segment before
	lastIndex uint64
	commit    uint64
	metadata  []byte
	snapshot  int64 // index of the newest one, with which etcd begins; -1: none
}

func (c *logCheck) read(files []string) error {
	c.files, c.snapshot = files, -1
	var number, index uint64
	for i, path := range files {
		before := number
		if _, err := fmt.Sscanf(filepath.Base(path), "%x-%x.wal", &number, &index); err != nil {
			return damaged(path, errors.New("its name is not that of a part of the log"))
		}
		if i > 0 && number != before+1 {
			return damaged(path, fmt.Errorf("it is part %d of the log, and part %d is not there", number, before+1))
		}
		if i == 0 && index > 0 {
			c.lastIndex, c.first = index-1, index
		}
		if err := c.segment(path, i == len(files)-1); err != nil {
			return damaged(path, err)
		}
	}
	return nil
}

// reaches checks that the log goes on where the database ends, and ends behind all that
// was acknowledged.
func (c *logCheck) reaches(applied uint64) error {
	oldest, newest := c.files[0], c.files[len(c.files)-1]
	if c.snapshot < int64(c.first) {
		return damaged(oldest, errors.New("what came before it is not there"))
	}
	if c.first > applied+1 {
		return damaged(oldest, fmt.Errorf("it begins with entry %d, and the database ends with %d", c.first, applied))
	}
	if need := max(applied, c.commit); c.lastIndex < need {
		return damaged(newest, fmt.Errorf("it ends with entry %d, and entry %d was acknowledged", c.lastIndex, need))
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
	if isLast {
		if err := checkLength(f); err != nil {
			return err
		}
	}
	d := wal.NewDecoder(fileutil.NewFileReader(f))
	for n := 0; ; n++ {
		var rec walpb.Record
		crc := d.LastCRC()
		err := d.Decode(&rec)
		switch {
		case n == 0 && (err != nil || rec.GetType() != wal.CrcType):
			return errors.New("its beginning is missing")
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF) && isLast:
			c.crc = crc
			return checkEnd(f, d.LastOffset(), crc, isLast)
		case err != nil:
			return err
		}
		if n == 0 {
			if c.crc != 0 && rec.GetCrc() != c.crc {
				return wal.ErrCRCMismatch
			}
			d.UpdateCRC(rec.GetCrc())
		} else if err := c.record(&rec, n); err != nil {
			return err
		}
	}
}

// checkLength: the part of the log that is written to has its full length from the
// beginning, unless etcd cut off a write that was torn.
func checkLength(f *os.File) error {
	info, err := f.Stat()
	if err != nil || info.Size() >= wal.SegmentSizeBytes {
		return err
	}
	if _, err := os.Stat(f.Name() + ".broken"); err == nil {
		return nil
	}
	return fmt.Errorf("it has %d bytes; it had %d from its beginning", info.Size(), wal.SegmentSizeBytes)
}

// record: a record's kind has no checksum, so its content must fit it.
func (c *logCheck) record(rec *walpb.Record, n int) error {
	if (n == 1) != (rec.GetType() == wal.MetadataType) {
		return fmt.Errorf("record %d is of kind %d", n, rec.GetType())
	}
	switch rec.GetType() {
	case wal.MetadataType:
		if c.metadata != nil && !bytes.Equal(c.metadata, rec.Data) {
			return wal.ErrMetadataConflict
		}
		c.metadata = rec.Data
	case wal.EntryType:
		e := wal.MustUnmarshalEntry(rec.Data)
		if e.GetIndex() == 0 || e.GetTerm() == 0 || e.GetTerm() > maxTerm || e.GetType() > raftpb.EntryConfChangeV2 || hasUnknown(e) {
			return errors.New("an entry that cannot be")
		}
		if e.GetIndex() > c.lastIndex+1 {
			return fmt.Errorf("entry %d follows entry %d", e.GetIndex(), c.lastIndex)
		}
		c.lastIndex = e.GetIndex()
	case wal.StateType:
		s := wal.MustUnmarshalState(rec.Data)
		if s.GetTerm() == 0 || s.GetTerm() > maxTerm || hasUnknown(s) {
			return errors.New("a state that cannot be")
		}
		c.commit = max(c.commit, s.GetCommit())
	case wal.SnapshotType:
		var s walpb.Snapshot
		if err := proto.Unmarshal(rec.Data, &s); err != nil {
			return err
		}
		if s.GetTerm() > maxTerm || hasUnknown(&s) {
			return errors.New("a snapshot that cannot be")
		}
		// What a leader sent takes the place of entries that never came.
		c.lastIndex = max(c.lastIndex, s.GetIndex())
		c.snapshot = max(c.snapshot, int64(s.GetIndex()))
	default:
		return fmt.Errorf("a record of unknown kind %d", rec.GetType())
	}
	return nil
}

func hasUnknown(m proto.Message) bool { return len(m.ProtoReflect().GetUnknown()) > 0 }

// checkEnd looks behind what looks like the end of a segment: the rest is zeros. Only
// in the last one there may be rubbish, of a write that was torn when the machine
// stopped; it was never acknowledged, and etcd cuts it off. But where a whole record
// stands, its length is what is damaged.
func checkEnd(f *os.File, end int64, crc uint32, isLast bool) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	rest := make([]byte, min(info.Size()-end, 2*maxTxnBytes))
	if _, err := f.ReadAt(rest, end); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if len(bytes.TrimLeft(rest, "\x00")) == 0 {
		return nil
	}
	if !isLast || isRecord(rest[min(frameHead, len(rest)):], crc) {
		return fmt.Errorf("the length of the record at byte %d is not its own", end)
	}
	return nil
}

// isRecord says whether b begins with a record whose checksum fits.
func isRecord(b []byte, crc uint32) bool {
	kind, n := varintField(b, 1)
	want, m := varintField(b[n:], 2)
	if n == 0 || m == 0 || kind == 0 {
		return false
	}
	b = b[n+m:]
	var data []byte
	if number, kind, n := protowire.ConsumeTag(b); n > 0 && number == 3 && kind == protowire.BytesType {
		if data, m = protowire.ConsumeBytes(b[n:]); m < 0 {
			return false
		}
	}
	return crc32.Update(crc, castagnoli, data) == uint32(want)
}

// varintField returns a field that b begins with, and its length; 0 if it is another.
func varintField(b []byte, want protowire.Number) (v uint64, length int) {
	number, kind, n := protowire.ConsumeTag(b)
	if n <= 0 || number != want || kind != protowire.VarintType {
		return 0, 0
	}
	v, m := protowire.ConsumeVarint(b[n:])
	if m < 0 {
		return 0, 0
	}
	return v, n + m
}
