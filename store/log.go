package store

import (
	"context"
	"log/slog"
	"runtime"
	"sync"
	"sync/atomic"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// etcdLog hands etcd's log records from warnings on to a slog.Logger, and learns
// from them what etcd says in no other way.
//
// Until the store is open, warnings go out as debug records: they are etcd's
// remarks about its configuration, which is not the user's. While the store is
// closed, everything does: etcd complains about the ends of connections.
//
// A record that etcd means to be fatal ends its goroutine while the store is being
// opened, so that Open can return it, and so it does afterwards when it is about
// etcd's log, of which nothing else depends: see diskRecords. Any other one ends the
// process (see the package comment).
type etcdLog struct {
	out       *slog.Logger
	isOpen    atomic.Bool
	closes    atomic.Bool
	outOfRoom atomic.Bool   // there will be no next segment of the log
	why       atomic.Value  // string: the last reason to end that etcd gave
	ended     chan struct{} // closed by the first fatal record
	end       sync.Once
}

func newEtcdLog(out *slog.Logger) *etcdLog {
	return &etcdLog{out: out, ended: make(chan struct{})}
}

// opened ends the leniency of the start.
func (l *etcdLog) opened() { l.isOpen.Store(true) }

func (l *etcdLog) closing() { l.closes.Store(true) }

func (l *etcdLog) zap() *zap.Logger {
	return zap.New(zapCore{l, nil},
		zap.WithFatalHook(endHook{l, zapcore.WriteThenFatal}), zap.WithPanicHook(endHook{l, zapcore.WriteThenPanic}))
}

// endHook decides what follows a record by which etcd wants to end.
type endHook struct {
	log       *etcdLog
	otherwise zapcore.CheckWriteAction
}

func (h endHook) OnWrite(e *zapcore.CheckedEntry, fields []zapcore.Field) {
	if h.log.isOpen.Load() && !diskRecords[e.Message] {
		h.otherwise.OnWrite(e, fields)
	}
	h.log.end.Do(func() {
		h.log.why.Store(e.Message + ": " + errorText(fields))
		close(h.log.ended)
	})
	runtime.Goexit()
}

// diskRecords are those by which etcd's log or its snapshots fail. The goroutines
// that write them hold no lock, and what was acknowledged is safe: it is enough that
// they end, and nothing is acknowledged any more.
var diskRecords = map[string]bool{
	"failed to save Raft snapshot":               true,
	"failed to save Raft hard state and entries": true,
	"failed to sync Raft snapshot":               true,
	"failed to release Raft wal":                 true,
	"failed to save snapshot":                    true,
	"failed to release wal":                      true,
}

func errorText(fields []zapcore.Field) string {
	for _, f := range fields {
		if err, ok := f.Interface.(error); ok {
			return err.Error()
		}
	}
	return "no reason is given"
}

// reason is why etcd has ended, or empty.
func (l *etcdLog) reason() string {
	why, _ := l.why.Load().(string)
	return why
}

// serverError is the record by which etcd says why it ends.
const serverError = "server error"

// noSegment is the record by which etcd says that it could not preallocate the next
// segment of its log. It does not try again: the log ends with the present one.
const noSegment = "failed to preallocate space when creating a new WAL"

// notErrors are records of level error that tell of nothing wrong.
var notErrors = map[string]bool{
	// In each new store etcd looks for its storage version before its first write to
	// the database, and again seconds later.
	"failed to update storage version": true,
	// A new member asks for its vote until it gets it.
	"rejecting promote learner: learner is not ready": true,
}

// zapCore is the zapcore.Core of an etcdLog.
type zapCore struct {
	log  *etcdLog
	with []zapcore.Field
}

func (c zapCore) Enabled(l zapcore.Level) bool { return l >= zapcore.WarnLevel }

func (c zapCore) With(fields []zapcore.Field) zapcore.Core {
	return zapCore{c.log, append(c.with[:len(c.with):len(c.with)], fields...)}
}

func (c zapCore) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) {
		return ce.AddCore(e, c)
	}
	return ce
}

func (c zapCore) Write(e zapcore.Entry, fields []zapcore.Field) error {
	switch e.Message {
	case serverError:
		c.log.why.Store(errorText(fields))
	case noSegment:
		c.log.outOfRoom.Store(true)
	}
	level := slog.LevelError
	if e.Level == zapcore.WarnLevel {
		level = slog.LevelWarn
	}
	switch {
	case e.Level == zapcore.WarnLevel && !c.log.isOpen.Load(), notErrors[e.Message], c.log.closes.Load():
		level = slog.LevelDebug
	}
	enc := zapcore.NewMapObjectEncoder()
	for _, f := range c.with {
		f.AddTo(enc)
	}
	for _, f := range fields {
		f.AddTo(enc)
	}
	attrs := make([]slog.Attr, 0, len(enc.Fields))
	for k, v := range enc.Fields {
		attrs = append(attrs, slog.Any(k, v))
	}
	c.log.out.LogAttrs(context.Background(), level, "etcd: "+e.Message, attrs...)
	return nil
}

func (c zapCore) Sync() error { return nil }
