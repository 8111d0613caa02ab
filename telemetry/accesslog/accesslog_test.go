package accesslog

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// output is what a Writer writes to. It may be blocked, and may fail.
type output struct {
	mu    sync.Mutex
	bytes bytes.Buffer
	calls int
	gate  chan struct{} // not nil: each Write takes one first
	room  int           // bytes until it is full; negative: none
}

var errFull = errors.New("no space left")

func (o *output) Write(p []byte) (int, error) {
	if o.gate != nil {
		<-o.gate
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.calls++
	n := len(p)
	if o.room >= 0 {
		n = min(n, o.room)
		o.room -= n
	}
	o.bytes.Write(p[:n])
	if n < len(p) {
		return n, errFull
	}
	return n, nil
}

func (o *output) lines() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return strings.Split(strings.TrimSuffix(o.bytes.String(), "\n"), "\n")
}

func (o *output) writes() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.calls
}

func unfailing(t *testing.T) func(error) {
	return func(err error) { t.Errorf("failed: %v", err) }
}

// both writes one record with a Line and with slog.
func both(t *testing.T, at time.Time, level slog.Level, msg string, attrs ...slog.Attr) (ours, slogs string) {
	t.Helper()
	var mine output
	mine.room = -1
	w := New(&mine, unfailing(t))
	l := w.Begin(at, level, msg)
	for _, a := range attrs {
		switch a.Value.Kind() {
		case slog.KindString:
			l.Str(a.Key, a.Value.String())
		case slog.KindInt64:
			l.Int(a.Key, a.Value.Int64())
		case slog.KindFloat64:
			l.Float(a.Key, a.Value.Float64())
		}
	}
	l.End()
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	var theirs bytes.Buffer
	r := slog.NewRecord(at, level, msg, 0)
	r.AddAttrs(attrs...)
	if err := slog.NewJSONHandler(&theirs, nil).Handle(context.Background(), r); err != nil {
		t.Fatal(err)
	}
	return mine.bytes.String(), theirs.String()
}

func TestLineIsWhatSlogWrites(t *testing.T) {
	utc := time.Date(2030, 5, 1, 12, 0, 0, 0, time.UTC)
	berlin := time.FixedZone("CEST", 2*60*60)
	every := ""
	for c := range 0x100 {
		every += string(rune(c))
	}
	for name, c := range map[string]struct {
		at    time.Time
		level slog.Level
		msg   string
		attrs []slog.Attr
	}{
		"nothing":                {utc, slog.LevelInfo, "", nil},
		"no time":                {time.Time{}, slog.LevelWarn, "503", nil},
		"a level between":        {utc, slog.LevelInfo + 1, "200", nil},
		"all of a second":        {utc.Add(999_999_999), slog.LevelInfo, "200", nil},
		"zeros at the end":       {utc.Add(120_000_000), slog.LevelInfo, "200", nil},
		"zeros at the beginning": {utc.Add(1), slog.LevelInfo, "200", nil},
		"another zone":           {utc.In(berlin), slog.LevelInfo, "200", nil},
		"local time":             {time.Now(), slog.LevelInfo, "200", nil},
		"before 1970":            {time.Date(1969, 12, 31, 23, 59, 59, 5, time.UTC), slog.LevelInfo, "200", nil},
		"texts": {utc, slog.LevelInfo, "a\"b", []slog.Attr{slog.String("path", "/a b?c=d&e=<f>"), slog.String("k\n", every),
			slog.String("bad", "a\xff\xc3(\xed\xa0\x80z\xf0\x9f"), slog.String("", ""), slog.String("lines", "\u2028\u2029\u2027"), slog.String("long", "größer 🎉")}},
		"integers": {utc, slog.LevelInfo, "200", []slog.Attr{slog.Int64("a", math.MinInt64), slog.Int64("b", math.MaxInt64), slog.Int("c", 0), slog.Int("d", -1)}},
		"floats": {utc, slog.LevelInfo, "200", []slog.Attr{slog.Float64("a", 0), slog.Float64("b", math.Copysign(0, -1)), slog.Float64("c", 0.123),
			slog.Float64("d", 1e-7), slog.Float64("e", 1e21), slog.Float64("f", -1e20), slog.Float64("g", 1e-10), slog.Float64("h", 1e-100),
			slog.Float64("i", math.NaN()), slog.Float64("j", math.Inf(1)), slog.Float64("k", math.Inf(-1)), slog.Float64("l", math.MaxFloat64), slog.Float64("m", 1e-6)}},
	} {
		t.Run(name, func(t *testing.T) {
			if ours, slogs := both(t, c.at, c.level, c.msg, c.attrs...); ours != slogs {
				t.Errorf("got\n%swant\n%s", ours, slogs)
			}
		})
	}
}

func FuzzLineIsWhatSlogWrites(f *testing.F) {
	f.Add("path", "/a\"b\\c\n", int64(-5), 0.25, int64(1_900_000_000), int64(5), 60)
	f.Add("\xff", "\u2028\x00\x7f", int64(0), 1e-7, int64(-1), int64(999_999_999), -720)
	f.Fuzz(func(t *testing.T, key, text string, n int64, x float64, second, nanos int64, minutes int) {
		zone := time.FixedZone("", minutes%720*60)
		at := time.Unix(second%200_000_000_000, nanos%1e9).In(zone)
		if at.Year() < 0 || at.Year() > 9999 || key == "" || len(key)+2*len(text) > 4000 {
			return // slog reports such years, drops such keys; longer lines are dropped
		}
		ours, slogs := both(t, at, slog.LevelInfo, text, slog.String(key, text), slog.Int64(key, n), slog.Float64(key, x))
		if ours != slogs {
			t.Errorf("got\n%swant\n%s", ours, slogs)
		}
		if !json.Valid([]byte(ours)) {
			t.Errorf("no JSON: %s", ours)
		}
	})
}

func TestHex(t *testing.T) {
	o := output{room: -1}
	w := New(&o, unfailing(t))
	l := w.Begin(time.Time{}, slog.LevelInfo, "200")
	l.Hex("trace_id", []byte{0x00, 0x9f, 0xAB})
	l.End()
	w.Close()
	if want := `{"level":"INFO","msg":"200","trace_id":"009fab"}`; o.lines()[0] != want {
		t.Errorf("got %s, want %s", o.lines()[0], want)
	}
}

// line ends a short line that says i.
func line(w *Writer, i int) {
	l := w.Begin(time.Time{}, slog.LevelInfo, "200")
	l.Int("i", int64(i))
	l.End()
}

// filler ends a line of about a KiB.
func filler(w *Writer) {
	l := w.Begin(time.Time{}, slog.LevelInfo, "200")
	l.Str("filler", strings.Repeat("x", 1000))
	l.End()
}

func TestLinesAreWrittenTogetherWithinTheInterval(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := output{room: -1}
		w := New(&o, unfailing(t))
		for round := range 3 {
			for i := range 10 {
				line(w, i)
				time.Sleep(5 * time.Millisecond)
			}
			if o.writes() != round {
				t.Fatalf("written after %d lines", round*10+10)
			}
			time.Sleep(flushInterval - 50*time.Millisecond)
			synctest.Wait()
			if o.writes() != round+1 || len(o.lines()) != 10*(round+1) {
				t.Fatalf("after the interval: %d writes, %d lines", o.writes(), len(o.lines()))
			}
			time.Sleep(time.Hour)
		}
		if w.Written() != 30 || w.Dropped() != 0 {
			t.Errorf("written %d, dropped %d", w.Written(), w.Dropped())
		}
		w.Close()
	})
}

func TestFullBufferIsWrittenAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := output{room: -1}
		w := New(&o, unfailing(t))
		for range 70 {
			filler(w)
		}
		synctest.Wait() // no time passes
		if o.writes() == 0 {
			t.Error("nothing is written though 70 KiB wait")
		}
		w.Close()
		if len(o.lines()) != 70 {
			t.Errorf("%d lines", len(o.lines()))
		}
	})
}

func TestSlowDiskLosesLinesAndBlocksNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := output{room: -1, gate: make(chan struct{})}
		w := New(&o, unfailing(t))
		const n = 4000 // 4 MiB
		for range n {
			filler(w) // returns, though the disk takes nothing
		}
		dropped := w.Dropped()
		if dropped == 0 || n-dropped < 900 {
			t.Errorf("%d of %d lines were dropped: a MiB fits", dropped, n)
		}
		close(o.gate) // the disk is back
		synctest.Wait()
		filler(w)
		w.Close()
		if got := len(o.lines()); uint64(got) != n-dropped+1 || w.Written() != uint64(got) || w.Dropped() != dropped {
			t.Errorf("%d lines in the file; written %d, dropped %d", got, w.Written(), w.Dropped())
		}
		if w.made > keptBuffers {
			t.Errorf("%d buffers are kept", w.made)
		}
	})
}

func TestStuckOutputDoesNotHoldClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := output{room: -1, gate: make(chan struct{})}
		w := New(&o, unfailing(t))
		line(w, 1)
		before := time.Now()
		if err := w.Close(); err == nil {
			t.Error("Close tells nothing of the lines that were lost")
		}
		if took := time.Since(before); took != closeTimeout {
			t.Errorf("it waited %v", took)
		}
		close(o.gate)
	})
}

func TestFullDiskIsSaidOnceAndLeavesWholeLines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var said []error
		o := output{room: 60} // the second line does not fit
		w := New(&o, func(err error) { said = append(said, err) })
		flush := func() { time.Sleep(flushInterval); synctest.Wait() }
		line(w, 1)
		line(w, 2)
		line(w, 3)
		flush()
		line(w, 4)
		flush()
		if len(said) != 1 || !errors.Is(said[0], errFull) || w.Written() != 1 || w.Dropped() != 3 {
			t.Fatalf("said %v, written %d, dropped %d", said, w.Written(), w.Dropped())
		}
		o.mu.Lock()
		o.room = -1
		o.mu.Unlock()
		line(w, 5)
		flush()
		o.mu.Lock()
		o.room = 0
		o.mu.Unlock()
		line(w, 6)
		flush()
		if len(said) != 2 {
			t.Errorf("the second time it is full: said %v", said)
		}
		w.Close()
		got := o.lines()
		want := func(i int) string { return fmt.Sprintf(`{"level":"INFO","msg":"200","i":%d}`, i) }
		if len(got) != 3 || got[0] != want(1) || got[2] != want(5) {
			t.Errorf("lines %q", got)
		}
	})
}

func TestAfterCloseAndTooLong(t *testing.T) {
	o := output{room: -1}
	w := New(&o, unfailing(t))
	l := w.Begin(time.Time{}, slog.LevelInfo, strings.Repeat("x", bufferSize))
	l.End()
	line(w, 1)
	if err := errors.Join(w.Close(), w.Close()); err != nil {
		t.Error(err)
	}
	line(w, 2)
	if got := o.lines(); len(got) != 1 || w.Written() != 1 || w.Dropped() != 2 {
		t.Errorf("lines %q, written %d, dropped %d", got, w.Written(), w.Dropped())
	}
}

// Many write to a file that others append to, too.
func TestSharedFileHasWholeLines(t *testing.T) {
	f, err := os.OpenFile(filepath.Join(t.TempDir(), "log"), os.O_CREATE|os.O_APPEND|os.O_RDWR, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w := New(f, unfailing(t))
	const writers, each = 4, 2000
	var wg sync.WaitGroup
	for range writers {
		wg.Go(func() {
			for i := range each {
				line(w, i)
			}
		})
	}
	wg.Go(func() {
		for range 200 {
			io.WriteString(f, "{\"other\":true}\n")
		}
	})
	wg.Wait()
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	all, err := os.ReadFile(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	seen := make([]int, each)
	others := 0
	for l := range bytes.Lines(all) {
		var fields struct {
			I     int
			Other bool
		}
		if err := json.Unmarshal(l, &fields); err != nil {
			t.Fatalf("%q: %v", l, err)
		}
		if fields.Other {
			others++
		} else {
			seen[fields.I]++
		}
	}
	for i, n := range seen {
		if n+int(w.Dropped()) < writers || n > writers {
			t.Fatalf("line %d stands %d times, %d were dropped", i, n, w.Dropped())
		}
	}
	if others != 200 || w.Written()+w.Dropped() != writers*each {
		t.Errorf("%d lines of others, written %d, dropped %d", others, w.Written(), w.Dropped())
	}
}

// access is a line as a proxy writes it.
func access(w *Writer, at time.Time, traceID []byte) {
	l := w.Begin(at, slog.LevelInfo, "200")
	l.Str("direction", "outbound")
	l.Str("source", "user-service")
	l.Str("destination", "order-service")
	l.Str("method", "GET")
	l.Str("host", "order-service")
	l.Str("path", "/orders/17")
	l.Int("status", 200)
	l.Float("duration_ms", 0.731)
	l.Int("bytes_in", 0)
	l.Int("bytes_out", 100)
	l.Str("peer", "127.0.0.1:51234")
	l.Str("version", "v1")
	l.Str("endpoint", "127.0.0.1:8080")
	l.Hex("trace_id", traceID)
	l.End()
}

func TestLinesDoNotAllocate(t *testing.T) {
	w := New(io.Discard, unfailing(t))
	defer w.Close()
	// The pool of lines may be emptied in between, hence less than one.
	at, id := time.Now(), make([]byte, 16)
	if n := testing.AllocsPerRun(2000, func() { at = at.Add(time.Microsecond); access(w, at, id) }); n >= 1 {
		t.Errorf("%v allocations a line", n)
	}
}

func BenchmarkLine(b *testing.B) {
	f, err := os.OpenFile(filepath.Join(b.TempDir(), "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	at, id := time.Now(), make([]byte, 16)
	b.Run("accesslog", func(b *testing.B) {
		w := New(f, func(err error) { b.Error(err) })
		defer w.Close()
		b.ReportAllocs()
		i := 0
		for b.Loop() {
			at = at.Add(time.Microsecond)
			access(w, at, id)
			if i++; i%64 == 0 {
				runtime.Gosched() // a proxy waits for its sockets between lines
			}
		}
		b.ReportMetric(float64(w.Dropped())/float64(i), "dropped/op")
	})
	b.Run("slog", func(b *testing.B) {
		logger := slog.New(slog.NewJSONHandler(f, nil))
		b.ReportAllocs()
		for b.Loop() {
			logger.LogAttrs(context.Background(), slog.LevelInfo, "200",
				slog.String("direction", "outbound"), slog.String("source", "user-service"), slog.String("destination", "order-service"),
				slog.String("method", "GET"), slog.String("host", "order-service"), slog.String("path", "/orders/17"),
				slog.Int("status", 200), slog.Float64("duration_ms", 0.731), slog.Int("bytes_in", 0), slog.Int("bytes_out", 100),
				slog.String("peer", "127.0.0.1:51234"), slog.String("version", "v1"), slog.String("endpoint", "127.0.0.1:8080"),
				slog.String("trace_id", "00000000000000000000000000000000"))
		}
	})
}
