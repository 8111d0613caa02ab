package collect

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/weftmesh/weft"
)

// The store is a list of parts. A part holds what arrived within one hour of the
// clock, or less when it grew to an eighth of the size limit, so that both limits
// are kept by dropping whole parts, which costs the same whatever they hold.
//
//	0 | part(4)                                               → arrival of its first span, Unix seconds (8)
//	1 | part(4) | 't' | trace(16) | span(8)                   → resource, span (see record)
//	1 | part(4) | 'i' | len(1) service | start(8) | trace | span → flags(1), duration(uvarint), name
//
// Numbers are big-endian, so that keys sort by them. Each span is in the index
// twice, under its service and under the empty one, which stands for all.
const (
	keyParts = 0
	keyData  = 1

	keySpan  = 't'
	keyIndex = 'i'
)

const (
	partsPerMaxBytes = 8
	diskReserve      = 64 << 20 // bytes that spans leave free on the disk
)

// flags of an index entry
const flagError = 1

// record is a span on its way into the store.
type record struct {
	trace    [16]byte
	span     [8]byte
	service  string // at most 255 bytes
	name     string // as indexed
	start    uint64 // Unix nanoseconds
	duration uint64 // nanoseconds
	failed   bool
	value    []byte // uvarint length of the resource, resource, span: OTLP protobuf
}

func (r *record) size() int64 {
	const keys = 3*5 + 3*24 + 2*9 + 2*8 // of the span and its two index entries
	return int64(len(r.value) + keys + len(r.service) + 2*len(r.name))
}

// part is a partition of the store; see above.
type part struct {
	id    uint32
	from  time.Time // of arrival
	bytes int64     // written to it since it was opened, before compression
}

// until is when its last span can have arrived.
func (p *part) until() time.Time { return p.from.Truncate(time.Hour).Add(time.Hour) }

type store struct {
	// constant
	dir       string
	db        *pebble.DB
	lock      *pebble.Lock
	disk      vfs.FS
	log       *quietLog
	partBytes int64

	// atomics
	parts     atomic.Pointer[[]part] // by id; replaced, never changed, by the writer
	diskLow   atomic.Bool
	diskAsked atomic.Int64 // when, Unix nanoseconds
}

func openStore(dir string, disk vfs.FS, maxBytes int64, log *slog.Logger) (*store, error) {
	const op = "open span store"
	lock, err := pebble.LockDirectory(dir, disk)
	if err != nil {
		if kindOfFile(err) == weft.Internal {
			return nil, weft.Errorf(weft.Conflict, op, dir, "it is open already, here or in another process: %w", err)
		}
		return nil, weft.Errorf(kindOfFile(err), op, dir, "lock it: %w", err)
	}
	s := &store{dir: dir, lock: lock, disk: disk, log: &quietLog{to: log}, partBytes: maxBytes / partsPerMaxBytes}
	cache := pebble.NewCache(8 << 20)
	defer cache.Unref() // the store holds its own
	s.db, err = pebble.Open(dir, &pebble.Options{
		Cache:              cache,
		FS:                 disk,
		FormatMajorVersion: pebble.FormatNewest,
		Lock:               lock,
		Logger:             s.log,
		EventListener:      &pebble.EventListener{BackgroundError: s.log.background},
		MaxOpenFiles:       256,
		MemTableSize:       4 << 20,
	})
	if err != nil {
		_ = lock.Close() // the failure to open is the one to tell
		return nil, weft.Errorf(weft.Internal, op, dir, "%w", err)
	}
	if err := s.loadParts(); err != nil {
		_ = s.close()
		return nil, weft.Errorf(weft.Internal, op, dir, "read its parts: %w", err)
	}
	return s, nil
}

// close of a broken store leaves pebble as it is, lock and all, until the process
// ends: it holds mutexes that its own Close would wait for.
func (s *store) close() error {
	if why := s.broken(); why != "" {
		return errors.New(why)
	}
	return errors.Join(s.db.Close(), s.lock.Close())
}

// broken says why the store will not write any more; "" when it can.
func (s *store) broken() string {
	if why := s.log.fatal.Load(); why != nil {
		return *why
	}
	return ""
}

// low tells that the disk is so full that spans should not take what is left:
// the registry's state shares it, and pebble does not live through a write that
// fails. The disk is asked once a second.
func (s *store) low() bool {
	now, asked := time.Now().UnixNano(), s.diskAsked.Load()
	if now-asked >= int64(time.Second) && s.diskAsked.CompareAndSwap(asked, now) {
		usage, err := s.disk.GetDiskUsage(s.dir)
		s.diskLow.Store(err == nil && usage.AvailBytes < diskReserve)
	}
	return s.diskLow.Load()
}

// bytes is what the directory takes, but for files that are about to go.
func (s *store) bytes() int64 {
	m := s.db.Metrics()
	return int64(m.WAL.PhysicalSize) + int64(m.Table.Local.LiveSize)
}

func (s *store) loadParts() error {
	it, err := s.db.NewIter(&pebble.IterOptions{LowerBound: []byte{keyParts}, UpperBound: []byte{keyData}})
	if err != nil {
		return err
	}
	defer it.Close()
	var parts []part
	for ok := it.First(); ok; ok = it.Next() {
		if len(it.Key()) != 5 || len(it.Value()) != 8 {
			return fmt.Errorf("unknown key %x", it.Key())
		}
		p := part{id: binary.BigEndian.Uint32(it.Key()[1:])}
		p.from = time.Unix(int64(binary.BigEndian.Uint64(it.Value())), 0)
		size, err := s.db.EstimateDiskUsage(partKey(p.id), partKey(p.id+1))
		if err != nil {
			return err
		}
		p.bytes = int64(size)
		parts = append(parts, p)
	}
	s.parts.Store(&parts)
	return it.Error()
}

// write commits the spans as of now. newPart tells that they began a part.
func (s *store) write(spans []record, now time.Time) (newPart bool, err error) {
	if why := s.broken(); why != "" {
		return false, errors.New(why)
	}
	b := s.db.NewBatch()
	parts := append([]part(nil), *s.parts.Load()...)
	if n := len(parts); n == 0 || parts[n-1].bytes >= s.partBytes ||
		!parts[n-1].from.Truncate(time.Hour).Equal(now.Truncate(time.Hour)) {
		p := part{id: 1, from: now}
		if n > 0 {
			p.id = parts[n-1].id + 1
		}
		parts, newPart = append(parts, p), true
		key := binary.BigEndian.AppendUint32([]byte{keyParts}, p.id)
		if err := b.Set(key, binary.BigEndian.AppendUint64(nil, uint64(now.Unix())), nil); err != nil {
			return false, err
		}
	}
	last := &parts[len(parts)-1]
	for i := range spans {
		if err := s.put(b, last.id, &spans[i]); err != nil {
			return false, err
		}
		last.bytes += spans[i].size()
	}
	if err := s.commit(b); err != nil {
		return false, err
	}
	s.parts.Store(&parts)
	return newPart, nil
}

// commit commits and closes the batch, on a store that may break: pebble panics
// when its log cannot be written, or reports that to its logger only. It holds on
// to the batch then.
func (s *store) commit(b *pebble.Batch) (err error) {
	defer func() {
		if r := recover(); r != nil {
			s.log.Fatalf("%v", r)
		}
		if why := s.broken(); why != "" {
			err = errors.New(why)
		} else {
			err = errors.Join(err, b.Close())
		}
	}()
	return b.Commit(pebble.NoSync)
}

func (s *store) put(b *pebble.Batch, id uint32, r *record) error {
	key := append(partKey(id), keySpan)
	key = append(append(key, r.trace[:]...), r.span[:]...)
	if err := b.Set(key, r.value, nil); err != nil {
		return err
	}
	var flags byte
	if r.failed {
		flags |= flagError
	}
	value := append(binary.AppendUvarint([]byte{flags}, r.duration), r.name...)
	for _, service := range []string{"", r.service} {
		key = binary.BigEndian.AppendUint64(indexKey(id, service), r.start)
		key = append(append(key, r.trace[:]...), r.span[:]...)
		if err := b.Set(key, value, nil); err != nil {
			return err
		}
	}
	return nil
}

// sweep drops parts whose last span arrived before the given time, and the
// oldest while the directory takes more than maxBytes. The newest part stays:
// it is no more than an eighth of the limit.
func (s *store) sweep(before time.Time, maxBytes int64) error {
	for {
		parts := *s.parts.Load()
		if len(parts) == 0 || s.broken() != "" {
			return nil
		}
		expired := !parts[0].until().After(before)
		if !expired && (len(parts) == 1 || s.bytes() <= maxBytes) {
			return nil
		}
		if err := s.drop(parts[0].id); err != nil {
			return fmt.Errorf("drop part %d: %w", parts[0].id, err)
		}
		rest := parts[1:]
		s.parts.Store(&rest)
	}
}

// drop excises the part's data first: a crash in between leaves an empty part.
func (s *store) drop(id uint32) error {
	err := s.db.Excise(context.Background(), pebble.KeyRange{Start: partKey(id), End: partKey(id + 1)})
	if err != nil {
		return err
	}
	b := s.db.NewBatch()
	if err := b.Delete(binary.BigEndian.AppendUint32([]byte{keyParts}, id), nil); err != nil {
		return err
	}
	return s.commit(b)
}

func partKey(id uint32) []byte {
	return binary.BigEndian.AppendUint32(append(make([]byte, 0, 64), keyData), id)
}

func indexKey(id uint32, service string) []byte {
	key := append(partKey(id), keyIndex, byte(len(service)))
	return append(key, service...)
}

// quietLog passes on what an operator should know. Fatalf does not end the
// process, as pebble expects it to: from then on the store is broken, and nothing
// is written to it any more.
type quietLog struct {
	to    *slog.Logger
	fatal atomic.Pointer[string]
}

func (l *quietLog) Infof(string, ...any) {}

func (l *quietLog) Errorf(format string, args ...any) {
	l.to.Warn("span store", "error", fmt.Sprintf(format, args...))
}

// background is told of a flush or compaction that failed. Pebble tries it again
// at once and for ever, hence the pause.
func (l *quietLog) background(err error) {
	l.Errorf("%v", err)
	time.Sleep(100 * time.Millisecond)
}

func (l *quietLog) Fatalf(format string, args ...any) {
	why := fmt.Sprintf(format, args...)
	if l.fatal.CompareAndSwap(nil, &why) {
		l.to.Error("span store cannot go on; it refuses spans until the restart", "error", why)
	}
}
