package store

import (
	"context"
	"log/slog"
	"sync/atomic"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// etcdLog hands etcd's log records from warnings on to a slog.Logger.
//
// Until the store is open, warnings go out as debug records: they are etcd's
// remarks about its configuration, which is not the user's; and a record that
// etcd means to be fatal panics, so that Open can return it. Afterwards a fatal
// one ends the process (see the package comment). While the store is closed,
// everything is a debug record: etcd complains about the ends of connections.
type etcdLog struct {
	out    *slog.Logger
	isOpen atomic.Bool
	closes atomic.Bool
	why    atomic.Value // string: the last reason to end that etcd gave
}

func newEtcdLog(out *slog.Logger) *etcdLog {
	return &etcdLog{out: out}
}

// opened ends the leniency of the start.
func (l *etcdLog) opened() { l.isOpen.Store(true) }

func (l *etcdLog) closing() { l.closes.Store(true) }

func (l *etcdLog) zap() *zap.Logger {
	return zap.New(zapCore{l, nil}, zap.WithFatalHook(fatalHook{l}))
}

type fatalHook struct{ log *etcdLog }

// OnWrite decides what follows a fatal record.
func (h fatalHook) OnWrite(e *zapcore.CheckedEntry, fields []zapcore.Field) {
	if h.log.isOpen.Load() {
		zapcore.WriteThenFatal.OnWrite(e, fields)
	}
	panic(e.Message + ": " + errorText(fields))
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
	if e.Message == serverError {
		c.log.why.Store(errorText(fields))
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
