package e2e

import (
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/weftmesh/weft/resilience"
)

const guide = "../../docs/resilience.md"

// The guide names every field of a policy, and the policy that it shows is one.
func TestGuideKnowsEveryField(t *testing.T) {
	text, err := os.ReadFile(guide)
	if err != nil {
		t.Fatal(err)
	}
	var missing func(t reflect.Type, path string) []string
	missing = func(of reflect.Type, path string) (lost []string) {
		if of.Kind() == reflect.Pointer {
			of = of.Elem()
		}
		for i := range of.NumField() {
			f := of.Field(i)
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			inner := f.Type
			if inner.Kind() == reflect.Pointer {
				inner = inner.Elem()
			}
			switch {
			case inner.Kind() == reflect.Struct:
				lost = append(lost, missing(inner, path+name+".")...)
			case !strings.Contains(string(text), name+"`"):
				lost = append(lost, path+name)
			}
		}
		return lost
	}
	if lost := missing(reflect.TypeFor[resilience.Spec](), ""); len(lost) > 0 {
		t.Errorf("%s does not name %s", guide, strings.Join(lost, ", "))
	}

	_, shown, _ := strings.Cut(string(text), "    apiVersion: weft.dev/v1\n")
	shown, _, _ = strings.Cut(shown, "\n\n")
	if spec := specOf(t, strings.ReplaceAll("\n"+shown, "\n    ", "\n")); spec.CircuitBreaker == nil || spec.Fallback == nil {
		t.Errorf("the policy shown is %+v", spec)
	}
}
