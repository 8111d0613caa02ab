package resource

import (
	"encoding/json"
	"fmt"
	"mime"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/resilience"
)

func checkBreakerOverride(r *report, res *Resource) {
	const mend = "write forced-open, disabled or metrics-only; to let the calls decide again, delete the override"
	if !label.MatchString(res.Name) {
		r.errorf("metadata.name", "name it after the service whose circuit it holds", "%q is no name of a service", res.Name)
	}
	switch state := res.Spec.(*BreakerOverride).State; state {
	case resilience.ModeForcedOpen, resilience.ModeDisabled, resilience.ModeMetricsOnly:
	case "":
		r.errorf("spec.state", mend, "state is missing")
	default:
		r.errorf("spec.state", mend, "unknown value %q", state)
	}
}

func checkResiliencePolicy(r *report, res *Resource) {
	p := res.Spec.(*ResiliencePolicy)
	if len(p.Targets) == 0 {
		r.errorf("spec.targetRef", "write targetRef: {kind: Service, name: …}", "it does not say what it is for")
	}
	if reflect.ValueOf(p.Spec).IsZero() {
		r.errorf("spec", "write timeout, retry, circuitBreaker or whatever it is to give", "the policy asks for nothing")
	}
	for i, t := range p.Targets {
		at := targetPath(p, i)
		r.target(at, t, res.Namespace)
		if first := slices.Index(p.Targets, t); first < i {
			r.errorf(at, fmt.Sprintf("the first is on line %d", r.lines.line(targetPath(p, first))), "the target is written twice")
		}
	}
	r.fallback(res, p)
	r.attempts(&p.Spec)
}

// targetPath is where the i-th target was written, or might have been.
func targetPath(p *ResiliencePolicy, i int) string {
	if len(p.Targets) == 1 {
		return "spec.targetRef"
	}
	return fmt.Sprintf("spec.targetRefs[%d]", i)
}

func (r *report) target(at string, t TargetRef, namespace string) {
	switch {
	case t.Kind == serviceTarget && !label.MatchString(t.Name):
		r.errorf(at+".name", "write the name alone: the namespace is the policy's", "%q is no name of a service", t.Name)
	case t.Kind == serviceTarget && t.SectionName != "":
		r.errorf(at+".sectionName", "leave it out", "a Service has no sections")
	case t.Kind == serviceTarget:
	case t.Kind != virtualServiceKind:
		r.errorf(at+".kind", "write Service or VirtualService", "a policy cannot be for the kind %q", t.Kind)
	case !subdomain.MatchString(t.Name):
		r.errorf(at+".name", "", "%q is no name of a VirtualService", t.Name)
	}
	if t.Namespace != "" && t.Namespace != namespace {
		r.errorf(at+".namespace", "put the policy into "+t.Namespace, "the policy is in %s, and is for its own namespace only", namespace)
	}
}

func (r *report) fallback(res *Resource, p *ResiliencePolicy) {
	f := p.Spec.Fallback
	if f == nil {
		return
	}
	n, isName := fallback(res, p)
	if f.Service != "" && !isName {
		r.errorf("spec.fallback.service", "write name or name.namespace", "%q is no name of a service", f.Service)
	}
	for _, t := range p.Targets {
		if isName && t.Kind == serviceTarget && n == (weft.ServiceName{Namespace: res.Namespace, Name: t.Name}) {
			r.errorf("spec.fallback.service", "name another service", "%s would stand in for itself", f.Service)
		}
	}
	for name, value := range f.Headers {
		kind, _, err := mime.ParseMediaType(value)
		if strings.EqualFold(name, "content-type") && err == nil && (kind == "application/json" || strings.HasSuffix(kind, "+json")) &&
			!json.Valid([]byte(f.Body)) {
			r.warnf("spec.fallback.body", "", "it is no JSON, which its %s says that it is", name)
		}
	}
}

// repeatable are the methods that RFC 9110 §9.2.2 calls idempotent.
var repeatable = []string{"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"}

// attempts warns of what is sent more than once and should not be, and of attempts
// that time does not allow.
func (r *report) attempts(s *resilience.Spec) {
	if s.Retry == nil {
		return
	}
	for i, method := range s.Retry.Methods {
		if slices.Contains(repeatable, method) || s.Idempotency != nil {
			continue
		}
		r.warnf(fmt.Sprintf("spec.retry.methods[%d]", i), "leave it out, and let the caller send an Idempotency-Key; or write idempotency, which answers the second one as the first",
			"%s is repeated without an Idempotency-Key: the service may do the same thing twice", method)
		if s.Hedge != nil {
			r.warnf("spec.hedge", "leave it out of retry.methods", "%s is sent twice at once when its answer takes long", method)
		}
	}
	attempts := s.Retry.MaxAttempts
	if attempts == 0 {
		attempts = 3 // as RetrySpec has it
	}
	if all := time.Duration(attempts) * s.AttemptTimeout; s.Timeout > 0 && all > 2*s.Timeout {
		r.warnf("spec.attemptTimeout", "write less, or a longer timeout",
			"%d attempts of %s are %s: timeout, %s, ends the call long before", attempts, s.AttemptTimeout, all, s.Timeout)
	}
}
