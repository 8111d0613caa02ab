package overload

import (
	"context"
	"log/slog"
	"time"
)

// probes are what a Monitor knows of the process and does to it. Tests have
// others.
type probes struct {
	sample   func() sample
	close    func()
	setLimit func(int64) int64 // debug.SetMemoryLimit
	free     func()            // debug.FreeOSMemory
	allowed  func() int64      // bytes that the control group allows; 0 is no limit
	files    func() int64      // file descriptors that the process may have
}

// sample is what a probe saw.
type sample struct {
	rss    int64         // bytes that are resident
	file   int64         // of these, pages of files: mostly the program
	live   int64         // bytes that lived at the last collection, and stacks
	cycles uint64        // collections so far
	late   time.Duration // of the median goroutine that became ready since the last sample
}

const (
	limitMark = 0.75
	calmMark  = 0.80 // Tight ends below
	tightMark = 0.85 // and begins here
	easyMark  = 0.90 // Full ends below
	fullMark  = 0.95 // and begins here

	// A sample takes 2.5 µs. Above closeMark there are ten times as many,
	// because at 1 GB/s a tenth of a ceiling of 1 GiB is a tenth of a second.
	interval      = 100 * time.Millisecond
	closeInterval = 10 * time.Millisecond
	closeMark     = 0.60

	// freeInterval is the least time between collections that we order.
	freeInterval = 2 * time.Second
	// limitStep is the least change of the runtime's limit: a change stops all
	// goroutines for a moment.
	limitStep = 1 << 20

	// lateMark: a request through a proxy waits for a processor at least four
	// times (its head, the upstream's connection or answer, the answer's body, the
	// end), so that a median of 50 ms makes it 200 ms later: no client is served
	// well by one more in that queue. A proxy at its full load, which does some
	// 10 µs of work at a time, needs 5,000 ready goroutines a processor for it. It
	// is the median, so that pauses of the process do not count as a queue: those
	// that the kernel makes when a control group has used its share of 100 ms delay
	// only who became ready during them.
	lateMark = 50 * time.Millisecond
	// maxShed leaves one request of 16 even then, so that it shows when the others
	// may come again.
	maxShed = shedParts - 1
)

// watch is what run remembers between samples.
type watch struct {
	before int64 // the runtime's limit before Start
	limit  int64 // and as it is
	freed  time.Time
	cycles uint64 // collections when we last ordered one
}

// run samples until Close.
func (m *Monitor) run() {
	defer close(m.done)
	defer m.probes.close()
	next := time.NewTimer(m.pace())
	defer next.Stop()
	for {
		select {
		case <-m.stop:
			if m.watch.limit != m.watch.before {
				m.probes.setLimit(m.watch.before)
			}
			return
		case <-next.C:
		}
		m.look()
		next.Reset(m.pace())
	}
}

// pace is the time until the next sample.
func (m *Monitor) pace() time.Duration {
	if c := m.limits.MemoryBytes; c > 0 && float64(m.rss.Load()) >= closeMark*float64(c) {
		return closeInterval
	}
	return interval
}

// look takes a sample and judges it.
func (m *Monitor) look() {
	s := m.probes.sample()
	m.rss.Store(s.rss)
	m.heap.Store(s.live)
	m.late.Store(int64(s.late))
	m.shed.Store(nextShed(m.shed.Load(), s.late, m.limits.Late))
	if m.limits.MemoryBytes == 0 {
		return
	}
	m.limitCollector(s)
	was := Level(m.level.Load())
	now := nextLevel(was, float64(s.rss)/float64(m.limits.MemoryBytes))
	m.level.Store(uint32(now))
	if now != was {
		level := slog.LevelInfo
		if now > was {
			level = slog.LevelWarn
		}
		m.logger.Log(context.Background(), level, "memory is "+now.String(), "was", was.String(),
			"rss", s.rss, "ceiling", m.limits.MemoryBytes, "heap", s.live, "pinned", m.pinned.Load())
	}
	if now >= Tight {
		m.giveBack(s)
	}
}

// limitCollector keeps the runtime's limit at its mark.
func (m *Monitor) limitCollector(s sample) {
	ceiling := m.limits.MemoryBytes
	// A ceiling that is too low for the program itself leaves a quarter, lest the
	// collector never stop.
	want := max(int64(limitMark*float64(ceiling))-s.file, ceiling/4)
	want = min(want, m.watch.before)
	if d := want - m.watch.limit; d >= limitStep || d <= -limitStep {
		m.probes.setLimit(want)
		m.watch.limit = want
	}
}

// giveBack orders a collection that returns memory to the kernel, when it could
// help: little of what is resident lived at the last one, or there was none for a
// while. The second is what ends Full: nobody allocates then, and the runtime
// collects only when somebody does.
func (m *Monitor) giveBack(s sample) {
	now := time.Now()
	if now.Sub(m.watch.freed) < freeInterval {
		return
	}
	used := float64(s.live + s.file)
	if used >= calmMark*float64(m.limits.MemoryBytes) && s.cycles != m.watch.cycles {
		// It is in use, and the collector has just seen so.
		m.watch.freed, m.watch.cycles = now, s.cycles
		return
	}
	m.probes.free()
	// The time that it took does not count: a large heap is not collected all the
	// time.
	m.watch.freed, m.watch.cycles = time.Now(), s.cycles+1
}

// nextLevel moves between levels with a distance between the marks of coming and
// going, so that a process near one does not change its mind at each sample.
func nextLevel(was Level, share float64) Level {
	switch {
	case share >= fullMark, was == Full && share >= easyMark:
		return Full
	case share >= tightMark, was >= Tight && share >= calmMark:
		return Tight
	}
	return Calm
}

// nextShed moves the share of requests that are refused: quickly up while
// goroutines are late, slowly down when they are not half as late. All or nothing
// would swing between an empty and a full queue.
func nextShed(was uint32, late, mark time.Duration) uint32 {
	switch {
	case late >= mark:
		return min(was+2, maxShed)
	case late < mark/2 && was > 0:
		return was - 1
	}
	return was
}

// isShed spreads the refused ones evenly among all.
func (m *Monitor) isShed(shed uint32) bool {
	return m.turn.Add(7)%shedParts < shed
}
