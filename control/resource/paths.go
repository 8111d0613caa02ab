package resource

import (
	"fmt"
	"strings"

	"github.com/weftmesh/weft"
)

// pathAnnotation says how the paths of requests are normalised before anything
// looks at them: on a VirtualService for its hosts, on a Gateway for those of its
// hosts whose VirtualServices say nothing. Istio has one setting for the whole
// mesh, and no field for it in these kinds.
const pathAnnotation = "weft.dev/path-normalization"

const pathAnnotationField = "metadata.annotations[" + pathAnnotation + "]"

// pathChoice is what a resource says of paths; said is false when it says nothing.
type pathChoice struct {
	mode weft.PathMode
	said bool
}

// pathsOf reads what checkAnnotations has checked.
func pathsOf(r *Resource) pathChoice {
	value, said := r.Annotations[pathAnnotation]
	mode, err := weft.ParsePathMode(value)
	return pathChoice{mode, said && err == nil}
}

// annotated are the kinds that pathAnnotation is for.
func annotated(kind string) bool { return kind == virtualServiceKind || kind == gatewayKind }

// checkAnnotations looks at annotations that begin with "weft.dev/": they are ours,
// and one that is misspelt would silently do nothing.
func checkAnnotations(r *report, res *Resource) {
	for name, value := range res.Annotations {
		if !strings.HasPrefix(name, "weft.dev/") {
			continue
		}
		at := "metadata.annotations[" + name + "]"
		switch name {
		case pathAnnotation:
			if _, err := weft.ParsePathMode(value); !annotated(res.Kind) {
				r.errorf(at, "write it on a VirtualService or a Gateway", "a %s says nothing of paths", res.Kind)
			} else if err != nil {
				r.errorf(at, "write NONE, BASE, MERGE_SLASHES or DECODE_AND_MERGE_SLASHES", "unknown value %q", value)
			}
		case balancerAnnotation:
			r.balancerAnnotation(at, value, res)
		default:
			r.errorf(at, mendName(name, []string{pathAnnotation, balancerAnnotation}), "unknown annotation %q", name)
		}
	}
}

// Conflicts are errors that the resources named make with others: the VirtualServices of one host of a gateway must agree how its paths are
// normalised, because it is decided before any rule is looked at.
func (s *Set) Conflicts(about []Ref) weft.Problems {
	var out weft.Problems
	for _, ref := range about {
		v := s.virtual[ref]
		if v == nil || !v.paths.said {
			continue
		}
		for _, name := range v.gateways {
			g := s.gateways[name]
			if g == nil {
				continue
			}
			for _, host := range g.httpHosts(v) {
				if other := disagrees(v, g.contributors[place{httpPlace, host}]); other != nil {
					out = append(out, conflict(v, other, host))
				}
			}
		}
	}
	return sorted(out)
}

// disagrees finds another VirtualService that says something else of paths.
func disagrees(v *virtualService, others []*virtualService) *virtualService {
	for _, other := range others {
		if other != v && other.paths.said && other.paths.mode != v.paths.mode {
			return other
		}
	}
	return nil
}

func conflict(v, other *virtualService, host string) weft.Problem {
	there := other.lines.at(other.Source, pathAnnotationField)
	return weft.Problem{
		Source:  v.lines.at(v.Source, pathAnnotationField),
		Message: fmt.Sprintf("%s for the host %s, for which %s says %s", v.paths.mode, host, there, other.paths.mode),
		Mend:    "write the same in both",
	}
}
