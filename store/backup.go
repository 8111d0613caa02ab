package store

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"go.etcd.io/etcd/etcdutl/v3/snapshot"

	"github.com/weftmesh/weft"
)

// A backup is a line that says what it is, a line of JSON (backupHeader), the
// database as etcd keeps it, and the SHA-256 of all that.
const (
	backupMagic = "weft backup 1\n"
	// maxHeader bounds the line of JSON; it has some two hundred bytes.
	maxHeader = 4 << 10
	// restoring is the prefix of directories in which a store is put together.
	restoring = "restoring-"
)

type backupHeader struct {
	Weft     string    `json:"weft"`     // version of the program that wrote it
	Format   int       `json:"format"`   // of the store
	Revision int64     `json:"revision"` // at least
	Time     time.Time `json:"time"`
	Size     int64     `json:"size"` // bytes of the database
}

// Backup writes a snapshot that has every commit which was acknowledged before the
// call. Commits go on meanwhile.
func (s *Store) Backup(ctx context.Context, w io.Writer) error {
	rev, err := s.Barrier(ctx)
	if err != nil {
		return err
	}
	if !s.stay() {
		return s.error("write", "backup", errClosed)
	}
	defer s.work.Done()
	snap := s.server.Backend().Snapshot()
	header, err := json.Marshal(backupHeader{
		Weft: weft.Version, Format: format, Revision: rev, Time: time.Now().UTC(), Size: snap.Size(),
	})
	sum := sha256.New()
	if err == nil {
		out := io.MultiWriter(ctxWriter{ctx, s.done, w}, sum)
		if _, err = fmt.Fprintf(out, "%s%s\n", backupMagic, header); err == nil {
			_, err = snap.WriteTo(out)
		}
	}
	if err = errors.Join(err, snap.Close()); err == nil {
		_, err = w.Write(sum.Sum(nil))
	}
	if err != nil {
		return &weft.Error{Kind: weft.Unavailable, Op: "write", Thing: "backup", Err: err}
	}
	return nil
}

// ctxWriter ends a long copy.
type ctxWriter struct {
	ctx  context.Context
	done <-chan struct{} // ends it too
	w    io.Writer
}

func (c ctxWriter) Write(b []byte) (int, error) {
	select {
	case <-c.done:
		return 0, errClosed
	default:
	}
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.w.Write(b)
}

// ctxReader does the same to a reader.
type ctxReader struct {
	ctx context.Context
	r   io.Reader
}

func (c ctxReader) Read(b []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(b)
}

// Restore makes a store in dir out of a backup, which it checks first: a member that
// is alone, which others can join. Revisions go on far beyond those of the backup,
// so that no client's index is in the future; history begins anew. A directory with
// data is refused, and when anything is wrong dir is left as it was.
func Restore(ctx context.Context, dir string, r io.Reader) (err error) {
	dir, err = filepath.Abs(dir)
	if err != nil {
		return dirError(dir, err)
	}
	_, statErr := os.Lstat(dir)
	lock, err := claimDir(dir)
	if err != nil {
		return err
	}
	defer func() {
		if errors.Is(statErr, os.ErrNotExist) && err != nil {
			err = errors.Join(err, os.RemoveAll(dir))
		}
		err = errors.Join(err, lock.Close())
	}()
	for _, name := range []string{"member", "NAME"} {
		if _, err := os.Lstat(filepath.Join(dir, name)); err == nil {
			return weft.Errorf(weft.Conflict, "restore", "store "+dir, "it has data already; choose an empty directory")
		}
	}
	if err := removeStages(dir); err != nil {
		return err
	}
	stage, err := os.MkdirTemp(dir, restoring)
	if err != nil {
		return dirError(dir, err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(stage)) }()
	path := filepath.Join(stage, "db")
	header, err := unpackBackup(ctxReader{ctx, r}, path)
	if err != nil {
		return &weft.Error{Kind: weft.Invalid, Op: "restore", Thing: "store " + dir, Err: err}
	}
	if _, err := checkDatabase(path); err != nil {
		return &weft.Error{Kind: weft.Invalid, Op: "restore", Thing: "store " + dir, Err: fmt.Errorf("the backup was taken of a damaged store: %w", err)}
	}
	if err := rebuild(path, filepath.Join(stage, "new"), header); err != nil {
		return &weft.Error{Op: "restore", Thing: "store " + dir, Err: err}
	}
	if err := os.Rename(filepath.Join(stage, "new", "member"), filepath.Join(dir, "member")); err != nil {
		return dirError(dir, err)
	}
	if err := syncDir(dir); err != nil {
		return dirError(dir, err)
	}
	return nil
}

// removeStages takes away what a Restore that was killed left behind.
func removeStages(dir string) error {
	entries, err := os.ReadDir(dir)
	for _, e := range entries {
		if err == nil && strings.HasPrefix(e.Name(), restoring) {
			err = os.RemoveAll(filepath.Join(dir, e.Name()))
		}
	}
	if err != nil {
		return dirError(dir, err)
	}
	return nil
}

// unpackBackup writes the database in r to path, when all of r is as it was written.
func unpackBackup(r io.Reader, path string) (h backupHeader, err error) {
	sum := sha256.New()
	in := bufio.NewReader(r)
	line, err := readLine(in, len(backupMagic))
	if err != nil || line != backupMagic {
		return h, errors.New("the file is not a backup of weft")
	}
	text, err := readLine(in, maxHeader)
	if err != nil {
		return h, errors.New("the backup is cut off, or damaged, in its first lines")
	}
	_, _ = io.WriteString(sum, line+text) // a hash takes everything
	if err := json.Unmarshal([]byte(text), &h); err != nil || h.Size <= 0 {
		return h, errors.New("the backup is damaged: its second line cannot be read")
	}
	if h.Format != format {
		return h, fmt.Errorf("the backup has format %d, and this weft (%s) reads format %d; use weft %s",
			h.Format, weft.Version, format, h.Weft)
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return h, err
	}
	n, err := io.CopyN(io.MultiWriter(f, sum), in, h.Size)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); errors.Is(err, io.EOF) {
		return h, fmt.Errorf("the backup is cut off: it has %d of %d bytes", n, h.Size)
	}
	if err != nil {
		return h, err
	}
	rest, err := io.ReadAll(io.LimitReader(in, sha256.Size+1))
	switch {
	case err != nil:
		return h, err
	case len(rest) < sha256.Size:
		return h, errors.New("the backup is cut off: its checksum is missing")
	case len(rest) > sha256.Size:
		return h, errors.New("the backup is damaged: something follows its checksum")
	case !bytes.Equal(rest, sum.Sum(nil)):
		return h, errors.New("the backup is damaged: its checksum does not fit")
	}
	return h, nil
}

// readLine returns a line with its end, of at most so many bytes.
func readLine(r *bufio.Reader, most int) (string, error) {
	var line []byte
	for len(line) < most {
		b, err := r.ReadByte()
		if err != nil {
			return "", err
		}
		if line = append(line, b); b == '\n' {
			return string(line), nil
		}
	}
	return "", errors.New("the line is too long")
}

const (
	// A restored store's revisions begin so far behind those of the backup: more
	// than any store can have made since.
	minBump       = 1_000_000_000
	bumpPerSecond = 100_000
)

// rebuild makes etcd's directory for a member that is alone.
func rebuild(path, dir string, h backupHeader) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("etcd cannot read the backup's database: %v", p)
		}
	}()
	smallSegments()
	age := max(time.Since(h.Time), 0)
	return snapshot.NewV3(newEtcdLog(discardLogger()).zap()).Restore(snapshot.RestoreConfig{
		SnapshotPath: path, SkipHashCheck: true, OutputDataDir: dir,
		Name: aloneName, PeerURLs: []string{nowhere.String()}, InitialCluster: aloneName + "=" + nowhere.String(),
		InitialClusterToken: rand.Text(),
		RevisionBump:        minBump + bumpPerSecond*uint64(age/time.Second), MarkCompacted: true,
	})
}
