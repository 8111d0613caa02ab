// Package overload decides whether a process may begin new work, so that it
// refuses some early and cheaply rather than failing in all of it: at accept, and
// when a request's head has come. Work that was admitted is never asked again.
//
//	m := overload.Start(overload.Limits{MemoryBytes: 512 << 20}, logger)
//	defer m.Close()
//
//	if !m.AdmitConnection() { … reset it … }
//	defer m.ReleaseConnection()
//
//	ok, retryAfter := m.AdmitRequest()
//	if !ok { … 503, with Retry-After … }
//	defer m.ReleaseRequest()
//
// It looks at five things: connections and requests in flight, which are counted
// here; the bytes that callers say they hold (Pin); the resident memory of the
// process; and how late goroutines run.
//
// # Memory
//
// Shares of the ceiling, from below:
//
//	0.50  Pin refuses more bytes, and no request begins when 95 % of these are
//	      held; the other half is for stacks, read buffers, heads, connections,
//	      the program itself and the collector's headroom
//	0.75  the garbage collector works as hard as it must to stay below
//	0.85  Tight: give back what is only kept for speed
//	0.95  Full: nothing new begins
//
// The collector's mark is debug.SetMemoryLimit, which knows only what the Go
// runtime has mapped, stacks included. The pages of the program's file are
// resident, too, so the limit is 0.75 of the ceiling less those. It lies below
// Tight so that garbage alone never refuses anybody: what is above 0.85 is
// really in use. A limit that was set before (GOMEMLIMIT) is kept when it is
// lower. The collector may take half of the CPU above its limit, not more; that
// is when refusing begins to be the better way.
//
// The limit is the process's: one Monitor a process.
package overload

import (
	"log/slog"
	"runtime/debug"
	"sync/atomic"
	"time"
)

// Limits of a process. Zero fields are defaults.
type Limits struct {
	// MemoryBytes is the ceiling of the resident memory. 0: 90 % of what the
	// control group allows (the kernel counts its own memory for our sockets
	// there, too), or none when it allows everything. Negative: none.
	MemoryBytes int64
	// Connections that clients have open. 0: half of the file descriptors that
	// the process may have, less some, since most connections have one upstream.
	Connections int
	// Streams are requests in flight, of all connections. 0: 4 × Connections.
	Streams int
	// Late is how late the median goroutine may run before requests are refused.
	// 0: 50 ms; see lateMark.
	Late time.Duration
}

// Level tells what memory allows.
type Level uint32

const (
	// Calm: nothing to do.
	Calm Level = iota
	// Tight: close connections after their answer, do not grow windows, shrink
	// idle pools.
	Tight
	// Full: no new connections and requests.
	Full
)

func (l Level) String() string {
	switch l {
	case Calm:
		return "calm"
	case Tight:
		return "tight"
	}
	return "full"
}

// Monitor decides. Its methods may be called from any goroutine.
type Monitor struct {
	// constant
	limits     Limits
	maxPinned  int64 // bytes; 0: any
	fullPinned int64 // bytes, from which no request begins; with maxPinned
	logger     *slog.Logger
	probes     probes
	stop       chan struct{}
	done       chan struct{}

	// of run's goroutine
	watch watch

	// atomics, by how often they are written
	level       atomic.Uint32 // by memory
	shed        atomic.Uint32 // so many of shedParts requests are refused for lateness
	turn        atomic.Uint32 // of the requests that may be among them
	rss, heap   atomic.Int64  // bytes, of the last sample
	late        atomic.Int64  // nanoseconds, of the last sample
	refused     [reasons]atomic.Uint64
	connections atomic.Int64
	pinned      atomic.Int64
	streams     atomic.Int64
}

// Reasons for a refusal.
const (
	byConnections = iota
	byStreams
	byPinned
	byMemory
	byLateness
	reasons
)

const (
	pinShare = 0.5 // of the ceiling
	// shedParts is the grain in which requests are refused for lateness.
	shedParts = 16
)

// Start begins to watch the process. Close ends it.
func Start(l Limits, logger *slog.Logger) *Monitor {
	return start(l, logger, system())
}

func start(l Limits, logger *slog.Logger, p probes) *Monitor {
	if l.MemoryBytes == 0 {
		l.MemoryBytes = p.allowed() / 10 * 9
	}
	l.MemoryBytes = max(l.MemoryBytes, 0)
	if l.Connections <= 0 {
		l.Connections = connectionsFor(p.files())
	}
	if l.Streams <= 0 {
		l.Streams = 4 * l.Connections
	}
	if l.Late <= 0 {
		l.Late = lateMark
	}
	m := &Monitor{limits: l, logger: logger, probes: p, stop: make(chan struct{}), done: make(chan struct{})}
	m.maxPinned = int64(pinShare * float64(l.MemoryBytes))
	m.fullPinned = int64(fullMark * float64(m.maxPinned))
	m.watch.before = p.setLimit(-1)
	m.watch.limit = m.watch.before
	m.watch.freed = time.Now()
	m.look()
	go m.run()
	return m
}

// Close ends the watch and gives the collector back the limit that it had. It is
// called once. What was admitted may still be released.
func (m *Monitor) Close() {
	close(m.stop)
	<-m.done
}

// Limits are those that count: the defaults are filled in. MemoryBytes is 0 when
// there is no ceiling.
func (m *Monitor) Limits() Limits { return m.limits }

// AdmitConnection tells whether a connection that came may stay. Each true is
// followed by one ReleaseConnection.
func (m *Monitor) AdmitConnection() bool {
	if Level(m.level.Load()) == Full {
		m.refused[byMemory].Add(1)
		return false
	}
	if m.connections.Add(1) > int64(m.limits.Connections) {
		m.connections.Add(-1)
		m.refused[byConnections].Add(1)
		return false
	}
	return true
}

// ReleaseConnection is for a connection that has ended.
func (m *Monitor) ReleaseConnection() { m.connections.Add(-1) }

// AdmitRequest tells whether a request may begin, and if not, when its client may
// try again: after 1 to 4 s, so that they do not all come back at once. Each true
// is followed by one ReleaseRequest.
func (m *Monitor) AdmitRequest() (ok bool, retryAfter time.Duration) {
	n := m.streams.Add(1)
	var reason int
	switch {
	case Level(m.level.Load()) == Full:
		reason = byMemory
	case n > int64(m.limits.Streams):
		reason = byStreams
	case m.maxPinned > 0 && m.pinned.Load() >= m.fullPinned:
		reason = byPinned
	default:
		shed := m.shed.Load()
		if shed == 0 || !m.isShed(shed) {
			return true, 0
		}
		reason = byLateness
	}
	m.streams.Add(-1)
	turn := m.refused[reason].Add(1)
	return false, time.Duration(1+turn%4) * time.Second
}

// ReleaseRequest is for a request that has ended.
func (m *Monitor) ReleaseRequest() { m.streams.Add(-1) }

// Pin says that n more bytes will be held for a body or a window, until Unpin. It
// refuses when that would be more than half of the ceiling: then the caller goes
// on without them, or fails. Unpin is for what was not refused.
func (m *Monitor) Pin(n int) bool {
	now := m.pinned.Add(int64(n))
	if m.maxPinned > 0 && now > m.maxPinned {
		m.pinned.Add(-int64(n))
		m.refused[byPinned].Add(1)
		return false
	}
	return true
}

// Unpin says that n bytes are held no more.
func (m *Monitor) Unpin(n int) { m.pinned.Add(-int64(n)) }

// Level tells what memory allows: what is resident, as it was sampled last, and
// what is pinned, now.
func (m *Monitor) Level() Level {
	l := Level(m.level.Load())
	if m.maxPinned > 0 {
		switch pinned := m.pinned.Load(); {
		case pinned >= m.fullPinned:
			return Full
		case float64(pinned) >= tightMark*float64(m.maxPinned):
			return max(l, Tight)
		}
	}
	return l
}

// Stats are for metrics. The counters only grow.
type Stats struct {
	Level                 Level
	RSS, Heap             int64         // bytes; Heap is what lived at the last collection, and stacks
	Pinned                int64         // bytes
	Connections, Requests int64         // in flight
	Late                  time.Duration // of the median goroutine in the last interval

	RefusedForConnections, RefusedForStreams, RefusedForPinned, RefusedForMemory, RefusedForLateness uint64
}

// Stats reads them all.
func (m *Monitor) Stats() Stats {
	return Stats{
		Level: m.Level(), RSS: m.rss.Load(), Heap: m.heap.Load(), Pinned: m.pinned.Load(),
		Connections: m.connections.Load(), Requests: m.streams.Load(), Late: time.Duration(m.late.Load()),
		RefusedForConnections: m.refused[byConnections].Load(), RefusedForStreams: m.refused[byStreams].Load(),
		RefusedForPinned: m.refused[byPinned].Load(), RefusedForMemory: m.refused[byMemory].Load(),
		RefusedForLateness: m.refused[byLateness].Load(),
	}
}

// connectionsFor a number of file descriptors. 128 are for listeners, files and
// the control plane.
func connectionsFor(files int64) int {
	const most = 1 << 20 // where files are not limited
	return int(min(max((files-128)/2, 16), most))
}

func system() probes {
	s := newSampler()
	return probes{
		sample: s.sample, close: s.close,
		setLimit: debug.SetMemoryLimit, free: debug.FreeOSMemory,
		allowed: allowedMemory, files: allowedFiles,
	}
}
