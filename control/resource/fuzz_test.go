package resource

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/weftmesh/weft"
	networking "istio.io/api/networking/v1alpha3"
	security "istio.io/api/security/v1beta1"
)

// Whatever is written: no panic, every problem has its place, and what is
// accepted comes back from a store and compiles to the same.
func FuzzParse(f *testing.F) {
	for _, folder := range []string{"parse", "compile"} {
		paths, err := filepath.Glob(filepath.Join("testdata", folder, "*.txt"))
		if err != nil {
			f.Fatal(err)
		}
		for _, path := range paths {
			data, err := os.ReadFile(path)
			if err != nil {
				f.Fatal(err)
			}
			for _, part := range strings.Split("\n"+string(data), "\n-- ") {
				if _, text, ok := strings.Cut(part, ".yaml --\n"); ok {
					f.Add([]byte(text))
				}
			}
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		resources, problems := Parse([]File{{Name: "f.yaml", Data: data}})
		lines := strings.Count(yamlBreaks.Replace(string(data)), "\n") + 1
		for _, p := range problems {
			if p.Source.File != "f.yaml" || p.Source.Line < 1 || p.Source.Line > lines || p.Message == "" {
				t.Errorf("a problem without its place (of %d lines): %#v", lines, p)
			}
		}
		var again []*Resource
		for _, r := range resources {
			d, err := Decode(r.JSON, weft.SourceRef{})
			if err != nil {
				t.Fatalf("accepted, but: %v", err)
			}
			again = append(again, d)
		}
		if a, b := everything(t, resources), everything(t, again); a != b {
			t.Errorf("parsed:\n%s\ndecoded:\n%s", a, b)
		}
	})
}

// yamlBreaks are what the parser takes for the end of a line.
var yamlBreaks = strings.NewReplacer("\r\n", "\n", "\r", "\n", "\u0085", "\n", "\u2028", "\n", "\u2029", "\n")

// everything is all that a Set of the resources answers about them.
func everything(t *testing.T, resources []*Resource) string {
	s := NewSet(resources)
	answers := []any{s.Warnings(nil)}
	for _, r := range resources {
		switch spec := r.Spec.(type) {
		case *networking.VirtualService:
			for _, host := range spec.Hosts {
				answers = append(answers, s.RouteTable(strings.Replace(host, "*", "x", 1), r.Namespace))
			}
		case *networking.Gateway:
			answers = append(answers, s.Gateway(r.Namespace+"/"+r.Name))
		case *networking.DestinationRule:
			n, _ := weft.ParseHost(strings.Replace(spec.Host, "*", "x", 1), r.Namespace)
			policy, subsets := s.Service(n, r.Namespace)
			answers = append(answers, policy, subsets)
		case *ResiliencePolicy:
			for _, t := range spec.Targets {
				answers = append(answers, s.Resilience(weft.NewServiceName(r.Namespace, t.Name)))
			}
		case *BreakerOverride:
			answers = append(answers, s.Breaker(weft.NewServiceName(r.Namespace, r.Name)))
		case *security.AuthorizationPolicy:
			a := s.Authorization(r.Namespace, spec.Selector.GetMatchLabels())
			if a == nil {
				t.Errorf("%s does not apply to the workload that it selects", r.Source)
			}
			answers = append(answers, a)
		}
	}
	out, err := json.Marshal(answers)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}
