package shop

import "net/http"

type user struct {
	ID        string `json:"id"`
	Name      string `json:"name"`
	AvatarURL string `json:"avatarUrl"`
}

var (
	firstNames = []string{"Ada", "Barbara", "Edsger", "Grace", "Ken", "Leslie", "Margaret", "Niklaus", "Radia", "Tony"}
	lastNames  = []string{"Berg", "Costa", "Diaz", "Endo", "Fischer", "Grant", "Haddad", "Ivanova", "Jansen", "Kowalski"}
)

func userOf(id string) user {
	return user{
		ID:        id,
		Name:      firstNames[number(uint64(len(firstNames)), "first", id)] + " " + lastNames[number(uint64(len(lastNames)), "last", id)],
		AvatarURL: "https://shop.example.com/avatars/" + id + ".png",
	}
}

func serveUsers(s *service, mux *http.ServeMux) {
	get := func(w http.ResponseWriter, r *http.Request) {
		s.answer(w, http.StatusOK, userOf(r.PathValue("id")))
	}
	mux.HandleFunc("GET /users/{id}", get)
	mux.HandleFunc("GET /api/users/{id}", get)
}
