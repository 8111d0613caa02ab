package consul

import (
	"log/slog"
	"net/http"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/registry"
)

// Access is access control for the doors of other dialects: the same tokens, policies
// and default as for Consul's clients.
type Access struct{ api *api }

// NewAccess returns the access control that New has for the same ACL.
func NewAccess(r *registry.Registry, c *ACL) *Access {
	return &Access{&api{registry: r, acl: newAccessControl(c), logger: slog.New(slog.DiscardHandler), catchUp: catchUpOf(r)}}
}

// Service returns why the sender of a request may not read, or write, a service; an
// empty name means all of them. The token is the password of Basic authentication,
// which every HTTP client can be given in a URL, or comes as Consul's clients send it.
// The error is weft.Denied.
func (x *Access) Service(r *http.Request, name string, write bool) error {
	want, verb := readable, "read"
	if write {
		want, verb = writable, "write"
	}
	thing := "service " + name
	if name == "" {
		thing = "all services"
	}
	p, err := x.api.resolve(r.Context(), tokenOf(r))
	switch {
	case err != nil:
		return weft.Errorf(weft.Denied, verb, thing, "%w", err)
	case name == "" && p.allowsBelow(serviceResource, "", want), name != "" && p.allows(serviceResource, name, want):
		return nil
	case p.accessor == anonymousAccessor:
		return weft.Errorf(weft.Denied, verb, thing, "it needs a token: as the password in the URL, or in X-Consul-Token")
	}
	return weft.Errorf(weft.Denied, verb, thing, "the token %s has no right to it", p.accessor)
}

func tokenOf(r *http.Request) string {
	if _, password, ok := r.BasicAuth(); ok {
		return password
	}
	return headerToken(r)
}
