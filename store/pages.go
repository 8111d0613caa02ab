package store

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"os"
)

// etcd's database is a file of bbolt: a B+tree of pages. bbolt trusts what is in
// them, and a damaged one makes it read beyond its memory, which ends the process.
// So pages are read here first, as bytes.
//
// A page has a header: its number (8 bytes), flags (2), how many elements (2), how
// many pages more it covers (4). Then elements of 16 bytes come, which tell where
// their keys and values lie. Numbers are in the machine's byte order.
const (
	pageHeader  = 16
	pageElement = 16
	flagBranch  = 0x01
	flagLeaf    = 0x02

	metaMagic   = 0xED0CDAED
	metaVersion = 2
	metaSum     = 56 // where the checksum of what is before it lies

	elementBucket = 0x01
	bucketHeader  = 16
	// maxDepth of the tree; with two elements in each page it would take all memory.
	maxDepth = 64
)

var native = binary.NativeEndian

// pages is a walk through a database.
type pages struct {
	file   *os.File
	size   int                                          // of a page
	high   uint64                                       // pages from here on are not in use
	seen   []bool                                       // by number of page
	record func(bucket string, key, value []byte) error // they are only there during the call
	levels [maxDepth][]byte                             // buffers
}

// walkPages calls record for each record of each bucket, in order.
func walkPages(file *os.File, record func(bucket string, key, value []byte) error) error {
	p := &pages{file: file, record: record}
	root, err := p.meta()
	if err != nil {
		return err
	}
	info, err := file.Stat()
	if err != nil {
		return err
	}
	if need := int64(p.high) * int64(p.size); info.Size() < need || p.high > 1<<40 {
		return fmt.Errorf("it has %d bytes; its pages need %d", info.Size(), need)
	}
	p.seen = make([]bool, p.high)
	return p.visit(root, "", 0, nil, nil)
}

// meta finds the newer one of two valid beginnings.
func (p *pages) meta() (root uint64, err error) {
	var txid uint64
	found := false
	// The second one lies a page behind the first, and the page's size is in them.
	for _, at := range []int64{0, int64(os.Getpagesize())} {
		b := make([]byte, pageHeader+metaSum+8)
		if _, err := p.file.ReadAt(b, at); err != nil {
			continue
		}
		m := b[pageHeader:]
		sum := fnv.New64a()
		_, _ = sum.Write(m[:metaSum])
		if native.Uint32(m) != metaMagic || native.Uint32(m[4:]) != metaVersion || native.Uint64(m[metaSum:]) != sum.Sum64() {
			continue
		}
		if tx := native.Uint64(m[48:]); !found || tx > txid {
			found, txid = true, tx
			p.size, root, p.high = int(native.Uint32(m[8:])), native.Uint64(m[16:]), native.Uint64(m[40:])
		}
	}
	if !found {
		return 0, errors.New("neither of its two beginnings is valid")
	}
	if p.size < 512 || p.size > 1<<20 {
		return 0, fmt.Errorf("its pages have %d bytes", p.size)
	}
	return root, nil
}

// visit checks a page and all below it: its keys begin with from, and are less than
// to, where these are not nil.
func (p *pages) visit(id uint64, bucket string, depth int, from, to []byte) error {
	b, err := p.read(id, depth)
	if err != nil {
		return err
	}
	if err := p.visitBytes(b, bucket, depth, from, to); err != nil {
		return fmt.Errorf("page %d: %w", id, err)
	}
	return nil
}

func (p *pages) read(id uint64, depth int) ([]byte, error) {
	if depth == maxDepth {
		return nil, errors.New("its pages form a loop")
	}
	if id < 2 || id >= p.high {
		return nil, fmt.Errorf("page %d is not there", id)
	}
	b := append(p.levels[depth][:0], make([]byte, p.size)...)
	if _, err := p.file.ReadAt(b, int64(id)*int64(p.size)); err != nil {
		return nil, err
	}
	if native.Uint64(b) != id {
		return nil, fmt.Errorf("page %d says that it is page %d", id, native.Uint64(b))
	}
	more := uint64(native.Uint32(b[12:]))
	if id+more >= p.high {
		return nil, fmt.Errorf("page %d covers %d more, beyond the end", id, more)
	}
	for i := id; i <= id+more; i++ {
		if p.seen[i] {
			return nil, fmt.Errorf("page %d is in use twice", i)
		}
		p.seen[i] = true
	}
	if more > 0 {
		b = append(b, make([]byte, int(more)*p.size)...)
		if _, err := p.file.ReadAt(b, int64(id)*int64(p.size)); err != nil && !errors.Is(err, io.EOF) {
			return nil, err
		}
	}
	p.levels[depth] = b
	return b, nil
}

func (p *pages) visitBytes(b []byte, bucket string, depth int, from, to []byte) error {
	flags, count := native.Uint16(b[8:]), int(native.Uint16(b[10:]))
	if flags != flagBranch && flags != flagLeaf {
		return fmt.Errorf("its kind %#x is unknown", flags)
	}
	if pageHeader+count*pageElement > len(b) {
		return fmt.Errorf("it has %d elements, too many", count)
	}
	if count == 0 && len(b) >= p.size && bucket != "" { // a bucket's only page lies elsewhere when it is empty
		return errors.New("it has no elements")
	}
	var before []byte
	end := pageHeader + count*pageElement // where the next key lies
	for i := range count {
		at := pageHeader + i*pageElement
		key, value, err := element(b, at, end, flags)
		if err != nil {
			return err
		}
		end += len(key) + len(value)
		switch {
		case i == 0 && from != nil && bytes.Compare(key, from) < 0,
			i > 0 && bytes.Compare(key, before) <= 0,
			to != nil && bytes.Compare(key, to) >= 0:
			return errors.New("its keys are out of order")
		}
		before = key
		if flags == flagBranch {
			err = p.child(b, i, count, key, end, bucket, depth, to)
		} else {
			err = p.leaf(bucket, native.Uint32(b[at:]), key, value, depth)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// element cuts key and value out of a page. They lie where those before them end.
func element(b []byte, at, start int, flags uint16) (key, value []byte, err error) {
	var pos, klen, vlen uint64
	if flags == flagBranch {
		pos, klen = uint64(native.Uint32(b[at:])), uint64(native.Uint32(b[at+4:]))
	} else {
		pos, klen, vlen = uint64(native.Uint32(b[at+4:])), uint64(native.Uint32(b[at+8:])), uint64(native.Uint32(b[at+12:]))
	}
	if uint64(at)+pos != uint64(start) || klen+vlen > uint64(len(b)-start) {
		return nil, nil, errors.New("an element does not follow the one before it")
	}
	b = b[start:]
	return b[:klen], b[klen : klen+vlen], nil
}

// child is the page below element i of a branch, whose key is from and ends at end.
func (p *pages) child(b []byte, i, count int, from []byte, end int, bucket string, depth int, to []byte) error {
	at := pageHeader + i*pageElement
	if i+1 < count {
		next, _, err := element(b, at+pageElement, end, flagBranch)
		if err != nil {
			return err
		}
		to = next
	}
	return p.visit(native.Uint64(b[at+8:]), bucket, depth+1, from, to)
}

func (p *pages) leaf(bucket string, flags uint32, key, value []byte, depth int) error {
	switch {
	case flags == 0:
		return p.record(bucket, key, value)
	case flags != elementBucket:
		return fmt.Errorf("an element of kind %#x", flags)
	case bucket != "" || !bucketNames[string(key)] || len(value) < bucketHeader:
		return errors.New("a bucket that cannot be")
	}
	if root := native.Uint64(value); root != 0 {
		return p.visit(root, string(key), depth+1, nil, nil)
	}
	inline := value[bucketHeader:] // a small bucket is a page within the value
	if len(inline) < pageHeader || native.Uint16(inline[8:]) != flagLeaf {
		return errors.New("a bucket that cannot be")
	}
	return p.visitBytes(inline, string(key), depth+1, nil, nil)
}
