package trace

import (
	"sync/atomic"
	"unicode/utf8"
	"unsafe"
)

// Kind is a span's role, with OTLP's numbers.
type Kind uint8

const (
	Unspecified Kind = iota
	Internal
	Server
	Client
	Producer
	Consumer
)

// Span is one finished piece of work.
type Span struct {
	Context              // its own ids
	Parent        SpanID // zero: the trace begins here
	Name          string
	Kind          Kind
	Start, End    int64 // Unix time, nanoseconds
	Error         bool
	StatusMessage string // sent only when Error
	Attrs         []Attr
}

// Attr is an attribute with a text or an integer.
type Attr struct {
	Key   string
	Str   string
	Int   int64
	IsInt bool // Int counts, not Str
}

// What a recorder keeps of one span, so that its memory has a bound whatever a
// caller sends: 2,048 slots hold at most about 6 MB.
const (
	maxAttrs     = 16
	maxText      = 256  // bytes of a name, a message or an attribute's text
	maxSpanTexts = 2048 // bytes of all texts of a span
)

// Recorder is a bounded ring of finished spans between many recording
// goroutines and one that drains. When it is full, the newest span is dropped
// and counted: the ones before it are already paid for.
//
// The ring is Vyukov's bounded queue: each slot's turn says whether it is free
// for the lap of a writer or filled for the lap of a reader.
type Recorder struct {
	// constant
	slots []slot // a power of two
	mask  uint64
	wake  chan struct{} // holds one token while the ring is at least half full

	// atomics, on cache lines of their own: writers meet on tail only
	_       [64]byte
	tail    atomic.Uint64 // next position to fill
	_       [56]byte
	head    atomic.Uint64 // next position to drain
	_       [56]byte
	dropped atomic.Uint64
}

type slot struct {
	turn atomic.Uint64 // position: free for it; position+1: filled
	span Span          // under the turn, like all below
	text []byte        // span's texts point into it
}

// NewRecorder holds at least size spans.
func NewRecorder(size int) *Recorder {
	n := 2
	for n < size {
		n *= 2
	}
	r := &Recorder{slots: make([]slot, n), mask: uint64(n - 1), wake: make(chan struct{}, 1)}
	for i := range r.slots {
		r.slots[i].turn.Store(uint64(i))
	}
	return r
}

// Record copies the span, or drops it when the ring is full. It never blocks,
// and allocates only until each slot has seen its usual amount of text. The
// caller may reuse the span and the bytes under its texts at once; only
// attribute keys are kept as they are, and must be constants. Attributes after
// the sixteenth are left out and long texts cut.
func (r *Recorder) Record(s *Span) {
	pos := r.tail.Load()
	for {
		sl := &r.slots[pos&r.mask]
		turn := sl.turn.Load()
		switch {
		case turn == pos:
			if r.tail.CompareAndSwap(pos, pos+1) {
				sl.fill(s)
				sl.turn.Store(pos + 1)
				r.nudge(pos + 1)
				return
			}
			pos = r.tail.Load()
		case turn < pos: // still holds the span of the lap before
			r.dropped.Add(1)
			return
		default: // another writer took this position
			pos = r.tail.Load()
		}
	}
}

// nudge wakes the exporter when the ring is half full.
func (r *Recorder) nudge(tail uint64) {
	if tail-r.head.Load() < uint64(len(r.slots)/2) {
		return
	}
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// Drain calls fn for each span that is in the ring now, oldest first. The span
// and all that it holds are valid only until fn returns. Several may drain at
// the same time; each span is given to one of them.
func (r *Recorder) Drain(fn func(*Span)) {
	for range len(r.slots) { // an end, however fast the writers are
		if !r.drainOne(fn) {
			return
		}
	}
}

// drainOne reports false when no span is ready.
func (r *Recorder) drainOne(fn func(*Span)) bool {
	for {
		pos := r.head.Load()
		sl := &r.slots[pos&r.mask]
		switch turn := sl.turn.Load(); {
		case turn == pos+1:
			if r.head.CompareAndSwap(pos, pos+1) {
				fn(&sl.span)
				sl.turn.Store(pos + uint64(len(r.slots)))
				return true
			}
		case turn <= pos:
			return false
		}
	}
}

// Dropped counts the spans that found the ring full.
func (r *Recorder) Dropped() uint64 { return r.dropped.Load() }

// fill copies s into the slot, its texts into the slot's own bytes.
func (sl *slot) fill(s *Span) {
	attrs := s.Attrs[:min(len(s.Attrs), maxAttrs)]
	need := len(cut(s.Name)) + len(cut(s.StatusMessage))
	for i := range attrs {
		need += len(cut(attrs[i].Str))
	}
	need = min(need, maxSpanTexts)
	if cap(sl.text) < need {
		sl.text = make([]byte, 0, (need+63)&^63)
	}
	sl.text = sl.text[:0]

	own := sl.span.Attrs[:0]
	if cap(own) < len(attrs) {
		own = make([]Attr, 0, max(8, len(attrs)))
	}
	sl.span = *s
	sl.span.Name = sl.keep(s.Name)
	sl.span.StatusMessage = sl.keep(s.StatusMessage)
	for _, a := range attrs {
		a.Str = sl.keep(a.Str)
		own = append(own, a)
	}
	sl.span.Attrs = own
}

// keep copies text behind the texts kept so far, as much of it as there is room
// for, and returns the copy. The slot's bytes never move while it is filled:
// fill has made room before.
func (sl *slot) keep(text string) string {
	text = cutTo(cut(text), cap(sl.text)-len(sl.text))
	if text == "" {
		return ""
	}
	at := len(sl.text)
	sl.text = append(sl.text, text...)
	return unsafe.String(&sl.text[at], len(text))
}

func cut(text string) string { return cutTo(text, maxText) }

// cutTo shortens text to n bytes at most, not within a character.
func cutTo(text string, n int) string {
	if len(text) <= n {
		return text
	}
	for i := n; i >= 0 && i > n-utf8.UTFMax; i-- {
		if utf8.RuneStart(text[i]) {
			return text[:i]
		}
	}
	return text[:n]
}
