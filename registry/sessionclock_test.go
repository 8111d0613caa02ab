package registry

import (
	"slices"
	"testing"
	"time"

	"github.com/weftmesh/weft"
)

func lasting(ttl time.Duration) *Session { return &Session{TTL: weft.Duration(ttl)} }

// lapses steps through time until end, and returns what lapsed, with the second.
func lapses(l *lifetimes, begin time.Time, from, to time.Duration) (got []string) {
	for at := from; at <= to; at += 500 * time.Millisecond {
		ids, _ := l.step(begin.Add(at))
		for _, id := range ids {
			got = append(got, id+" "+at.String())
			l.set(id, nil, begin.Add(at))
		}
	}
	return got
}

func TestSessionsLapseAfterTwiceTheirTTL(t *testing.T) {
	begin := time.Now()
	var l lifetimes
	l.set("long", lasting(20*time.Second), begin)
	l.set("short", lasting(10*time.Second), begin)
	l.set("endless", lasting(0), begin)
	l.set("gone", lasting(10*time.Second), begin)
	l.set("gone", nil, begin)
	if got, want := lapses(&l, begin, 0, time.Minute), []string{"short 20s", "long 40s"}; !slices.Equal(got, want) {
		t.Errorf("lapsed: %q, want %q", got, want)
	}
	if !l.renew("endless", begin.Add(time.Minute)) {
		t.Error("a session without a TTL cannot be renewed")
	}
}

func TestRenewedSessionsLive(t *testing.T) {
	begin := time.Now()
	var l lifetimes
	l.set("a", lasting(10*time.Second), begin)
	got := lapses(&l, begin, 0, 15*time.Second)
	if !l.renew("a", begin.Add(15*time.Second)) {
		t.Fatal("it cannot be renewed")
	}
	got = append(got, lapses(&l, begin, 15*time.Second, time.Minute)...)
	if want := []string{"a 35s"}; !slices.Equal(got, want) {
		t.Errorf("lapsed: %q, want %q", got, want)
	}
}

// TestEndIsTriedAgain: until the catalogue says that the session is gone, or it is
// renewed.
func TestEndIsTriedAgain(t *testing.T) {
	begin := time.Now()
	var l lifetimes
	l.set("a", lasting(time.Second), begin)
	var got []time.Duration
	for at := time.Duration(0); at <= 8*time.Second; at += 500 * time.Millisecond {
		if at == 6500*time.Millisecond {
			if !l.over("a") || !l.renew("a", begin.Add(at)) || l.over("a") {
				t.Error("a renewal does not save a session that could not be ended")
			}
		}
		if ids, _ := l.step(begin.Add(at)); len(ids) > 0 {
			got = append(got, at)
		}
	}
	if want := []time.Duration{2 * time.Second, 4 * time.Second, 6 * time.Second}; !slices.Equal(got, want) {
		t.Errorf("handed out at %v, want %v", got, want)
	}
	l.doom("a", begin.Add(8*time.Second))
	if l.renew("a", begin.Add(8*time.Second)) || !l.over("a") {
		t.Error("a renewal saves a session that has to end")
	}
	l.doom("b", begin.Add(8*time.Second))
	if ids, _ := l.step(begin.Add(8 * time.Second)); !slices.Contains(ids, "a") || !slices.Contains(ids, "b") {
		t.Errorf("handed out: %q, want a and b", ids)
	}
}

func TestPauseIsNotCountedAgainstSessions(t *testing.T) {
	begin := time.Now()
	var l lifetimes
	l.set("a", lasting(10*time.Second), begin)
	l.set("b", lasting(20*time.Second), begin)
	got := lapses(&l, begin, 0, 5*time.Second)
	// One minute without a step: the process was stopped.
	got = append(got, lapses(&l, begin, 65*time.Second, 200*time.Second)...)
	if want := []string{"a 1m20s", "b 1m40s"}; !slices.Equal(got, want) {
		t.Errorf("lapsed: %q, want %q", got, want)
	}
	// A renewal is the first to see the pause.
	l = lifetimes{}
	l.set("a", lasting(10*time.Second), begin)
	l.set("b", lasting(10*time.Second), begin)
	l.step(begin)
	l.renew("b", begin.Add(time.Minute))
	if got, want := lapses(&l, begin, time.Minute, 2*time.Minute), []string{"a 1m20s", "b 1m20s"}; !slices.Equal(slices.Sorted(slices.Values(got)), want) {
		t.Errorf("lapsed: %q, want %q", got, want)
	}
}
