package resource

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/weftmesh/weft"
	networkingv1alpha3 "istio.io/api/networking/v1alpha3"
	securityv1beta1 "istio.io/api/security/v1beta1"
)

// Resource is one checked document. It is immutable once it is in a Set.
type Resource struct {
	Kind        string // "VirtualService"
	APIVersion  string // "networking.istio.io/v1", as written
	Namespace   string // weft.DefaultNamespace when none is written
	Name        string
	Labels      map[string]string
	Annotations map[string]string
	Source      weft.SourceRef // of the document
	Spec        any            // *networking.VirtualService and the like, *ResiliencePolicy, *BreakerOverride, *Service

	// JSON is what a store keeps and Decode reads: the resource in canonical
	// form, and under "source" the file and lines it came from. Parse reads it too.
	JSON []byte

	// Created orders resources that compete for a host: the lowest wins. Whoever
	// stores resources sets it to the store's revision of the creation; 0, not
	// stored yet, is after all others.
	Created int64

	lines      fieldLines            // what lasts of them
	rules      map[string]*ruleLists // of a VirtualService, by gateway; nil: compile them
	resilience *weft.Resilience      // of a ResiliencePolicy
}

// kind is a kind of resource that weft reads.
type kind struct {
	name  string
	group string
	since []string   // versions, all of the same meaning
	spec  func() any // Istio's are protobuf messages
	check func(*report, *Resource)
}

const (
	virtualServiceKind      = "VirtualService"
	destinationRuleKind     = "DestinationRule"
	gatewayKind             = "Gateway"
	authorizationPolicyKind = "AuthorizationPolicy"
	peerAuthenticationKind  = "PeerAuthentication"
	resiliencePolicyKind    = "ResiliencePolicy"
	breakerOverrideKind     = "BreakerOverride"
	serviceKind             = "Service"
)

var kinds = []kind{
	{virtualServiceKind, "networking.istio.io", []string{"v1", "v1beta1", "v1alpha3"},
		func() any { return &networkingv1alpha3.VirtualService{} }, checkVirtualService},
	{destinationRuleKind, "networking.istio.io", []string{"v1", "v1beta1", "v1alpha3"},
		func() any { return &networkingv1alpha3.DestinationRule{} }, checkDestinationRule},
	{gatewayKind, "networking.istio.io", []string{"v1", "v1beta1", "v1alpha3"},
		func() any { return &networkingv1alpha3.Gateway{} }, checkGateway},
	{authorizationPolicyKind, "security.istio.io", []string{"v1", "v1beta1"},
		func() any { return &securityv1beta1.AuthorizationPolicy{} }, checkAuthorizationPolicy},
	{peerAuthenticationKind, "security.istio.io", []string{"v1", "v1beta1"},
		func() any { return &securityv1beta1.PeerAuthentication{} }, checkPeerAuthentication},
	{resiliencePolicyKind, "weft.dev", []string{"v1"}, func() any { return &ResiliencePolicy{} }, checkResiliencePolicy},
	{breakerOverrideKind, "weft.dev", []string{"v1"}, func() any { return &BreakerOverride{} }, checkBreakerOverride},
	{serviceKind, "", []string{"v1"}, func() any { return &Service{} }, checkService},
}

// findKind returns nil and how to mend it when the pair is not known.
func findKind(apiVersion, name string) (k *kind, mend string) {
	var names, known []string
	for i := range kinds {
		k := &kinds[i]
		if k.name == name {
			if slices.Contains(k.apiVersions(), apiVersion) {
				return k, ""
			}
			return nil, name + " is of apiVersion " + anyOf(k.apiVersions())
		}
		names = append(names, k.name)
		known = append(known, k.name+" ("+k.inGroup(strings.Join(k.since, ", "))+")")
	}
	if best := nearest(name, names); best != "" {
		return nil, fmt.Sprintf("did you mean %q?", best)
	}
	return nil, "known are " + strings.Join(known, ", ")
}

func (k *kind) apiVersions() []string {
	out := make([]string, len(k.since))
	for i, v := range k.since {
		out[i] = k.inGroup(v)
	}
	return out
}

// inGroup writes a version with the kind's group; Kubernetes' own has no name.
func (k *kind) inGroup(version string) string {
	if k.group == "" {
		return version
	}
	return k.group + "/" + version
}

// stored is the JSON form of a resource.
type stored struct {
	APIVersion string          `json:"apiVersion"`
	Kind       string          `json:"kind"`
	Metadata   metadata        `json:"metadata"`
	Spec       json.RawMessage `json:"spec"`
	Source     *origin         `json:"source,omitempty"`
}

type metadata struct {
	Name        string            `json:"name"`
	Namespace   string            `json:"namespace"`
	Labels      map[string]string `json:"labels,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

// origin is where a resource was written.
type origin struct {
	File  string     `json:"file"`
	Line  int        `json:"line"`
	Lines fieldLines `json:"lines,omitempty"`
}

func (r *Resource) encode(from *origin) ([]byte, error) {
	spec, err := encodeSpec(r.Spec)
	if err != nil {
		return nil, &weft.Error{Kind: weft.Invalid, Op: "encode", Thing: r.Source.String(), Err: err}
	}
	// json.Marshal takes out the spaces that protojson puts in at random.
	return json.Marshal(stored{
		APIVersion: r.APIVersion,
		Kind:       r.Kind,
		Metadata:   metadata{r.Name, r.Namespace, r.Labels, r.Annotations},
		Spec:       spec,
		Source:     from,
	})
}

// Manifest is the resource in canonical JSON, as a user would write it.
func (r *Resource) Manifest() ([]byte, error) { return r.encode(nil) }

// Decode reads a Resource's JSON. src is used when the JSON does not say where
// it came from. What Parse would refuse for its meaning is refused here too, so
// that a Set holds only what can be compiled.
func Decode(data []byte, src weft.SourceRef) (*Resource, error) {
	var s stored
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&s); err != nil {
		return nil, &weft.Error{Kind: weft.Invalid, Op: "decode", Thing: "resource", Err: err}
	}
	k, mend := findKind(s.APIVersion, s.Kind)
	if k == nil {
		return nil, weft.Errorf(weft.Invalid, "decode", s.Kind+" "+s.Metadata.Namespace+"/"+s.Metadata.Name, "unknown kind or apiVersion %q; %s", s.APIVersion, mend)
	}
	r := &Resource{
		Kind: s.Kind, APIVersion: s.APIVersion,
		Namespace: s.Metadata.Namespace, Name: s.Metadata.Name,
		Labels: s.Metadata.Labels, Annotations: s.Metadata.Annotations,
		Source: weft.SourceRef{Kind: s.Kind, Namespace: s.Metadata.Namespace, Name: s.Metadata.Name, File: src.File, Line: src.Line},
		Spec:   k.spec(), JSON: data,
	}
	if s.Source != nil {
		r.Source.File, r.Source.Line, r.lines = s.Source.File, s.Source.Line, s.Source.Lines
	}
	if err := decodeSpec(s.Spec, r.Spec); err != nil {
		return nil, &weft.Error{Kind: weft.Invalid, Op: "decode", Thing: r.Source.String(), Err: err}
	}
	checked := &report{source: r.Source, lines: r.lines}
	k.check(checked, r)
	checkAnnotations(checked, r)
	if bad := checked.problems.Errors(); len(bad) > 0 {
		return nil, &weft.Error{Kind: weft.Invalid, Op: "decode", Thing: r.Source.String(), Err: bad}
	}
	r.compile()
	return r, nil
}
