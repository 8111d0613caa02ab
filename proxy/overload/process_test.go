package overload

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

const (
	workloadEnv  = "WEFT_OVERLOAD_WORKLOAD"
	childCeiling = 96 * mib
)

// A process of its own is offered far more than fits under its ceiling: it stays
// under it, refuses some of the work, and takes everything again afterwards.
func TestProcessStaysUnderItsCeiling(t *testing.T) {
	if name := os.Getenv(workloadEnv); name != "" {
		t.Skip("this is the process")
	}
	if raceDetector {
		t.Skip("the race detector's own memory is several times the program's")
	}
	for _, name := range []string{"pinned", "unsaid", "garbage"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			runWorkload(t, name, "TestWorkload")
		})
	}
}

// runWorkload runs one of this program's tests in a process of its own.
func runWorkload(t *testing.T, name, test string) {
	child := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+test+"$", "-test.v")
	child.Env = append(os.Environ(), workloadEnv+"="+name)
	out, err := child.CombinedOutput()
	if err != nil {
		t.Fatalf("%v:\n%s", err, out)
	}
	t.Logf("%s", out)
}

// work is what the process does, and what came of it.
type work struct {
	m              *Monitor
	done           atomic.Int64
	refused        atomic.Int64
	wg             sync.WaitGroup
	size           int
	hold           time.Duration // 0: until over is closed
	over           chan struct{}
	pin            bool
	offeredPerTick int    // 10 ms
	base           []byte // is always there
}

// request holds size bytes for a while, in pieces, as a body that streams in.
func (w *work) request() {
	ok, _ := w.m.AdmitRequest()
	if !ok {
		w.refused.Add(1)
		return
	}
	defer w.m.ReleaseRequest()
	const piece = 64 << 10
	var held [][]byte
	for range w.size / piece {
		if w.pin && !w.m.Pin(piece) {
			break // it goes on with what it has
		}
		held = append(held, bytes.Repeat([]byte{1}, piece))
	}
	if w.hold > 0 {
		time.Sleep(w.hold) //weft:sleep the upstream takes its time
	} else {
		<-w.over
	}
	if w.pin {
		w.m.Unpin(piece * len(held))
	}
	runtime.KeepAlive(held)
	w.done.Add(1)
}

// TestWorkload is the process, not a test of its own.
func TestWorkload(t *testing.T) {
	w := &work{over: make(chan struct{})}
	switch os.Getenv(workloadEnv) {
	case "":
		t.Skip("TestProcessStaysUnderItsCeiling runs it")
	case "pinned": // 256 MiB/s, held for half a second
		w.size, w.hold, w.pin, w.offeredPerTick = 256<<10, 500*time.Millisecond, true, 10
	case "unsaid": // 64 MiB/s, held to the end, and nobody pins it
		w.size, w.offeredPerTick = 128<<10, 5
	case "garbage": // 256 MiB/s that nobody holds, over a heap that would be doubled
		w.size, w.hold, w.offeredPerTick = 256<<10, time.Microsecond, 10
		w.base = bytes.Repeat([]byte{1}, 50*mib)
	}
	defer runtime.KeepAlive(w)
	w.m = Start(Limits{MemoryBytes: childCeiling, Streams: 1 << 20}, slog.New(slog.NewTextHandler(os.Stdout, nil)))
	defer w.m.Close()

	garbage := os.Getenv(workloadEnv) == "garbage"
	least, most := time.Now().Add(time.Second), time.Now().Add(20*time.Second)
	for time.Now().Before(least) || !garbage && w.refused.Load() < 20 && time.Now().Before(most) {
		for range w.offeredPerTick {
			w.wg.Go(w.request)
		}
		time.Sleep(10 * time.Millisecond)
	}
	close(w.over)
	w.wg.Wait()
	highest := peak(t)
	fmt.Printf("%d done, %d refused, at most %d MiB resident, %+v\n", w.done.Load(), w.refused.Load(), highest/mib, w.m.Stats())
	if highest > childCeiling {
		t.Errorf("%d MiB were resident", highest/mib)
	}
	if garbage {
		if w.refused.Load() > 0 {
			t.Errorf("%d were refused for garbage", w.refused.Load())
		}
		return
	}
	if w.refused.Load() == 0 || w.done.Load() == 0 {
		t.Error("some must be refused and some done")
	}
	for end := time.Now().Add(10 * time.Second); w.m.Level() != Calm; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("it never becomes calm again: %+v", w.m.Stats())
		}
	}
	if !admits(w.m) {
		t.Error("work is refused afterwards")
	}
}

// Many more goroutines want to run than there are processors: the runtime's
// numbers show it, some requests are refused, and all are taken when it is over.
func TestProcessThatIsLate(t *testing.T) {
	if os.Getenv(workloadEnv) == "" {
		runWorkload(t, "late", "TestProcessThatIsLate")
		return
	}
	m := Start(Limits{MemoryBytes: -1}, slog.New(slog.NewTextHandler(os.Stdout, nil)))
	defer m.Close()
	eventually := func(what string, condition func() bool) {
		t.Helper()
		for end := time.Now().Add(20 * time.Second); !condition(); time.Sleep(10 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("never %s: %+v", what, m.Stats())
			}
		}
	}
	var stop atomic.Bool
	var wg sync.WaitGroup
	for range 200 * runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for !stop.Load() {
				for end := time.Now().Add(time.Millisecond); time.Now().Before(end); {
				}
				runtime.Gosched()
			}
		})
	}
	eventually("refused", func() bool { return !admits(m) })
	if s := m.Stats(); s.RefusedForLateness == 0 {
		t.Errorf("stats %+v", s)
	}
	stop.Store(true)
	wg.Wait()
	eventually("back to normal", func() bool { return m.shed.Load() == 0 })
}

// peak is the most that was ever resident, as the kernel says.
func peak(t *testing.T) int64 {
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Skip(err)
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return kib << 10
		}
	}
	t.Skip("the kernel does not say it")
	return 0
}
