package consul

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/weftmesh/weft"
)

// LogTap passes a process's log on to who listens to agent/monitor. While nobody
// listens it costs one atomic read a line. The zero value is ready.
//
//	tap := new(consul.LogTap)
//	logger := slog.New(tap.Handler(slog.NewTextHandler(os.Stderr, nil)))
type LogTap struct {
	least atomic.Int64 // level that some listener wants, biased by bias; 0: there is none

	mu        sync.Mutex
	listeners map[*logListener]bool
}

// bias keeps every level of slog apart from "nobody listens".
const bias = 1 << 32

// logListener is one request of agent/monitor. What it does not take in time is lost.
type logListener struct {
	level slog.Level
	lines chan logLine
}

type logLine struct {
	time    time.Time
	level   slog.Level
	message string
	fields  []slog.Attr
}

// maxLines are kept for a listener that is slow.
const maxLines = 512

// Handler returns a handler that gives every record to next, and to the listeners.
func (t *LogTap) Handler(next slog.Handler) slog.Handler { return &tapHandler{tap: t, next: next} }

func (t *LogTap) wants(level slog.Level) bool {
	least := t.least.Load()
	return least != 0 && int64(level) >= least-bias
}

func (t *LogTap) listen(level slog.Level) *logListener {
	l := &logListener{level: level, lines: make(chan logLine, maxLines)}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.listeners == nil {
		t.listeners = make(map[*logListener]bool)
	}
	t.listeners[l] = true
	t.setLeast()
	return l
}

func (t *LogTap) leave(l *logListener) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.listeners, l)
	t.setLeast()
}

func (t *LogTap) setLeast() {
	least := int64(0)
	for l := range t.listeners {
		if wants := int64(l.level) + bias; least == 0 || wants < least {
			least = wants
		}
	}
	t.least.Store(least)
}

func (t *LogTap) tell(line logLine) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for l := range t.listeners {
		if line.level < l.level {
			continue
		}
		select {
		case l.lines <- line:
		default: // it is slow; the process does not wait for it
		}
	}
}

type tapHandler struct {
	tap    *LogTap
	next   slog.Handler
	prefix string // of the groups
	fields []slog.Attr
}

func (h *tapHandler) Enabled(ctx context.Context, level slog.Level) bool {
	return h.tap.wants(level) || h.next.Enabled(ctx, level)
}

func (h *tapHandler) Handle(ctx context.Context, r slog.Record) error {
	if h.tap.wants(r.Level) {
		fields := slices.Clip(h.fields)
		r.Attrs(func(f slog.Attr) bool {
			f.Key = h.prefix + f.Key
			fields = append(fields, f)
			return true
		})
		h.tap.tell(logLine{time: r.Time, level: r.Level, message: r.Message, fields: fields})
	}
	if h.next.Enabled(ctx, r.Level) {
		return h.next.Handle(ctx, r)
	}
	return nil
}

func (h *tapHandler) WithAttrs(fields []slog.Attr) slog.Handler {
	own := *h
	own.fields = slices.Clip(h.fields)
	for _, f := range fields {
		f.Key = h.prefix + f.Key
		own.fields = append(own.fields, f)
	}
	own.next = h.next.WithAttrs(fields)
	return &own
}

func (h *tapHandler) WithGroup(name string) slog.Handler {
	own := *h
	own.prefix, own.next = h.prefix+name+".", h.next.WithGroup(name)
	return &own
}

// GET /v1/agent/monitor?loglevel=&logjson: a line for every record, until the client
// goes.
func (a *api) agentMonitor(w http.ResponseWriter, q *query) error {
	if a.process.Log == nil {
		return notHere("this server's log is where whoever started it sent it")
	}
	level, err := parseLevel(q.params.Get("loglevel"))
	if err != nil {
		return err
	}
	format := textLine
	if asJSON, err := q.flag("logjson"); err != nil {
		return err
	} else if asJSON {
		format = jsonLine
	}
	l := a.process.Log.listen(level)
	defer a.process.Log.leave(l)
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(http.StatusOK)
	flush := http.NewResponseController(w)
	for flush.Flush() == nil {
		select {
		case line := <-l.lines:
			if a.stillMay(q) != nil {
				return nil
			}
			w.Write(format(line)) // Flush tells when the client has gone
		case <-q.request.Context().Done():
			return nil
		}
	}
	return nil
}

func parseLevel(s string) (slog.Level, error) {
	switch strings.ToLower(s) {
	case "trace":
		return slog.LevelDebug - 4, nil
	case "debug":
		return slog.LevelDebug, nil
	case "", "info":
		return slog.LevelInfo, nil
	case "warn":
		return slog.LevelWarn, nil
	case "err", "error":
		return slog.LevelError, nil
	}
	return 0, weft.Errorf(weft.Invalid, "read loglevel", s, "Unknown log level, want trace, debug, info, warn or err")
}

func levelName(l slog.Level) string {
	switch {
	case l < slog.LevelDebug:
		return "TRACE"
	case l < slog.LevelInfo:
		return "DEBUG"
	case l < slog.LevelWarn:
		return "INFO"
	case l < slog.LevelError:
		return "WARN"
	}
	return "ERROR"
}

const logTime = "2006-01-02T15:04:05.000Z07:00"

func textLine(l logLine) []byte {
	b := l.time.AppendFormat(nil, logTime)
	b = append(b, " ["+levelName(l.level)+"] "...)
	b = append(b, oneLine(l.message)...)
	for i, f := range l.fields {
		if i == 0 {
			b = append(b, ':')
		}
		b = append(b, " "+f.Key+"="+oneLine(f.Value.String())...)
	}
	return append(b, '\n')
}

func oneLine(s string) string { return strings.ReplaceAll(s, "\n", `\n`) }

func jsonLine(l logLine) []byte {
	fields := map[string]any{
		"@timestamp": l.time.Format(logTime), "@level": strings.ToLower(levelName(l.level)), "@message": l.message,
	}
	for _, f := range l.fields {
		fields[f.Key] = f.Value.String()
	}
	b, err := json.Marshal(fields)
	if err != nil { // texts only
		panic("consul: a log line has no JSON: " + err.Error())
	}
	return append(b, '\n')
}
