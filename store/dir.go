package store

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/weftmesh/weft"
)

// format is the number of the layout that this program reads and writes: etcd's
// member directory, the checksum behind each value, and the keys of the rooms above.
// A change that another program would misread makes it greater.
const format = 2

// claimDir makes the directory ready and takes it for this process. Closing the
// returned file gives it free again.
func claimDir(dir string) (lock *os.File, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, dirError(dir, err)
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		return nil, dirError(dir, err)
	}
	lock, err = lockDir(dir)
	if err != nil {
		return nil, err
	}
	if err := checkFormat(dir); err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return lock, nil
}

// lockDir locks dir/LOCK and writes the pid into it. The lock goes with the
// process, however that ends; the file stays.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "LOCK"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, dirError(dir, err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		holder, readErr := io.ReadAll(io.LimitReader(f, 32))
		closeErr := f.Close()
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, dirError(dir, errors.Join(err, closeErr))
		}
		pid := strings.TrimSpace(string(holder))
		if readErr != nil || pid == "" {
			pid = "unknown"
		}
		return nil, weft.Errorf(weft.Conflict, "open", "store "+dir,
			"process %s is using it; stop that process, or choose another data directory", pid)
	}
	if err := writePID(f); err != nil {
		return nil, dirError(dir, errors.Join(err, f.Close()))
	}
	return f, nil
}

// writePID writes first and cuts then: on a full disk the file's block is not to be
// given back.
func writePID(f *os.File) error {
	pid := strconv.Itoa(os.Getpid()) + "\n"
	if _, err := f.WriteAt([]byte(pid), 0); err != nil {
		return err
	}
	return f.Truncate(int64(len(pid)))
}

// checkFormat reads dir/FORMAT, or writes it into a new directory. It is on disk
// before etcd writes anything, so state without it is not ours.
func checkFormat(dir string) error {
	path := filepath.Join(dir, "FORMAT")
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Lstat(filepath.Join(dir, "member")); err == nil {
			return weft.Errorf(weft.Invalid, "open", "store "+dir,
				"it holds state but no FORMAT file, so it is not weft's; choose another data directory")
		}
		return writeFormat(dir, path)
	}
	if err != nil {
		return dirError(dir, err)
	}
	have, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || have < 1 {
		return weft.Errorf(weft.Invalid, "open", "store "+dir,
			"its FORMAT file holds %.20q, not a number; restore it from a backup", b)
	}
	if have != format {
		return weft.Errorf(weft.Invalid, "open", "store "+dir,
			"it has format %d, and this weft (%s) reads format %d; use the weft that wrote it, or another data directory",
			have, weft.Version, format)
	}
	return nil
}

func writeFormat(dir, path string) error {
	return writeFile(dir, path, fmt.Sprintf("%d\n", format))
}

// writeFile makes the file whole or not at all.
func writeFile(dir, path, content string) error {
	tmp := path + ".new"
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return dirError(dir, err)
	}
	_, err = f.WriteString(content)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(tmp, path)
	}
	if err == nil {
		err = syncDir(dir)
	}
	if err != nil {
		return dirError(dir, err)
	}
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func dirError(dir string, err error) error {
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, syscall.EROFS) {
		err = fmt.Errorf("%w; make it writable for this user, or choose another data directory", err)
	}
	return &weft.Error{Kind: weft.Unavailable, Op: "open", Thing: "store " + dir, Err: err}
}

// memberOf returns the name of the member that the directory belongs to, and keeps
// it there. It refuses settings that do not fit: without its peers a member of a
// cluster cannot do anything.
func (s *Store) memberOf(c *Cluster) (name string, err error) {
	thing := "store " + s.dir
	path := filepath.Join(s.dir, "NAME")
	b, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", dirError(s.dir, err)
	}
	kept := strings.TrimSpace(string(b))
	switch {
	case c == nil && kept == "":
		return aloneName, nil
	case c == nil:
		return "", weft.Errorf(weft.Invalid, "open", thing,
			"it belongs to member %s of a cluster; start it with the cluster's settings", kept)
	case kept == "" && c.Name == "":
		return "", weft.Errorf(weft.Invalid, "open", thing, "a member of a cluster needs a name")
	case kept == "":
		return c.Name, writeFile(s.dir, path, c.Name+"\n")
	case c.Name != "" && c.Name != kept:
		return "", weft.Errorf(weft.Conflict, "open", thing,
			"it belongs to member %s, not to %s", kept, c.Name)
	}
	return kept, nil
}
