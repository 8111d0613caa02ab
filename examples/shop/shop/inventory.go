package shop

import "net/http"

type stock struct {
	SKU       string `json:"sku"`
	Available int    `json:"available"`
	Warehouse string `json:"warehouse"`
}

var warehouses = []string{"Gdynia", "Leipzig", "Lyon", "Porto"}

func stockOf(sku string) stock {
	return stock{SKU: sku, Available: int(number(250, "available", sku)), Warehouse: warehouses[number(uint64(len(warehouses)), "warehouse", sku)]}
}

func serveInventory(s *service, mux *http.ServeMux) {
	mux.HandleFunc("GET /api/inventory/{sku}", func(w http.ResponseWriter, r *http.Request) {
		s.answer(w, http.StatusOK, stockOf(r.PathValue("sku")))
	})
}
