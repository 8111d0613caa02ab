package shop

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"
)

// order is an order as it stands in a list.
type order struct {
	ID          string    `json:"id"`
	UserID      string    `json:"userId"`
	SKU         string    `json:"sku"`
	Quantity    int       `json:"quantity"`
	Status      string    `json:"status"`
	TotalAmount float64   `json:"totalAmount"`
	CreatedAt   time.Time `json:"createdAt"`
}

// wholeOrder is an order with its parts, which other services know.
type wholeOrder struct {
	order
	Version   string  `json:"version"` // of this order-service
	User      user    `json:"user"`
	Inventory stock   `json:"inventory"`
	Payment   payment `json:"payment"`
	ServedBy  string  `json:"servedBy"`
}

var orderStatuses = []string{"paid", "packed", "shipped", "delivered"}

func orderOf(id string) order {
	return order{
		ID: id, UserID: strconv.FormatUint(1+number(50, "user", id), 10), SKU: strconv.FormatUint(1+number(100, "sku", id), 10),
		Quantity: int(1 + number(3, "quantity", id)), Status: orderStatuses[number(uint64(len(orderStatuses)), "status", id)],
		TotalAmount: float64(500+number(50_000, "cents", id)) / 100,
		CreatedAt:   time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC).Add(time.Duration(number(180*24*60, "created", id)) * time.Minute),
	}
}

// keptOrders is how many posted orders an instance remembers; older ones answer
// with what follows from their id.
const keptOrders = 1000

// orders is what was posted to this instance.
type orders struct {
	mu     sync.Mutex
	posted int // since the start
	kept   map[string]order
	ids    []string // of kept, oldest first
}

func (o *orders) get(id string) order {
	o.mu.Lock()
	defer o.mu.Unlock()
	if kept, ok := o.kept[id]; ok {
		return kept
	}
	return orderOf(id)
}

// count counts a POST, whatever becomes of it.
func (o *orders) count() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.posted++
	return o.posted
}

func (o *orders) add(n order) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.ids) == keptOrders {
		delete(o.kept, o.ids[0])
		o.ids = o.ids[1:]
	}
	o.kept[n.ID] = n
	o.ids = append(o.ids, n.ID)
}

// of lists a user's orders, those that were posted first, newest first.
func (o *orders) of(user string, limit int) []order {
	o.mu.Lock()
	defer o.mu.Unlock()
	list := []order{}
	for i := len(o.ids) - 1; i >= 0 && len(list) < limit; i-- {
		if kept := o.kept[o.ids[i]]; user == "" || kept.UserID == user {
			list = append(list, kept)
		}
	}
	for i := 1; len(list) < limit; i++ {
		n := orderOf(user + "-" + strconv.Itoa(i))
		if user == "" {
			n = orderOf(strconv.Itoa(i))
		} else {
			n.UserID = user
		}
		list = append(list, n)
	}
	return list
}

func serveOrders(s *service, mux *http.ServeMux) {
	posted := &orders{kept: map[string]order{}}
	mux.HandleFunc("GET /api/orders/{id}", func(w http.ResponseWriter, r *http.Request) {
		whole, err := s.wholeOrder(r.Context(), posted.get(r.PathValue("id")))
		if err != nil {
			s.refuse(w, http.StatusBadGateway, "%s", err)
			return
		}
		s.answer(w, http.StatusOK, whole)
	})
	list := func(w http.ResponseWriter, r *http.Request) {
		if limit, ok := s.limit(w, r, 10); ok {
			s.answer(w, http.StatusOK, posted.of(r.URL.Query().Get("user"), limit))
		}
	}
	mux.HandleFunc("GET /orders", list)
	mux.HandleFunc("GET /api/orders", list)
	mux.HandleFunc("POST /api/orders", func(w http.ResponseWriter, r *http.Request) {
		n := posted.count()
		w.Header().Set("X-Order-Count", strconv.Itoa(n))
		wanted := struct {
			UserID   string `json:"userId"`
			SKU      string `json:"sku"`
			Quantity int    `json:"quantity"`
		}{"1", "1", 1}
		if !s.read(w, r, &wanted) {
			return
		}
		if wanted.UserID == "" || wanted.SKU == "" || wanted.Quantity < 1 || wanted.Quantity > 1000 {
			s.refuse(w, http.StatusBadRequest, "an order needs a userId, a sku, and a quantity from 1 to 1000")
			return
		}
		id := s.servedBy + "-" + strconv.Itoa(n)
		created := orderOf(id)
		created.UserID, created.SKU, created.Quantity = wanted.UserID, wanted.SKU, wanted.Quantity
		created.Status, created.CreatedAt = "created", time.Now().UTC().Truncate(time.Millisecond)
		posted.add(created)
		w.Header().Set("Location", "/api/orders/"+id)
		s.answer(w, http.StatusCreated, created)
	})
}

// wholeOrder asks for the parts of an order, all at the same time, and waits for
// all. The error names every part that failed.
func (s *service) wholeOrder(ctx context.Context, o order) (wholeOrder, error) {
	whole := wholeOrder{order: o, Version: s.version, ServedBy: s.servedBy}
	var userErr, stockErr, paymentErr error
	var calls sync.WaitGroup
	calls.Go(func() {
		userErr = s.call(ctx, "user-service", "/users/"+url.PathEscape(o.UserID), &whole.User)
	})
	calls.Go(func() {
		stockErr = s.call(ctx, "inventory-service", "/api/inventory/"+url.PathEscape(o.SKU), &whole.Inventory)
	})
	calls.Go(func() {
		paymentErr = s.call(ctx, "payment-service", "/payments/"+url.PathEscape(o.ID), &whole.Payment)
	})
	calls.Wait()
	return whole, errors.Join(userErr, stockErr, paymentErr)
}
