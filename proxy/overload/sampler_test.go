package overload

import (
	"math"
	"runtime/metrics"
	"testing"
	"testing/fstest"
	"time"
)

func TestCgroupLimit(t *testing.T) {
	file := func(s string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(s)} }
	for name, c := range map[string]struct {
		fs   fstest.MapFS
		want int64
	}{
		"none": {fstest.MapFS{}, 0},
		"version 2": {fstest.MapFS{
			"proc/self/cgroup":             file("0::/a/b\n"),
			"sys/fs/cgroup/a/b/memory.max": file("1048576\n"),
		}, 1 << 20},
		"an outer group allows less": {fstest.MapFS{
			"proc/self/cgroup":             file("0::/a/b\n"),
			"sys/fs/cgroup/a/b/memory.max": file("1048576\n"),
			"sys/fs/cgroup/a/memory.max":   file("1024\n"),
			"sys/fs/cgroup/memory.max":     file("max\n"),
		}, 1024},
		"no limit": {fstest.MapFS{
			"proc/self/cgroup":           file("0::/a\n"),
			"sys/fs/cgroup/a/memory.max": file("max\n"),
		}, 0},
		"in a container, whose path is the host's": {fstest.MapFS{
			"proc/self/cgroup":         file("0::/../../pod/x\n"),
			"sys/fs/cgroup/memory.max": file("2048\n"),
		}, 2048},
		"version 1": {fstest.MapFS{
			"proc/self/cgroup": file("12:cpu,cpuacct:/x\n4:memory:/a\n0::/\n"),
			"sys/fs/cgroup/memory/a/memory.limit_in_bytes": file("4096\n"),
			"sys/fs/cgroup/memory/memory.limit_in_bytes":   file("9223372036854771712\n"),
			"sys/fs/cgroup/cpu/x/memory.limit_in_bytes":    file("1\n"),
		}, 4096},
		"version 1 without a limit": {fstest.MapFS{
			"proc/self/cgroup": file("4:memory:/a\n"),
			"sys/fs/cgroup/memory/a/memory.limit_in_bytes": file("9223372036854771712\n"),
		}, 0},
		"nonsense": {fstest.MapFS{
			"proc/self/cgroup":         file("0::\nx\n::::\n0::/..\n"),
			"sys/fs/cgroup/memory.max": file("-5\n"),
		}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			if got := cgroupLimit(c.fs); got != c.want {
				t.Errorf("got %d, want %d", got, c.want)
			}
		})
	}
}

func TestParseStatm(t *testing.T) {
	for text, want := range map[string][2]int64{
		"310263 5123 2411 1201 0 25467 0\n": {5123, 2411},
		"1 2 3":                             {2, 3},
		"":                                  {0, 0},
		"1":                                 {0, 0},
		"1 -2 x3":                           {0, 0},
		"1 99999999999999999999999 2":       {0, 2},
	} {
		if resident, file := parseStatm([]byte(text)); [2]int64{resident, file} != want {
			t.Errorf("%q: %d and %d, want %v", text, resident, file, want)
		}
	}
}

func TestMedianSince(t *testing.T) {
	h := &metrics.Float64Histogram{Buckets: []float64{math.Inf(-1), 0, 0.001, 0.05, math.Inf(1)}}
	for name, c := range map[string]struct {
		before, now []uint64
		want        time.Duration
	}{
		"nothing happened":        {[]uint64{0, 100, 5, 5}, []uint64{0, 100, 5, 5}, 0},
		"little happened":         {[]uint64{0, 0, 0, 0}, []uint64{0, 0, 0, fewWakeups - 1}, 0},
		"most ran at once":        {[]uint64{0, 0, 0, 0}, []uint64{0, 60, 20, 20}, 0},
		"what was before is past": {[]uint64{0, 1000, 0, 0}, []uint64{0, 1010, 20, 5}, time.Millisecond},
		"most were late":          {[]uint64{0, 5, 5, 5}, []uint64{0, 10, 10, 50}, 50 * time.Millisecond},
		"impossible ones":         {[]uint64{0, 0, 0, 0}, []uint64{50, 0, 0, 0}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			h.Counts = c.now
			if got := medianSince(c.before, h); got != c.want {
				t.Errorf("got %v, want %v", got, c.want)
			}
		})
	}
}

// The probes find this process: a test that it has memory, and that the names of
// the runtime's metrics are still the same.
func TestSamplerSeesThisProcess(t *testing.T) {
	s := newSampler()
	defer s.close()
	block := make([]byte, 32*mib)
	for i := range block {
		block[i] = 1
	}
	got := s.sample()
	if got.rss < 32*mib || got.rss > 1<<40 || got.file <= 0 || got.file >= got.rss {
		t.Errorf("resident %d, of these files %d", got.rss, got.file)
	}
	if got.live <= 0 || got.live > got.rss {
		t.Errorf("live %d of %d", got.live, got.rss)
	}
	if block[0] != 1 {
		t.Error("the block is gone")
	}
	if n := testing.AllocsPerRun(10, func() { s.sample() }); n != 0 {
		t.Errorf("%v allocations a sample", n)
	}
	if n := allowedFiles(); n < 16 {
		t.Errorf("%d files are allowed", n)
	}
}
