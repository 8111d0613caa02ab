package overload

import (
	"log/slog"
	"math"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// process is a process as its probes see it.
type process struct {
	mu      sync.Mutex
	now     sample
	samples int
	limit   int64 // the runtime's
	limits  []int64
	freed   []time.Time
	onFree  func(*sample)
	files   int64
	allowed int64
	log     strings.Builder
}

func newProcess() *process { return &process{limit: math.MaxInt64, files: 1 << 20} }

func (p *process) probes() probes {
	return probes{
		sample: func() sample {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.samples++
			return p.now
		},
		close: func() {},
		setLimit: func(n int64) int64 {
			p.mu.Lock()
			defer p.mu.Unlock()
			was := p.limit
			if n >= 0 {
				p.limit = n
				p.limits = append(p.limits, n)
			}
			return was
		},
		free: func() {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.freed = append(p.freed, time.Now())
			p.now.cycles++
			if p.onFree != nil {
				p.onFree(&p.now)
			}
		},
		allowed: func() int64 { return p.allowed },
		files:   func() int64 { return p.files },
	}
}

// start is called in a synctest bubble, and Close after the test's body.
func (p *process) start(t *testing.T, l Limits) *Monitor {
	m := start(l, slog.New(slog.NewTextHandler(&p.log, nil)), p.probes())
	t.Cleanup(m.Close)
	return m
}

// becomes lets the process be something else, and the monitor see it.
func (p *process) becomes(change func(*sample)) {
	p.mu.Lock()
	change(&p.now)
	p.mu.Unlock()
	time.Sleep(interval)
	synctest.Wait()
}

func (p *process) resident(share float64) {
	p.becomes(func(s *sample) { s.rss = int64(share * 1000 * mib) })
}

const mib = 1 << 20

// frees are the times at which memory was given back, up to now.
func (p *process) frees() []time.Time {
	synctest.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.freed)
}

// ceiling makes shares easy to read.
var ceiling = Limits{MemoryBytes: 1000 * mib, Connections: 10, Streams: 10}

func admits(m *Monitor) bool {
	ok, _ := m.AdmitRequest()
	if ok {
		m.ReleaseRequest()
	}
	return ok
}

func TestLevelsFollowTheMemoryWithHysteresis(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProcess()
		m := p.start(t, ceiling)
		for i, step := range []struct {
			share float64
			level Level
		}{
			{0.10, Calm}, {0.849, Calm}, {0.85, Tight}, {0.81, Tight}, {0.84, Tight}, {0.79, Calm}, {0.84, Calm},
			{0.949, Tight}, {0.95, Full}, {0.91, Full}, {0.949, Full}, {0.89, Tight}, {0.94, Tight}, {0.79, Calm},
			{2.00, Full}, {0.85, Tight}, {1.00, Full}, {0.10, Calm},
		} {
			p.resident(step.share)
			if got := m.Level(); got != step.level {
				t.Errorf("step %d, %.3f resident: %v, want %v", i, step.share, got, step.level)
			}
			if got := admits(m); got != (step.level != Full) {
				t.Errorf("step %d: a request is admitted: %v", i, got)
			}
			if got := m.AdmitConnection(); got != (step.level != Full) {
				t.Errorf("step %d: a connection is admitted: %v", i, got)
			} else if got {
				m.ReleaseConnection()
			}
		}
		s := m.Stats()
		if s.RefusedForMemory != 10 || s.Connections != 0 || s.Requests != 0 || s.RSS != 100*mib {
			t.Errorf("stats %+v", s)
		}
		if changes := strings.Count(p.log.String(), "memory is "); changes != 10 {
			t.Errorf("%d lines for 10 changes:\n%s", changes, p.log.String())
		}
	})
}

func TestWorkInFlightIsNotAskedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProcess()
		m := p.start(t, ceiling)
		if ok, _ := m.AdmitRequest(); !ok || !m.AdmitConnection() {
			t.Fatal("refused while calm")
		}
		p.resident(0.96)
		if !m.Pin(mib) {
			t.Error("a request in flight may not go on reading its body")
		}
		m.Unpin(mib)
		m.ReleaseRequest()
		m.ReleaseConnection()
		if s := m.Stats(); s.Requests != 0 || s.Connections != 0 || s.Pinned != 0 {
			t.Errorf("stats %+v", s)
		}
	})
}

func TestCountsAreLimited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newProcess().start(t, Limits{MemoryBytes: -1, Connections: 3, Streams: 5})
		for i := range 5 {
			if got := m.AdmitConnection(); got != (i < 3) {
				t.Errorf("connection %d: %v", i+1, got)
			}
		}
		for i := range 7 {
			ok, retry := m.AdmitRequest()
			if ok != (i < 5) {
				t.Errorf("request %d: %v", i+1, ok)
			}
			if !ok && (retry < time.Second || retry > 4*time.Second) {
				t.Errorf("try again after %v", retry)
			}
		}
		m.ReleaseConnection()
		m.ReleaseRequest()
		if !m.AdmitConnection() || !admits(m) {
			t.Error("a place that was given back is not given to others")
		}
		if s := m.Stats(); s.RefusedForConnections != 2 || s.RefusedForStreams != 2 || s.Connections != 3 || s.Requests != 4 {
			t.Errorf("stats %+v", s)
		}
	})
}

func TestRefusedClientsAreSpreadOverTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProcess()
		m := p.start(t, ceiling)
		p.resident(1)
		times := map[time.Duration]int{}
		for range 100 {
			_, retry := m.AdmitRequest()
			times[retry]++
		}
		if len(times) != 4 || times[time.Second] != 25 {
			t.Errorf("they try again after %v", times)
		}
	})
}

func TestPinnedBytes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newProcess().start(t, ceiling)
		for _, step := range []struct {
			pin   int // in MiB; negative: unpin
			ok    bool
			level Level
		}{
			{400, true, Calm}, {30, true, Tight}, {50, true, Full}, {20, true, Full}, {1, false, Full},
			{-100, true, Calm}, {75, true, Full}, {100, false, Full}, {-75, true, Calm}, {-400, true, Calm},
		} {
			ok := true
			if step.pin < 0 {
				m.Unpin(-step.pin * mib)
			} else {
				ok = m.Pin(step.pin * mib)
			}
			if ok != step.ok || m.Level() != step.level {
				t.Errorf("%+d MiB: %v and %v, want %v and %v", step.pin, ok, m.Level(), step.ok, step.level)
			}
			if admits(m) != (step.level != Full) {
				t.Errorf("%+d MiB: a request is admitted while %v", step.pin, step.level)
			}
		}
		if s := m.Stats(); s.Pinned != 0 || s.RefusedForPinned != 2+5 {
			t.Errorf("stats %+v", s)
		}
	})
}

func TestWithoutACeilingOnlyCountsCount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProcess()
		m := p.start(t, Limits{})
		p.resident(1e6)
		if m.Level() != Calm || !admits(m) || !m.Pin(math.MaxInt32) || m.Level() != Calm {
			t.Error("memory counts, though nobody limits it")
		}
		if p.limits != nil || len(p.frees()) != 0 {
			t.Error("the collector was touched")
		}
	})
}

func TestDefaults(t *testing.T) {
	for _, c := range []struct {
		name           string
		files, allowed int64
		given, want    Limits
	}{
		{"nothing is limited", math.MaxInt64, 0, Limits{}, Limits{0, 1 << 20, 4 << 20, lateMark}},
		{"a control group", 1024, 1000 * mib, Limits{}, Limits{900 * mib, 448, 1792, lateMark}},
		{"hardly any files", 64, 0, Limits{}, Limits{0, 16, 64, lateMark}},
		{"all is given", 1024, 1000 * mib, Limits{10, 20, 30, 40}, Limits{10, 20, 30, 40}},
		{"no ceiling, though there is a control group", 1024, 1000 * mib, Limits{MemoryBytes: -1, Connections: 5}, Limits{0, 5, 20, lateMark}},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := newProcess()
			p.files, p.allowed = c.files, c.allowed
			if got := p.start(t, c.given).Limits(); got != c.want {
				t.Errorf("got %+v, want %+v", got, c.want)
			}
		})
	}
}

func TestCollectorsLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProcess()
		p.now.file = 20 * mib
		m := start(ceiling, slog.New(slog.DiscardHandler), p.probes())
		p.becomes(func(s *sample) { s.file += 10 << 10 }) // too little to stop the world for
		p.becomes(func(s *sample) { s.file = 30 * mib })
		p.becomes(func(s *sample) { s.file = 900 * mib }) // a quarter is always left
		m.Close()
		if want := []int64{730 * mib, 720 * mib, 250 * mib, math.MaxInt64}; !slices.Equal(p.limits, want) {
			t.Errorf("limits %v, want %v", p.limits, want)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		p := newProcess()
		p.limit = 100 * mib // GOMEMLIMIT
		p.start(t, ceiling)
		p.resident(0.5)
		if len(p.limits) != 0 {
			t.Errorf("a lower limit of the user's was changed: %v", p.limits)
		}
	})
}

// What is resident but not in use is given back, at most every two seconds.
func TestMemoryIsGivenBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProcess()
		m := p.start(t, ceiling)
		p.becomes(func(s *sample) { s.rss, s.live = 960*mib, 200*mib })
		if m.Level() != Full {
			t.Fatal(m.Level())
		}
		time.Sleep(10*time.Second - interval)
		freed := p.frees()
		if len(freed) != 5 {
			t.Errorf("freed %d times in 10 s, to no avail", len(freed))
		}
		for i := 1; i < len(freed); i++ {
			if d := freed[i].Sub(freed[i-1]); d < freeInterval {
				t.Errorf("again after %v", d)
			}
		}
		p.mu.Lock()
		p.onFree = func(s *sample) { s.rss = 300 * mib }
		p.mu.Unlock()
		time.Sleep(freeInterval + interval)
		n := len(p.frees())
		if m.Level() != Calm || !admits(m) {
			t.Errorf("%v after it helped", m.Level())
		}
		time.Sleep(time.Minute)
		if len(p.frees()) != n {
			t.Error("memory is given back while calm")
		}
	})
}

func TestMemoryInUseIsNotCollectedAgainAndAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProcess()
		p.start(t, ceiling)
		p.becomes(func(s *sample) { s.rss, s.live = 900*mib, 850*mib })
		for range 20 { // the runtime collects by itself, and all of it lives
			p.becomes(func(s *sample) { s.cycles++ })
			time.Sleep(freeInterval / 4)
		}
		if n := len(p.frees()); n != 0 {
			t.Errorf("freed %d times", n)
		}
		// All clients go, nobody allocates, the runtime does not collect: live is a
		// number of the past.
		p.mu.Lock()
		p.onFree = func(s *sample) { s.rss, s.live = 100*mib, 20*mib }
		p.mu.Unlock()
		time.Sleep(3 * freeInterval)
		if n := len(p.frees()); n != 1 {
			t.Errorf("freed %d times", n)
		}
	})
}

func TestLateGoroutinesShedRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProcess()
		m := p.start(t, ceiling)
		refused := func() (n int) {
			for range 160 {
				if !admits(m) {
					n++
				}
			}
			return n
		}
		late := func(d time.Duration) func(*sample) { return func(s *sample) { s.late = d } }
		p.becomes(late(lateMark - 1))
		if n := refused(); n != 0 {
			t.Errorf("%d of 160 are refused below the mark", n)
		}
		for _, want := range []int{20, 40, 60} {
			p.becomes(late(lateMark))
			if n := refused(); n != want {
				t.Errorf("%d of 160 are refused, want %d", n, want)
			}
		}
		p.becomes(late(lateMark / 2)) // between the marks: it stays
		if n := refused(); n != 60 {
			t.Errorf("between the marks: %d of 160 are refused", n)
		}
		p.becomes(late(0))
		if n := refused(); n != 50 {
			t.Errorf("after the queue: %d of 160 are refused", n)
		}
		for range 100 {
			p.becomes(late(time.Second))
		}
		if n := refused(); n != 150 {
			t.Errorf("at worst %d of 160 are refused: some must pass to find out", n)
		}
		if !m.AdmitConnection() {
			t.Error("a connection is refused for lateness")
		}
		for range 100 {
			p.becomes(late(0))
		}
		if n := refused(); n != 0 {
			t.Errorf("%d of 160 are refused in the end", n)
		}
		if m.Stats().RefusedForLateness == 0 || m.Level() != Calm {
			t.Errorf("stats %+v", m.Stats())
		}
	})
}

func TestSamplesAreDenserNearTheCeiling(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProcess()
		p.start(t, ceiling)
		count := func() int {
			p.mu.Lock()
			before := p.samples
			p.mu.Unlock()
			time.Sleep(time.Second)
			synctest.Wait()
			p.mu.Lock()
			defer p.mu.Unlock()
			return p.samples - before
		}
		p.resident(0.59)
		if n := count(); n != 10 {
			t.Errorf("%d samples a second", n)
		}
		p.resident(0.60)
		if n := count(); n != 100 {
			t.Errorf("%d samples a second near the ceiling", n)
		}
	})
}

func TestDecidingDoesNotAllocate(t *testing.T) {
	p := newProcess()
	m := p.start(t, ceiling)
	if n := testing.AllocsPerRun(100, func() {
		m.AdmitConnection()
		admits(m)
		m.Pin(10)
		m.Level()
		m.Unpin(10)
		m.ReleaseConnection()
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkAdmitRequest(b *testing.B) {
	m := start(ceiling, slog.New(slog.DiscardHandler), newProcess().probes())
	defer m.Close()
	b.ReportAllocs()
	for b.Loop() {
		admits(m)
	}
}

func BenchmarkSample(b *testing.B) {
	s := newSampler()
	defer s.close()
	b.ReportAllocs()
	for b.Loop() {
		s.sample()
	}
}
