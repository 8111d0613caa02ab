package resource

import "testing"

func TestContend(t *testing.T) {
	const mesh = `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: a}
spec:
  hosts: [order-service]
  http: [{route: [{destination: {host: order-service}}]}]
`
	const edge = `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: b}
spec:
  hosts: [order-service]
  gateways: [shop]
  http: [{route: [{destination: {host: order-service}}]}]
`
	rule := func(host string) string {
		return "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: c}\nspec: {host: " + host + "}\n"
	}
	for _, tt := range []struct {
		name, a, b string
		want       bool
	}{
		{"two VirtualServices of one host", mesh, mesh, true},
		{"one of them at a gateway", mesh, edge, false},
		{"two DestinationRules of one host", rule("order-service"), rule("order-service.default.svc.cluster.local"), true},
		{"of two hosts", rule("order-service"), rule("cart-service"), false},
		{"two kinds", mesh, rule("order-service"), false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			read := func(text string) *Resource {
				list, problems := Parse([]File{{Name: "x.yaml", Data: []byte(text)}})
				if len(list) != 1 {
					t.Fatal(problems)
				}
				return list[0]
			}
			a, b := read(tt.a), read(tt.b)
			if Contend(a, b) != tt.want || Contend(b, a) != tt.want {
				t.Errorf("%v and %v, want %v", Contend(a, b), Contend(b, a), tt.want)
			}
		})
	}
}
