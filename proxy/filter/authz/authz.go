// Package authz is the filter that lets a request pass, or not, by the
// AuthorizationPolicies of the workload that a proxy stands before.
//
// It decides by weft.Authorization, the evaluator that `weft explain --from`
// asks too. A denied request gets 403; the policy that decided is named in the
// access record and not to the client, who has no business to know it.
package authz

import (
	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/proxy"
)

// Filter applies the policies that Policies returns at that moment.
type Filter struct {
	// Policies of the workload. Called for every request: return what is
	// compiled already. nil means that no policy applies.
	Policies func() *weft.Authorization
}

// Request implements proxy.Filter.
func (f *Filter) Request(x *proxy.Exchange) *proxy.Answer {
	policies := f.Policies()
	if policies == nil || len(policies.Policies) == 0 {
		return nil
	}
	v := policies.Decide(x.Authorization())
	if v.Allowed {
		return nil
	}
	return &proxy.Answer{Status: 403, Reason: "denied", Text: "RBAC: access denied", Policy: v.Reason()}
}
