package trace

import (
	"encoding/binary"
	"strings"
	"sync"
	"testing"
	"unicode/utf8"
	"unsafe"
)

func drained(r *Recorder) (names []string) {
	r.Drain(func(s *Span) { names = append(names, strings.Clone(s.Name)) })
	return names
}

func TestRecorderGivesSpansInOrder(t *testing.T) {
	r := NewRecorder(4)
	for lap := range 3 {
		for _, n := range []string{"a", "b", "c"} {
			r.Record(&Span{Name: n})
		}
		if got := strings.Join(drained(r), ""); got != "abc" {
			t.Fatalf("lap %d: %q", lap, got)
		}
	}
	if got := drained(r); got != nil {
		t.Errorf("an empty ring gave %q", got)
	}
}

func TestFullRecorderDropsTheNewestAndCounts(t *testing.T) {
	r := NewRecorder(4)
	for _, n := range []string{"a", "b", "c", "d", "e", "f"} {
		r.Record(&Span{Name: n})
	}
	if got := strings.Join(drained(r), ""); got != "abcd" || r.Dropped() != 2 {
		t.Errorf("kept %q, dropped %d; want abcd and 2", got, r.Dropped())
	}
	r.Record(&Span{Name: "g"})
	if got := strings.Join(drained(r), ""); got != "g" {
		t.Errorf("after draining there is room: got %q", got)
	}
}

// The proxy's texts lie in its read buffer, which it reuses for the next request.
func TestRecordCopiesTextsAndAttributes(t *testing.T) {
	buf := []byte("GET /api/orders/1 refused")
	s := Span{
		Name: unsafe.String(&buf[0], 3), Error: true, StatusMessage: unsafe.String(&buf[18], 7),
		Attrs: []Attr{{Key: "path", Str: unsafe.String(&buf[4], 13)}, {Key: "code", Int: 503, IsInt: true}},
	}
	r := NewRecorder(2)
	r.Record(&s)
	clear(buf)
	s.Attrs[1].Int = 0
	r.Drain(func(got *Span) {
		if got.Name != "GET" || got.StatusMessage != "refused" || got.Attrs[0].Str != "/api/orders/1" || got.Attrs[1].Int != 503 {
			t.Errorf("the recorded span changed with its caller's buffer: %+v", *got)
		}
	})
}

func TestRecordBoundsASpan(t *testing.T) {
	long := strings.Repeat("é", maxText) // 2 bytes each
	s := Span{Name: "x" + long}
	for range maxAttrs + 4 {
		s.Attrs = append(s.Attrs, Attr{Key: "k", Str: long})
	}
	r := NewRecorder(2)
	r.Record(&s)
	r.Drain(func(got *Span) {
		if len(got.Attrs) != maxAttrs {
			t.Errorf("%d attributes", len(got.Attrs))
		}
		// The 256th byte is within a character, which is left out whole.
		if len(got.Name) != maxText-1 || !utf8.ValidString(got.Name) {
			t.Errorf("name has %d bytes, valid %v", len(got.Name), utf8.ValidString(got.Name))
		}
		total := len(got.Name)
		for _, a := range got.Attrs {
			total += len(a.Str)
			if !utf8.ValidString(a.Str) {
				t.Errorf("a text was cut within a character")
			}
		}
		if total > maxSpanTexts {
			t.Errorf("texts take %d bytes, limit %d", total, maxSpanTexts)
		}
	})
	if got := cap(r.slots[0].text); got > maxSpanTexts {
		t.Errorf("the slot keeps %d bytes", got)
	}
}

func TestRecordDoesNotAllocateInSteadyState(t *testing.T) {
	r := NewRecorder(4)
	s := Span{Name: "GET /api/orders/{id}", Attrs: []Attr{{Key: "http.route", Str: "/api/orders/{id}"}, {Key: "n", Int: 1, IsInt: true}}}
	nop := func(*Span) {}
	record := func() {
		r.Record(&s)
		r.Record(&s)
		r.Drain(nop)
	}
	record()
	record() // each of the four slots was used once
	if n := testing.AllocsPerRun(100, record); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// Whatever the interleaving, each span is drained once and whole, or counted as
// dropped.
func TestRecorderUnderContention(t *testing.T) {
	const writers, each = 4, 3000
	r := NewRecorder(64)
	done := make(chan struct{})
	total, last := 0, [writers]uint32{}
	collect := func() {
		r.Drain(func(s *Span) {
			if int64(len(s.Name)) != s.Start || s.Attrs[0].Int != s.Start {
				t.Errorf("torn span: %d %d %d", len(s.Name), s.Start, s.Attrs[0].Int)
			}
			w, order := s.SpanID[0], binary.BigEndian.Uint32(s.SpanID[1:])
			if order <= last[w] {
				t.Errorf("writer %d: span %d after %d", w, order, last[w])
			}
			last[w] = order
			total++
		})
	}
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			text := strings.Repeat("x", 100)
			for i := range each {
				n := i % 100
				id := SpanID{byte(w)}
				binary.BigEndian.PutUint32(id[1:], uint32(i+1))
				r.Record(&Span{Context: Context{SpanID: id}, Name: text[:n], Start: int64(n), Attrs: []Attr{{Key: "n", Int: int64(n), IsInt: true}}})
			}
		})
	}
	go func() { wg.Wait(); close(done) }()
	for running := true; running; {
		select {
		case <-done:
			running = false
		default:
		}
		collect()
	}
	if uint64(total)+r.Dropped() != writers*each {
		t.Errorf("%d drained + %d dropped, want %d", total, r.Dropped(), writers*each)
	}
}

func BenchmarkRecord(b *testing.B) {
	r := NewRecorder(1024)
	s := Span{Name: "GET /api/orders/{id}", Attrs: []Attr{{Key: "http.request.method", Str: "GET"}, {Key: "url.path", Str: "/api/orders/1"}, {Key: "http.response.status_code", Int: 200, IsInt: true}}}
	nop := func(*Span) {}
	b.ReportAllocs()
	for b.Loop() {
		r.Record(&s)
		r.drainOne(nop)
	}
}
