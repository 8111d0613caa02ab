package consul

import (
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/weftmesh/weft"
)

func TestAccessOfOtherDialects(t *testing.T) {
	for _, tt := range []struct {
		name, byDefault string
		prepare         func(*http.Request)
		service         string
		write, allowed  bool
	}{
		{"nobody, by default", "allow", nil, "orders", true, true},
		{"nobody, denied", "deny", nil, "orders", false, false},
		{"nobody, all of them", "deny", nil, "", false, false},
		{"a password", "deny", func(r *http.Request) { r.SetBasicAuth("x", "secret") }, "", true, true},
		{"Consul's header", "deny", func(r *http.Request) { r.Header.Set("X-Consul-Token", "secret") }, "orders", true, true},
		{"a bearer", "deny", func(r *http.Request) { r.Header.Set("Authorization", "Bearer secret") }, "orders", true, true},
		{"a wrong password", "allow", func(r *http.Request) { r.SetBasicAuth("x", "other") }, "orders", false, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRegistry(t)
			x := NewAccess(r, &ACL{DefaultPolicy: tt.byDefault, InitialManagement: "secret"})
			request := httptest.NewRequest(http.MethodGet, "/", nil)
			if tt.prepare != nil {
				tt.prepare(request)
			}
			err := x.Service(request, tt.service, tt.write)
			if tt.allowed && err != nil || !tt.allowed && weft.KindOf(err) != weft.Denied {
				t.Errorf("%v, want it allowed: %v", err, tt.allowed)
			}
		})
	}
}
