package store

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
)

// The files are checked before etcd sees them. Close writes their checksums into
// SUMS; a store that was closed is checked by these. While a store is open, SUMS says
// so. After a kill, the log is checked by its own checksums and against the database,
// and the database by its structure, its records' checksums (seal), and each key's
// history.

// mend is what to do about damage.
const mend = "restore the store from a backup, or in a cluster join again with an empty directory"

// damaged is a file that cannot be used.
func damaged(path string, err error) error {
	return fmt.Errorf("%s is damaged: %w; %s", path, err, mend)
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// isOpen is what SUMS holds while the store is open.
const isOpen = "open\n"

func sumsPath(dir string) string { return filepath.Join(dir, "SUMS") }

func databasePath(dir string) string { return filepath.Join(dir, "member", "snap", "db") }

func logPath(dir string) string { return filepath.Join(dir, "member", "wal") }

// logFiles are the segments of the log, the oldest one first.
func logFiles(dir string) ([]string, error) {
	return filepath.Glob(filepath.Join(logPath(dir), "*.wal"))
}

// dataFiles are those of which etcd reads anything.
func dataFiles(dir string) ([]string, error) {
	logs, err := logFiles(dir)
	return append(logs, databasePath(dir)), err
}

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
	return writeFile(dir, sumsPath(dir), text.String()+sumLine(text.String()))
}

// sumLine is the last line of SUMS.
func sumLine(text string) string {
	return fmt.Sprintf("%08x\n", crc32.Checksum([]byte(text), castagnoli))
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
	b, err := os.ReadFile(sumsPath(dir))
	if errors.Is(err, fs.ErrNotExist) {
		return checkStructure(dir, false)
	}
	if err != nil {
		return err
	}
	if string(b) == isOpen {
		return checkStructure(dir, true)
	}
	if err := checkSums(dir, string(b)); err != nil {
		return err
	}
	if err := os.Remove(sumsPath(dir)); err != nil {
		return err
	}
	return syncDir(dir)
}

// markOpen is for the next start, should this one not end with Close.
func markOpen(dir string) error { return writeFile(dir, sumsPath(dir), isOpen) }

func checkSums(dir, text string) error {
	end := strings.LastIndexByte(strings.TrimSuffix(text, "\n"), '\n') + 1
	if text[end:] != sumLine(text[:end]) {
		return fmt.Errorf("%s is damaged: its own checksum does not fit; remove this file: the others are then checked by their structure",
			sumsPath(dir))
	}
	listed := make(map[string]bool)
	for line := range strings.Lines(text[:end]) {
		path, err := checkSum(dir, line)
		if err != nil {
			return damaged(path, err)
		}
		listed[path] = true
	}
	files, err := dataFiles(dir)
	if err != nil {
		return err
	}
	for _, path := range files {
		if !listed[path] {
			return damaged(path, errors.New("it was not there when the store was closed"))
		}
	}
	return nil
}

func checkSum(dir, line string) (path string, err error) {
	var want uint32
	var size int64
	var rel string
	if _, err := fmt.Sscanf(line, "%x %d %s\n", &want, &size, &rel); err != nil {
		return sumsPath(dir), err
	}
	path = filepath.Join(dir, rel)
	sum, have, err := sumFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return path, errMissing
	case err != nil:
		return path, err
	case have != size:
		return path, fmt.Errorf("it has %d bytes, and had %d when the store was closed", have, size)
	case sum != want:
		return path, errors.New("its checksum is not that of when the store was closed")
	}
	return path, nil
}

var errMissing = errors.New("it is not there")

// checkStructure is for a store that was not closed. Where none was open before, a
// first start may have been killed.
func checkStructure(dir string, wasOpen bool) error {
	logs, err := logFiles(dir)
	if err != nil {
		return err
	}
	path := databasePath(dir)
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist) && len(logs) == 0 && !wasOpen:
		return nil
	case errors.Is(err, fs.ErrNotExist):
		return damaged(path, errMissing)
	case err != nil:
		return err
	case info.Size() == 0 && len(logs) == 0 && !wasOpen: // etcd makes the database first
		return nil
	}
	var log logCheck
	var logErr error
	var both sync.WaitGroup
	both.Go(func() { logErr = log.read(logs) })
	db, err := checkDatabase(path)
	both.Wait()
	switch {
	case err != nil:
		return damaged(path, err)
	case logErr != nil:
		return logErr
	case len(logs) > 0:
		return log.reaches(db.applied)
	case !wasOpen && db.applied == 0 && db.newest.Main == 1:
		return nil
	}
	return damaged(logPath(dir), errMissing)
}
