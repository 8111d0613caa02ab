package shop

import (
	"net/http"
	"strconv"
	"sync"
)

type payment struct {
	ID      string  `json:"id"`
	OrderID string  `json:"orderId"`
	Amount  float64 `json:"amount"`
	Status  string  `json:"status"`
}

// paymentOf the order of the same id: of all that was not posted here.
func paymentOf(id string) payment {
	return payment{ID: id, OrderID: id, Amount: orderOf(id).TotalAmount, Status: "settled"}
}

// keptPayments is how many posted payments an instance remembers.
const keptPayments = 1000

func servePayments(s *service, mux *http.ServeMux) {
	var mu sync.Mutex
	made, kept := 0, map[string]payment{} // under mu
	idOf := func(n int) string { return s.servedBy + "-" + strconv.Itoa(n) }

	mux.HandleFunc("POST /payments", func(w http.ResponseWriter, r *http.Request) {
		p := payment{Status: "authorized"}
		if !s.read(w, r, &p) {
			return
		}
		if p.OrderID == "" || !(p.Amount > 0 && p.Amount <= 1e6) {
			s.refuse(w, http.StatusBadRequest, "a payment needs an orderId, and an amount above 0 up to 1,000,000")
			return
		}
		mu.Lock()
		made++
		p.ID, p.Status = idOf(made), "authorized"
		kept[p.ID] = p
		delete(kept, idOf(made-keptPayments))
		mu.Unlock()
		w.Header().Set("Location", "/payments/"+p.ID)
		s.answer(w, http.StatusCreated, p)
	})
	mux.HandleFunc("GET /payments/{id}", func(w http.ResponseWriter, r *http.Request) {
		id := r.PathValue("id")
		mu.Lock()
		p, ok := kept[id]
		mu.Unlock()
		if !ok {
			p = paymentOf(id)
		}
		s.answer(w, http.StatusOK, p)
	})
}
