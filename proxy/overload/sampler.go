package overload

import (
	"bytes"
	"io/fs"
	"math"
	"os"
	"path"
	"runtime/metrics"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Indices into sampler.values.
const (
	heapLive = iota
	heapStacks
	gcCycles
	schedLatencies
)

// sampler reads the kernel's and the runtime's numbers. It is of one goroutine.
type sampler struct {
	statm  *os.File // nil: not Linux, or /proc is not there
	buf    [128]byte
	page   int64
	values []metrics.Sample
	counts []uint64 // of schedLatencies, at the last sample
}

func newSampler() *sampler {
	s := &sampler{page: int64(os.Getpagesize()), values: []metrics.Sample{
		heapLive:       {Name: "/gc/heap/live:bytes"},
		heapStacks:     {Name: "/memory/classes/heap/stacks:bytes"},
		gcCycles:       {Name: "/gc/cycles/total:gc-cycles"},
		schedLatencies: {Name: "/sched/latencies:seconds"},
	}}
	s.statm, _ = os.Open("/proc/self/statm") // without it there is no RSS, and memory is Calm
	return s
}

func (s *sampler) close() {
	if s.statm != nil {
		s.statm.Close()
	}
}

func (s *sampler) sample() (out sample) {
	if s.statm != nil {
		// The kernel makes the text anew for each read from the beginning.
		if n, _ := s.statm.ReadAt(s.buf[:], 0); n > 0 {
			resident, file := parseStatm(s.buf[:n])
			out.rss, out.file = resident*s.page, file*s.page
		}
	}
	metrics.Read(s.values)
	out.live = int64(s.values[heapLive].Value.Uint64() + s.values[heapStacks].Value.Uint64())
	out.cycles = s.values[gcCycles].Value.Uint64()
	h := s.values[schedLatencies].Value.Float64Histogram()
	if s.counts == nil {
		s.counts = make([]uint64, len(h.Counts))
	}
	out.late = medianSince(s.counts, h)
	copy(s.counts, h.Counts)
	return out
}

// parseStatm takes resident and file-backed pages from "size resident shared …"
// (proc_pid_statm(5)).
func parseStatm(text []byte) (resident, file int64) {
	_, rest, _ := bytes.Cut(text, []byte{' '})
	first, rest, _ := bytes.Cut(rest, []byte{' '})
	second, _, _ := bytes.Cut(rest, []byte{' '})
	return parsePages(first), parsePages(second)
}

func parsePages(digits []byte) (n int64) {
	for _, c := range digits {
		if c < '0' || c > '9' || n > math.MaxInt64/(1<<20) {
			return 0
		}
		n = n*10 + int64(c-'0')
	}
	return n
}

// fewWakeups say nothing of a queue. The runtime looks at one in eight.
const fewWakeups = 16

// medianSince is the median of what came to a histogram since it had the counts
// of before.
func medianSince(before []uint64, h *metrics.Float64Histogram) time.Duration {
	var total uint64
	for i, n := range h.Counts {
		total += n - before[i]
	}
	if total < fewWakeups {
		return 0
	}
	var below uint64
	for i, n := range h.Counts {
		if below += n - before[i]; 2*below >= total {
			// A bucket's lower bound: the estimate is rather too low than too high.
			return time.Duration(max(h.Buckets[i], 0) * float64(time.Second))
		}
	}
	return 0
}

// allowedFiles is RLIMIT_NOFILE, which the runtime has raised as far as it may.
func allowedFiles() int64 {
	var l syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l); err != nil {
		return 1024
	}
	return int64(min(l.Cur, math.MaxInt64))
}

// allowedMemory is what the process's control group may have, or 0.
func allowedMemory() int64 { return cgroupLimit(os.DirFS("/")) }

// cgroupLimit finds the lowest limit among the process's control group and those
// that it is in, of version 2 (cgroups(7), "0::/path") or 1 ("4:memory:/path").
// In a container the path may be one of the host that is not there: then the
// root of the mounted tree is the container's own.
func cgroupLimit(root fs.FS) int64 {
	text, err := fs.ReadFile(root, "proc/self/cgroup")
	if err != nil {
		return 0
	}
	lowest := int64(0)
	for line := range strings.Lines(string(text)) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(parts) != 3 {
			continue
		}
		var mount, file string
		switch {
		case parts[0] == "0" && parts[1] == "":
			mount, file = "sys/fs/cgroup", "memory.max"
		case strings.Contains(","+parts[1]+",", ",memory,"):
			mount, file = "sys/fs/cgroup/memory", "memory.limit_in_bytes"
		default:
			continue
		}
		for at := path.Clean("/" + parts[2]); ; at = path.Dir(at) {
			if n := readLimit(root, path.Join(mount, at, file)); n > 0 && (lowest == 0 || n < lowest) {
				lowest = n
			}
			if at == "/" {
				break
			}
		}
	}
	return lowest
}

// readLimit reads a number of bytes; "max", and the 2⁶³ less a page that version
// 1 says instead, are none.
func readLimit(root fs.FS, name string) int64 {
	text, err := fs.ReadFile(root, name)
	if err != nil {
		return 0
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	if err != nil || n >= 1<<60 {
		return 0
	}
	return n
}
