package eureka

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/weftmesh/weft"
)

func TestWhatIsPermitted(t *testing.T) {
	var asked string
	a := New(nil, Config{Permit: func(r *http.Request, service string, write bool) error {
		asked = fmt.Sprintf("%q %v", service, write)
		return weft.Errorf(weft.Denied, "read", "service", "no")
	}})
	for _, tt := range []struct{ method, path, want string }{
		{"GET", "/eureka/apps", `"" false`},
		{"GET", "/eureka/v2/apps/delta", `"" false`},
		{"HEAD", "/eureka/apps/ORDERS", `"orders" false`},
		{"POST", "/eureka/apps/ORDERS", `"orders" true`},
		{"PUT", "/eureka/apps/ORDERS/o1", `"orders" true`},
		{"DELETE", "/eureka/apps/ORDERS/o1/status", `"orders" true`},
		{"GET", "/eureka/instances/o1", `"" false`},
		{"GET", "/eureka/vips/orders", `"" false`},
		{"POST", "/eureka/peerreplication/batch", `"" true`},
		{"PUT", "/eureka/asg/x/status", `"" true`},
	} {
		for _, known := range []bool{false, true} {
			r := httptest.NewRequest(tt.method, tt.path, nil)
			status := http.StatusUnauthorized
			if known {
				r.SetBasicAuth("x", "secret")
				status = http.StatusForbidden
			}
			w := httptest.NewRecorder()
			a.ServeHTTP(w, r)
			if w.Code != status || asked != tt.want || (w.Header().Get("WWW-Authenticate") != "") == known {
				t.Errorf("%s %s, with a password %v: status %d, asked %s, want %d and %s", tt.method, tt.path, known, w.Code, asked, status, tt.want)
			}
		}
	}
}
