package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"time"
)

// A disk that is full must not meet etcd: it would end in the middle of a write.
// Commits are refused while there is still room for those that are under way. What
// those need is taken beforehand, so that no neighbour on the disk can have it: the
// log's segments, which etcd preallocates, and the database's next pages.
const (
	// keepFree is where commits begin to be refused: two segments of the log (4 MB
	// each), etcd's snapshots, and what is under way.
	keepFree = 32 << 20
	// resumeFree is where they are taken again: far enough from keepFree that it
	// does not alternate.
	resumeFree = keepFree + 8<<20
	// reserveBytes is the size of a file that gives its room back when the disk is
	// all but full, so that the store can still be closed and opened.
	reserveBytes = 12 << 20
	// openFree is what etcd needs to start: a segment of the log, and as much again.
	openFree = 8 << 20
	// aheadBytes of the database's file are allocated beyond its pages; more than
	// etcd writes between two looks.
	aheadBytes = 16 << 20
	// spaceEvery is the time between two looks.
	spaceEvery = 50 * time.Millisecond
	// moveEvery bounds how often a leader without room hands over.
	moveEvery = 10 * time.Second
)

// space knows the room on the disk.
type space struct {
	dir string // constant

	low     atomic.Bool // commits are refused
	noAhead atomic.Bool // the database's next pages could not be had
	broken  atomic.Bool // etcd's log cannot go on, though space may be back

	// of the goroutine that looks
	database os.FileInfo // the file that allocated is of
	ahead    int64       // bytes that are allocated
	moved    time.Time
}

// free asks the file system. 0 bytes with an error are no answer.
func (sp *space) free() (int64, error) {
	var st syscall.Statfs_t
	if err := syscall.Statfs(sp.dir, &st); err != nil {
		return 0, err
	}
	return int64(st.Bavail) * st.Bsize, nil
}

// check says whether a commit may begin.
func (sp *space) check() error {
	free, err := sp.free()
	if err != nil {
		return nil // the disk will say it itself
	}
	switch low := sp.low.Load(); {
	case !low && free < keepFree:
		sp.low.Store(true)
	case low && free >= resumeFree:
		sp.low.Store(false)
	}
	switch {
	case sp.broken.Load():
		return fmt.Errorf("%w: that of %s was when the log needed room; free some, and start the server again", ErrNoRoom, sp.dir)
	case sp.low.Load() || sp.noAhead.Load():
		return fmt.Errorf("%w: that of %s has %d MB left, and %d MB are kept for what is under way; free some: writes go on by themselves at %d MB",
			ErrNoRoom, sp.dir, free>>20, keepFree>>20, resumeFree>>20)
	}
	return nil
}

// prepare makes room for a store that is opened on a full disk. Without any, etcd would
// end in the middle of its start.
func (sp *space) prepare() error {
	free, err := sp.free()
	if err == nil && free < reserveBytes {
		if err = sp.dropReserve(); err == nil {
			free, err = sp.free()
		}
	}
	if err == nil && free < openFree {
		err = fmt.Errorf("the disk of %s has %d MB left, and %d MB are needed to open the store; free some", sp.dir, free>>20, openFree>>20)
	}
	if err != nil {
		return dirError(sp.dir, err)
	}
	return nil
}

func (sp *space) reserve() string { return filepath.Join(sp.dir, "RESERVE") }

func (sp *space) dropReserve() error {
	if err := os.Remove(sp.reserve()); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// look keeps the reserve and the database's next pages.
func (sp *space) look() error {
	_ = sp.check() // moves the mark
	free, err := sp.free()
	if err != nil {
		return err
	}
	if free < reserveBytes {
		err = sp.dropReserve()
	} else if free > resumeFree+reserveBytes {
		err = allocate(sp.reserve(), 0, reserveBytes, os.O_CREATE)
	}
	aheadErr := sp.goAhead()
	sp.noAhead.Store(errors.Is(aheadErr, syscall.ENOSPC) || errors.Is(aheadErr, syscall.EDQUOT))
	if sp.noAhead.Load() {
		aheadErr = nil // said by check
	}
	return errors.Join(err, aheadErr)
}

// goAhead allocates what the database will grow by, holes included.
func (sp *space) goAhead() error {
	path := databasePath(sp.dir)
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if sp.database == nil || !os.SameFile(sp.database, info) {
		sp.ahead = 0 // etcd replaces the file by what a leader sends, or to shrink it
	}
	sp.database = info
	if sp.ahead >= info.Size()+aheadBytes/2 {
		return nil
	}
	to := info.Size() + aheadBytes
	if err := allocate(path, sp.ahead, to-sp.ahead, 0); err != nil {
		return err
	}
	sp.ahead = to
	return nil
}

// keepSize allocates without making the file longer (FALLOC_FL_KEEP_SIZE).
const keepSize = 1

// allocate does nothing where the file system cannot.
func allocate(path string, from, length int64, flag int) error {
	f, err := os.OpenFile(path, os.O_RDWR|flag, 0o600)
	if err != nil {
		return err
	}
	err = syscall.Fallocate(int(f.Fd()), keepSize, from, length)
	if errors.Is(err, syscall.EOPNOTSUPP) {
		err = nil
	}
	return errors.Join(err, f.Close())
}

// watchSpace looks after the room until the store ends.
func (s *Store) watchSpace() {
	tick := time.NewTicker(spaceEvery)
	defer tick.Stop()
	low := false
	for {
		select {
		case <-s.done:
			return
		case <-tick.C:
		}
		s.lookAtSpace()
		if s.etcdLog.outOfRoom.Load() {
			s.space.broken.Store(true)
		}
		err := s.space.check()
		if (err != nil) != low {
			low = err != nil
			if low {
				s.log.Error("store: writes are refused", "reason", err)
			} else {
				s.log.Info("store: writes go on")
			}
		}
		if low {
			s.leaveToOthers()
		}
	}
}

func (s *Store) lookAtSpace() {
	if err := s.space.look(); err != nil {
		s.log.Debug("store: cannot look after the disk's room", "error", err)
	}
}

// leaveToOthers hands the leadership to a member that may have room.
func (s *Store) leaveToOthers() {
	if s.peers == nil || !s.IsLeader() || len(s.Members()) < 2 || time.Since(s.space.moved) < moveEvery {
		return
	}
	s.space.moved = time.Now()
	if err := s.MoveLeader(context.Background()); err != nil {
		s.log.Debug("store: the leadership stays", "error", err)
	}
}
