// Package resource reads what users write, checks it, and compiles it to weft's
// nouns.
//
// Parse takes files of YAML or JSON and gives Resources and Problems: every
// problem of every file at once, each with file and line, the path of the field,
// and how to mend it. What is wrong is refused; nothing is ignored in silence.
// A field that Istio has and weft does not carry out is refused by name, or, if
// leaving it out changes no answer, accepted with a warning. A reference to a
// service, a subset or a gateway that is not there (yet) is no problem of Parse:
// the order of files must not matter. Set.Warnings reports it.
//
// The kinds are Istio's VirtualService, DestinationRule and Gateway
// (networking.istio.io/v1, v1beta1, v1alpha3), AuthorizationPolicy and
// PeerAuthentication (security.istio.io/v1, v1beta1), as in istio.io/api. What
// "kubectl get -o yaml" prints is read, too. PeerAuthentication compiles to
// nothing: STRICT, which is all that it may say, is how sidecars are.
//
// Where Istio has no word there are kinds of weft.dev/v1. A ResiliencePolicy gives a
// resilience.Spec to its targetRef (or targetRefs): a Service, or a VirtualService,
// of which sectionName names one http rule. Of policies for the same target the
// oldest holds; one for a rule holds before one for its VirtualService, and that
// before the service's. Where a rule itself has retries or a timeout, they hold
// before the service's policy, and a policy that is attached to the rule before
// them. A BreakerOverride, named after a service, holds its circuit in a state.
//
// Of Kubernetes itself there is Service (v1): the names and addresses of a service,
// which DNS answers with. Nothing is compiled of it.
//
// A Resource keeps its canonical JSON together with its file and lines. A store
// keeps that, and Decode makes of it the same Resource, so that every compiled
// rule still names its line after a restart.
//
// NewSet compiles Resources and answers what the control plane asks: the rules
// of a host (RouteTable), a gateway's tables (Gateway), a service's policy and
// subsets (Service), its ResiliencePolicy and the state that its circuit is held in
// (Resilience, Breaker), a workload's policies (Authorization). Set.With makes the set
// after a change, compiles only what the change concerns, and says which tables of
// gateways that is. The semantics are Istio's. Where they are a trap, Warnings says
// so:
//
//   - Sidecars do not merge the VirtualServices of a host: the first wins.
//     Gateways do merge them, those rules last that fit everything.
//   - Of the tcp rules for a port of a gateway the first gets every connection:
//     nothing else tells them apart.
//   - Of DestinationRules the first namespace with a fitting host wins: the
//     client's, the service's, istio-system. Nothing is inherited.
//   - A rule after one that fits everything is never reached.
//   - An outlierDetection makes near endpoints come first; without one nothing fails
//     over, whatever localityLbSetting says.
//
// A VirtualService's tls rules are for servers with tls.mode PASSTHROUGH; where the
// gateway itself ends TLS, the narrower name wins, as it does between such servers.
// Certificates are no part of a Gateway: a gateway is given them when it is started.
//
// How the paths of a host are normalised says the annotation
// weft.dev/path-normalization (NONE, BASE, MERGE_SLASHES, DECODE_AND_MERGE_SLASHES)
// of its VirtualService, or of the Gateway for hosts of which nobody says anything.
// VirtualServices that share a host at a gateway must agree: Conflicts.
//
// The annotation weft.dev/load-balancer: PEAK_EWMA of a DestinationRule takes the
// place of loadBalancer.simple.
//
// weft is more lenient than Istio with names: "reviews.prod" and
// "reviews.service.consul" are services here, wherever a host is written that
// is not a gateway's. It is stricter where Istio would ignore something.
package resource
