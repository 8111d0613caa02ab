package relay

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

func TestMemory(t *testing.T) {
	var m Memory[string]
	now := time.Unix(1000, 0)
	if kind, known := m.Recall("db", now); known || kind != Unknown {
		t.Error("an empty memory knows", kind)
	}
	m.Forget("db")
	m.Learn("db", Unknown, now)
	if _, known := m.Recall("db", now); known {
		t.Error("learnt nothing")
	}
	m.Learn("db", ServerFirst, now)
	if kind, known := m.Recall("db", now.Add(10*time.Minute-1)); !known || kind != ServerFirst {
		t.Error("after a while:", kind, known)
	}
	if _, known := m.Recall("db", now.Add(10*time.Minute)); known {
		t.Error("known for too long: using it must not prolong it")
	}
	m.Learn("db", ServerFirst, now)
	m.Learn("db", HTTP1, now.Add(time.Minute))
	if kind, _ := m.Recall("db", now.Add(10*time.Minute)); kind != HTTP1 {
		t.Error("learnt anew:", kind)
	}
	m.Forget("db")
	if _, known := m.Recall("db", now); known {
		t.Error("forgotten, but known")
	}
	for i := range 2000 {
		m.Learn(string(rune('0'+i)), Raw, now)
	}
	if len(m.entries) != 1024 || m.used.Len() != 1024 {
		t.Errorf("remembers %d", len(m.entries))
	}
	if n := testing.AllocsPerRun(100, func() { m.Recall("x", now) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// TestMemoryAsSlice holds it against a slice that is searched.
func TestMemoryAsSlice(t *testing.T) {
	type entry struct {
		to     int
		kind   Kind
		forget time.Time
	}
	m := Memory[int]{Size: 8, Keep: time.Minute}
	var slow []entry // the latest used last
	now := time.Unix(0, 0)
	take := func(to int) (e entry, ok bool) {
		i := slices.IndexFunc(slow, func(e entry) bool { return e.to == to })
		if i < 0 {
			return entry{}, false
		}
		e = slow[i]
		slow = slices.Delete(slow, i, i+1)
		return e, true
	}
	rng := rand.New(rand.NewPCG(1, 2))
	for range 20000 {
		now = now.Add(time.Duration(rng.IntN(5000)) * time.Millisecond)
		to := rng.IntN(16)
		switch rng.IntN(5) {
		case 0, 1:
			kind := HTTP1 + Kind(rng.IntN(5))
			m.Learn(to, kind, now)
			if _, known := take(to); !known && len(slow) == 8 {
				slow = slow[1:]
			}
			slow = append(slow, entry{to, kind, now.Add(time.Minute)})
		case 2:
			if rng.IntN(4) == 0 {
				m.Forget(to)
				take(to)
			}
		default:
			kind, known := m.Recall(to, now)
			e, ok := take(to)
			ok = ok && now.Before(e.forget)
			if ok {
				slow = append(slow, e)
			}
			if known != ok || known && kind != e.kind {
				t.Fatalf("%d: %v, %v; slice: %v, %v", to, kind, known, e.kind, ok)
			}
		}
	}
}
