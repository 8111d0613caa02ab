package shop

import (
	"net/http"
	"strconv"
)

type recommendation struct {
	ProductID    string  `json:"productId"`
	ProductName  string  `json:"productName"`
	Price        float64 `json:"price"`
	ThumbnailURL string  `json:"thumbnailUrl"`
}

var (
	adjectives = []string{"Blue", "Folding", "Heavy", "Little", "Quiet", "Woollen"}
	products   = []string{"Chair", "Clock", "Desk", "Kettle", "Lamp", "Scarf", "Teapot"}
)

func recommendationOf(user string, nth int) recommendation {
	id := strconv.FormatUint(1+number(1000, "recommend", user, strconv.Itoa(nth)), 10)
	return recommendation{
		ProductID:    id,
		ProductName:  adjectives[number(uint64(len(adjectives)), "adjective", id)] + " " + products[number(uint64(len(products)), "product", id)],
		Price:        float64(500+number(20_000, "price", id)) / 100,
		ThumbnailURL: "https://shop.example.com/products/" + id + ".jpg",
	}
}

func serveRecommendations(s *service, mux *http.ServeMux) {
	mux.HandleFunc("GET /recommendations/{id}", func(w http.ResponseWriter, r *http.Request) {
		limit, ok := s.limit(w, r, 10)
		if !ok {
			return
		}
		list := make([]recommendation, limit)
		for i := range list {
			list[i] = recommendationOf(r.PathValue("id"), i)
		}
		s.answer(w, http.StatusOK, list)
	})
}
