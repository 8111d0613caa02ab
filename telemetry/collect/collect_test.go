package collect

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	collectorpb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	resourcepb "go.opentelemetry.io/proto/otlp/resource/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"go.uber.org/goleak"

	"github.com/weftmesh/weft"
)

// heldDir tells a copy of this test binary to open the directory and wait.
const heldDir = "WEFT_TEST_HOLD_SPAN_STORE"

// brokenStore tells it to run the test of a broken store.
const brokenStore = "WEFT_TEST_BROKEN_SPAN_STORE"

func TestMain(m *testing.M) {
	if dir := os.Getenv(heldDir); dir != "" {
		if _, err := Open(Config{Dir: dir}); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println("open")
		select {}
	}
	if os.Getenv(brokenStore) != "" {
		os.Exit(m.Run())
	}
	goleak.VerifyTestMain(m)
}

// clock is a time that tests set. Held, it stops whoever asks for the time: the
// writer does before each commit.
type clock struct {
	held     sync.RWMutex
	unixNano atomic.Int64
}

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func (c *clock) now() time.Time {
	c.held.RLock()
	defer c.held.RUnlock()
	return time.Unix(0, c.unixNano.Load()).UTC()
}
func (c *clock) set(t time.Time)     { c.unixNano.Store(t.UnixNano()) }
func (c *clock) add(d time.Duration) { c.unixNano.Add(int64(d)) }

// opened is a collector at noon in a directory of its own.
func opened(t *testing.T, conf Config) (*Collector, *clock) {
	t.Helper()
	if conf.Dir == "" {
		conf.Dir = t.TempDir()
	}
	ck := &clock{}
	ck.set(noon)
	c, err := open(conf, vfs.Default, ck.now)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c, ck
}

// span is a span in the words of these tests: numbers for ids, milliseconds
// after noon for times.
type span struct {
	trace, id, parent byte
	service, name     string
	start, end        int
	failed            bool
}

func traceID(n byte) []byte  { return append(bytes.Repeat([]byte{0xab}, 15), n) }
func traceHex(n byte) string { return fmt.Sprintf("%x", traceID(n)) }
func spanHex(n byte) string  { return fmt.Sprintf("%016x", n) }

func (s span) proto() *tracepb.Span {
	p := &tracepb.Span{
		TraceId: traceID(s.trace), SpanId: []byte{7: s.id}, Name: s.name,
		StartTimeUnixNano: uint64(noon.UnixNano()) + uint64(s.start)*1e6,
		EndTimeUnixNano:   uint64(noon.UnixNano()) + uint64(s.end)*1e6,
	}
	if s.parent != 0 {
		p.ParentSpanId = []byte{7: s.parent}
	}
	if s.failed {
		p.Status = &tracepb.Status{Code: tracepb.Status_STATUS_CODE_ERROR, Message: "failed"}
	}
	return p
}

func textAttr(key, value string) *commonpb.KeyValue {
	return &commonpb.KeyValue{Key: key, Value: &commonpb.AnyValue{Value: &commonpb.AnyValue_StringValue{StringValue: value}}}
}

// export is the request of a sender that has these spans.
func export(spans ...span) *collectorpb.ExportTraceServiceRequest {
	req := &collectorpb.ExportTraceServiceRequest{}
	for _, s := range spans {
		req.ResourceSpans = append(req.ResourceSpans, &tracepb.ResourceSpans{
			Resource:   &resourcepb.Resource{Attributes: []*commonpb.KeyValue{textAttr("service.name", s.service)}},
			ScopeSpans: []*tracepb.ScopeSpans{{Spans: []*tracepb.Span{s.proto()}}},
		})
	}
	return req
}

func receive(t *testing.T, c *Collector, spans ...span) {
	t.Helper()
	resp, err := c.Receive(export(spans...))
	if err != nil || resp.GetPartialSuccess() != nil {
		t.Fatalf("Receive = %v, %v", resp, err)
	}
	stored(t, c)
}

// eventually polls until ok.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within ten seconds: %s", what)
		}
	}
}

// stored waits until the writer has taken and committed all that was accepted.
func stored(t *testing.T, c *Collector) {
	t.Helper()
	eventually(t, "the queue is written", func() bool {
		s := c.Stats()
		return s.Stored+s.Lost == s.Accepted
	})
}

func find(t *testing.T, c *Collector, q Query) (ids []string) {
	t.Helper()
	found, err := c.Traces(t.Context(), q)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range found {
		ids = append(ids, s.TraceID[30:])
	}
	return ids
}

func TestOpenRefusesSettingsThatCannotWork(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, conf := range map[string]Config{
		"no directory":         {},
		"short retention":      {Dir: t.TempDir(), Retention: time.Second},
		"negative retention":   {Dir: t.TempDir(), Retention: -time.Hour},
		"small size":           {Dir: t.TempDir(), MaxBytes: 1 << 20},
		"a file, no directory": {Dir: file},
	} {
		c, err := Open(conf)
		if err == nil {
			t.Errorf("%s: opened", name)
			c.Close()
			continue
		}
		if want := name != "a file, no directory"; (weft.KindOf(err) == weft.Invalid) != want {
			t.Errorf("%s: kind %d: %v", name, weft.KindOf(err), err)
		}
	}
}

func TestSpansSurviveARestart(t *testing.T) {
	dir := t.TempDir()
	c, _ := opened(t, Config{Dir: dir})
	receive(t, c, span{trace: 1, id: 1, service: "order-service", name: "GET /", end: 5})
	if _, err := c.Receive(export(span{trace: 2, id: 1, service: "order-service", name: "GET /", end: 5})); err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil { // writes what still waits
		t.Fatal(err)
	}
	if _, err := c.Traces(t.Context(), Query{}); weft.KindOf(err) != weft.Unavailable {
		t.Errorf("a query after Close: %v", err)
	}
	if _, err := c.Receive(export(span{trace: 3, id: 1})); weft.KindOf(err) != weft.Unavailable {
		t.Errorf("an export after Close: %v", err)
	}
	if err := c.Close(); err != nil {
		t.Errorf("a second Close: %v", err)
	}

	c, _ = opened(t, Config{Dir: dir})
	if got := find(t, c, Query{}); len(got) != 2 {
		t.Errorf("after the restart: %v", got)
	}
	receive(t, c, span{trace: 3, id: 1, service: "order-service", name: "GET /", end: 5})
	if parts := *c.store.parts.Load(); len(parts) != 1 {
		t.Errorf("the restart within the hour began another part: %d", len(parts))
	}
}

func TestASecondCollectorOnTheDirectoryIsRefused(t *testing.T) {
	c, _ := opened(t, Config{})
	_, err := Open(Config{Dir: c.store.dir})
	if weft.KindOf(err) != weft.Conflict || !strings.Contains(err.Error(), c.store.dir) {
		t.Errorf("in the same process: %v", err)
	}
}

// A process that is killed leaves neither a lock nor a store that cannot be
// opened.
func TestAnotherProcessHoldsTheDirectoryUntilItIsKilled(t *testing.T) {
	dir := t.TempDir()
	holder := exec.Command(os.Args[0])
	holder.Env = append(os.Environ(), heldDir+"="+dir)
	out, err := holder.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		holder.Process.Kill()
		holder.Wait()
	}()
	line := make([]byte, 5)
	if n, _ := out.Read(line); !strings.HasPrefix(string(line[:n]), "open") {
		t.Fatalf("the other process says %q", line[:n])
	}
	if _, err := Open(Config{Dir: dir}); weft.KindOf(err) != weft.Conflict || !strings.Contains(err.Error(), "another process") {
		t.Errorf("while it is held: %v", err)
	}
	holder.Process.Signal(syscall.SIGKILL)
	holder.Wait()
	c, err := Open(Config{Dir: dir})
	if err != nil {
		t.Fatalf("after the kill: %v", err)
	}
	c.Close()
}

func TestRetentionDropsWholeHours(t *testing.T) {
	c, ck := opened(t, Config{Retention: 3 * time.Hour})
	hour := func(n byte) span {
		return span{trace: n, id: 1, service: fmt.Sprint("s", n), name: "GET /", start: int(n) * 3600_000, end: int(n)*3600_000 + 1}
	}
	for n := range byte(5) {
		ck.set(noon.Add(time.Duration(n)*time.Hour + 30*time.Minute))
		receive(t, c, hour(n))
	}
	// It is 16:30. What arrived from 12:00 to 13:00 became three hours old as a
	// whole at 16:00; what arrived until 14:00 does at 17:00.
	if got := fmt.Sprint(find(t, c, Query{})); got != "[04 03 02 01]" {
		t.Errorf("kept %s", got)
	}
	ck.set(noon.Add(5*time.Hour - time.Second))
	c.sweep() // the writer is idle
	if got := fmt.Sprint(find(t, c, Query{})); got != "[04 03 02 01]" {
		t.Errorf("a second before 17:00: kept %s", got)
	}
	ck.add(time.Second)
	c.sweep() // the writer is idle
	if got := fmt.Sprint(find(t, c, Query{})); got != "[04 03 02]" {
		t.Errorf("at 17:00: kept %s", got)
	}
	if _, err := c.Trace(t.Context(), traceHex(1)); weft.KindOf(err) != weft.NotFound {
		t.Errorf("a dropped trace: %v", err)
	}
	if names, _ := c.Services(t.Context()); fmt.Sprint(names) != "[s2 s3 s4]" {
		t.Errorf("services %v", names)
	}
	ck.set(noon.Add(48 * time.Hour))
	c.sweep() // the writer is idle
	if got := find(t, c, Query{}); got != nil {
		t.Errorf("two days later: kept %s", got)
	}
}

func TestSizeLimitDropsTheOldest(t *testing.T) {
	c, _ := opened(t, Config{MaxBytes: minMaxBytes})
	noise := make([]byte, 48<<10)
	for n := range byte(5) {
		for i := range byte(120) {
			req := export(span{trace: n, id: i + 1, service: "s", name: "GET /", start: int(n)})
			rand.Read(noise) // does not compress
			req.ResourceSpans[0].ScopeSpans[0].Spans[0].Attributes = []*commonpb.KeyValue{{Key: "noise", Value: &commonpb.AnyValue{Value: &commonpb.AnyValue_BytesValue{BytesValue: noise}}}}
			eventually(t, "the queue has room", func() bool {
				_, err := c.Receive(req)
				return err == nil
			})
		}
	}
	stored(t, c) // 28 MiB went in
	if err := c.store.db.Flush(); err != nil {
		t.Fatal(err)
	}
	c.sweep() // the writer is idle
	if got := c.Stats().Bytes; got > minMaxBytes {
		t.Errorf("takes %d bytes, limit %d", got, minMaxBytes)
	}
	got := find(t, c, Query{})
	if len(got) == 0 || len(got) == 5 || got[0] != "04" {
		t.Errorf("kept traces %v, want the newest", got)
	}
}

func TestAFullQueueRefusesAndRecovers(t *testing.T) {
	c, ck := opened(t, Config{})
	ck.held.Lock()
	one := export(span{trace: 1, id: 1, service: "s"})
	var err error
	accepted := 0
	for accepted < 100_000 {
		if _, err = c.Receive(one); err != nil {
			break
		}
		accepted++
	}
	if !errors.Is(err, errQueueFull) || weft.KindOf(err) != weft.Unavailable {
		t.Fatalf("after %d requests: %v", accepted, err)
	}
	if s := c.Stats(); s.Refused != 1 || s.Accepted != uint64(accepted) {
		t.Errorf("stats %+v after %d accepted", s, accepted)
	}
	ck.held.Unlock()
	eventually(t, "there is room again", func() bool { _, err := c.Receive(one); return err == nil })
}

// A fault that pebble does not survive: what is left of it leaks, so the test
// runs in a process of its own.
func TestABrokenStoreRefusesSpansAndSparesTheProcess(t *testing.T) {
	if os.Getenv(brokenStore) == "" {
		child := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
		child.Env = append(os.Environ(), brokenStore+"=1")
		if out, err := child.CombinedOutput(); err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()) {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	var fails atomic.Bool
	disk := errorfs.Wrap(vfs.NewMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
		if fails.Load() && op.Kind.ReadOrWrite() == errorfs.OpIsWrite {
			return syscall.EIO
		}
		return nil
	}))
	var log lockedBuffer
	c, err := open(Config{Dir: "spans", Logger: slog.New(slog.NewTextHandler(&log, nil))}, disk, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	receive(t, c, span{trace: 1, id: 1, service: "s", name: "before"})
	fails.Store(true)
	large := export(span{trace: 2, id: 1, service: "s", name: strings.Repeat("n", 50_000)})
	eventually(t, "spans are refused", func() bool {
		_, err := c.Receive(large)
		return weft.KindOf(err) == weft.Unavailable && !errors.Is(err, errQueueFull)
	})
	if !strings.Contains(log.String(), "cannot go on") || !strings.Contains(log.String(), syscall.EIO.Error()) {
		t.Errorf("the log does not say why:\n%s", log.String())
	}
	if got := find(t, c, Query{}); len(got) == 0 {
		t.Error("what was stored cannot be read any more")
	}
	done := make(chan error)
	go func() { done <- c.Close() }()
	select {
	case err := <-done:
		if err == nil {
			t.Error("Close says that all is well")
		}
	case <-time.After(20 * time.Second):
		t.Fatal("Close hangs on a broken store")
	}
}

func TestAnAlmostFullDiskRefusesSpansUntilThereIsRoom(t *testing.T) {
	disk := vfs.NewMem()
	c, err := open(Config{Dir: "spans"}, disk, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	one := export(span{trace: 1, id: 1, service: "s"})
	disk.TestingSetDiskUsage(vfs.DiskUsage{TotalBytes: 1 << 30, AvailBytes: diskReserve - 1})
	eventually(t, "spans are refused", func() bool {
		_, err := c.Receive(one)
		return weft.KindOf(err) == weft.Unavailable && strings.Contains(err.Error(), "disk")
	})
	disk.TestingSetDiskUsage(vfs.DiskUsage{TotalBytes: 1 << 30, AvailBytes: diskReserve})
	eventually(t, "spans are taken again", func() bool { _, err := c.Receive(one); return err == nil })
	stored(t, c)
	if s := c.Stats(); s.Lost != 0 || s.Refused == 0 {
		t.Errorf("stats %+v", s)
	}
}

type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}
