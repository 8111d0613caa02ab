package shop

import (
	"net/http"
	"strconv"
	"sync"
)

type stock struct {
	SKU       string `json:"sku"`
	Available int    `json:"available"`
	Warehouse string `json:"warehouse"`
}

var warehouses = []string{"Gdynia", "Leipzig", "Lyon", "Porto"}

func stockOf(sku string) stock {
	return stock{SKU: sku, Available: int(number(250, "available", sku)), Warehouse: warehouses[number(uint64(len(warehouses)), "warehouse", sku)]}
}

// fault makes an instance fail on demand, so that a breaker has something to do.
type fault struct {
	mu     sync.Mutex
	status int     // 0: healthy
	rate   float64 // of the requests, 0 to 1
	debt   float64 // failures that are due; fails at 1
}

// next is the status to fail this request with, or 0. A rate of 0.25 fails each
// fourth request, not about every fourth: demonstrations should be repeatable.
func (f *fault) next() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.status == 0 {
		return 0
	}
	if f.debt += f.rate; f.debt < 1 {
		return 0
	}
	f.debt--
	return f.status
}

func (f *fault) set(status int, rate float64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.status, f.rate, f.debt = status, rate, 0
}

func serveInventory(s *service, mux *http.ServeMux) {
	var faulty fault
	mux.HandleFunc("GET /api/inventory/{sku}", func(w http.ResponseWriter, r *http.Request) {
		if status := faulty.next(); status != 0 {
			s.refuse(w, status, "this instance was told to misbehave")
			return
		}
		s.answer(w, http.StatusOK, stockOf(r.PathValue("sku")))
	})
	mux.HandleFunc("POST /admin/misbehave", func(w http.ResponseWriter, r *http.Request) {
		status, err1 := strconv.Atoi(or(r.FormValue("status"), "500"))
		rate, err2 := strconv.ParseFloat(or(r.FormValue("rate"), "1"), 64)
		if err1 != nil || err2 != nil || status < 400 || status > 599 || !(rate > 0 && rate <= 1) {
			s.refuse(w, http.StatusBadRequest, "status must be from 400 to 599, and rate above 0 up to 1: /admin/misbehave?status=500&rate=1")
			return
		}
		faulty.set(status, rate)
		s.answer(w, http.StatusOK, map[string]any{"status": status, "rate": rate})
	})
	mux.HandleFunc("DELETE /admin/misbehave", func(w http.ResponseWriter, r *http.Request) {
		faulty.set(0, 0)
		s.answer(w, http.StatusOK, map[string]any{"status": 0})
	})
}

func or(text, byDefault string) string {
	if text == "" {
		return byDefault
	}
	return text
}
