package shop

import (
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

// misbehaviour makes an instance fail, or answer late, on demand, so that a breaker
// has something to do.
type misbehaviour struct {
	stopped <-chan struct{} // constant; the service is to end, and nothing is late any more

	mu   sync.Mutex
	now  fault
	debt float64 // of faulty answers that are due; one at 1
}

// fault of some of the requests. The zero value is none.
type fault struct {
	Status int           // 0: the answer is what it would have been
	Delay  time.Duration // before the answer
	Rate   float64       // of the requests, 0 to 1
}

// longestDelay ends well before the server's WriteTimeout.
const longestDelay = 20 * time.Second

const misbehaveUsage = "status must be from 400 to 599, delay a time up to 20s, and rate above 0 up to 1: /admin/misbehave?status=500&delay=5s&rate=1"

// next is the fault of this request. A rate of 0.25 is each fourth request, not
// about every fourth: demonstrations should be repeatable.
func (m *misbehaviour) next() fault {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.debt += m.now.Rate; m.debt < 1 {
		return fault{}
	}
	m.debt--
	return m.now
}

func (m *misbehaviour) set(f fault) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.now, m.debt = f, 0
}

// late waits, unless the caller goes or the service is to end. It is false when
// nobody waits for the answer any more.
func (m *misbehaviour) late(r *http.Request, delay time.Duration) bool {
	if delay == 0 {
		return true
	}
	timer := time.NewTimer(delay)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-m.stopped:
	case <-r.Context().Done():
		return false
	}
	return true
}

// misbehave adds to a service the endpoint /admin/misbehave, and what it was told.
// Health checks are answered as ever: this is the failure that they do not see.
func (s *service) misbehave(m *misbehaviour, mux *http.ServeMux) http.Handler {
	mux.HandleFunc("POST /admin/misbehave", func(w http.ResponseWriter, r *http.Request) {
		f, ok := readFault(r)
		if !ok {
			s.refuse(w, http.StatusBadRequest, misbehaveUsage)
			return
		}
		m.set(f)
		said := map[string]any{"status": f.Status, "rate": f.Rate}
		if f.Delay > 0 {
			said["delay"] = f.Delay.String()
		}
		s.answer(w, http.StatusOK, said)
	})
	mux.HandleFunc("DELETE /admin/misbehave", func(w http.ResponseWriter, r *http.Request) {
		m.set(fault{})
		s.answer(w, http.StatusOK, map[string]any{"status": 0})
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/health" && !strings.HasPrefix(r.URL.Path, "/admin/") {
			f := m.next()
			if !m.late(r, f.Delay) {
				return
			}
			if f.Status != 0 {
				s.refuse(w, f.Status, "this instance was told to misbehave")
				return
			}
		}
		mux.ServeHTTP(w, r)
	})
}

// readFault reads what an instance is told. Without a delay the status is 500 unless
// another is named; with one, the answer is late and otherwise well.
func readFault(r *http.Request) (f fault, ok bool) {
	status, delay := r.FormValue("status"), r.FormValue("delay")
	var err error
	if delay != "" {
		if f.Delay, err = time.ParseDuration(delay); err != nil || f.Delay <= 0 || f.Delay > longestDelay {
			return f, false
		}
	}
	if status != "" || delay == "" {
		if f.Status, err = strconv.Atoi(or(status, "500")); err != nil || f.Status < 400 || f.Status > 599 {
			return f, false
		}
	}
	f.Rate, err = strconv.ParseFloat(or(r.FormValue("rate"), "1"), 64)
	return f, err == nil && f.Rate > 0 && f.Rate <= 1
}

func or(text, byDefault string) string {
	if text == "" {
		return byDefault
	}
	return text
}
