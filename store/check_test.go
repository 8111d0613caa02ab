package store

import (
	"bytes"
	"os"
	"strconv"
	"testing"
)

// BenchmarkCheck: what a start costs with 172,000 records of 1.7 KB, in a database of
// some 300 MB, after Close and after a kill.
func BenchmarkCheck(b *testing.B) {
	dir := b.TempDir()
	s := openTest(b, dir)
	value := bytes.Repeat([]byte("0123456789abcdef0"), 100)
	const records, each = 172_000, 500
	for i := 0; i < records; i += each {
		var txn Txn
		for n := range each {
			txn.Put = append(txn.Put, KV{Key: "registry/instance/" + strconv.Itoa(i+n), Value: value})
		}
		if _, err := s.Commit(b.Context(), txn); err != nil {
			b.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		b.Fatal(err)
	}
	info, err := os.Stat(databasePath(dir))
	if err != nil {
		b.Fatal(err)
	}
	sums, err := os.ReadFile(sumsPath(dir))
	if err != nil {
		b.Fatal(err)
	}
	b.Run("closed", func(b *testing.B) {
		b.SetBytes(info.Size())
		for b.Loop() {
			if err := checkSums(dir, string(sums)); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("killed", func(b *testing.B) {
		b.SetBytes(info.Size())
		for b.Loop() {
			if err := checkStructure(dir, true); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("open", func(b *testing.B) {
		for b.Loop() {
			s, err := Open(b.Context(), Config{Dir: dir})
			if err != nil {
				b.Fatal(err)
			}
			b.StopTimer()
			if err := s.Close(); err != nil {
				b.Fatal(err)
			}
			b.StartTimer()
		}
	})
}
