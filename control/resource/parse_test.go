package resource

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/weftmesh/weft"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	networking "istio.io/api/networking/v1alpha3"
)

// A case in testdata/parse is files, then under "problems" what Parse says of
// them, and which resources it accepts.
func TestParse(t *testing.T) {
	eachCase(t, "parse", func(t *testing.T, path string) {
		sections := readCase(t, path)
		resources, problems := Parse(filesOf(sections))
		var got strings.Builder
		for _, p := range problems {
			fmt.Fprintln(&got, p)
		}
		for _, r := range resources {
			fmt.Fprintf(&got, "accepted %s\n", r.Source)
		}
		last := &sections[len(sections)-1]
		if *update {
			last.text = got.String()
			writeCase(t, path, sections)
		}
		if diff := cmp.Diff(last.text, got.String()); diff != "" {
			t.Errorf("wrong answer (-want +got):\n%s", diff)
		}
	})
}

const canary = `apiVersion: networking.istio.io/v1
kind: VirtualService
metadata:
  name: order-service
  labels: {team: shop}
  annotations: {note: "1"}
spec:
  hosts: [order-service]
  http:
    - match:
        - uri: {prefix: /api/}
          headers: {x-user: {regex: "a<b.*"}}
      timeout: 90s
      retries: {attempts: 0}
      route:
        - destination: {host: order-service, subset: v1}
          weight: 95
        - destination: {host: order-service, subset: v2}
          weight: 5
`

func parseOne(t *testing.T, yaml string) *Resource {
	t.Helper()
	resources, problems := Parse([]File{{Name: "a.yaml", Data: []byte(yaml)}})
	if len(problems) > 0 || len(resources) != 1 {
		t.Fatalf("%d resources, problems: %v", len(resources), problems)
	}
	return resources[0]
}

func TestDecodeGivesWhatParseGave(t *testing.T) {
	want := parseOne(t, canary)
	got, err := Decode(want.JSON, weft.SourceRef{File: "elsewhere.yaml", Line: 99})
	if err != nil {
		t.Fatal(err)
	}
	if !want.SameSpec(got) {
		t.Errorf("spec changed:\n%v\n%v", want.Spec, got.Spec)
	}
	want.Spec, got.Spec = nil, nil
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(Resource{}, ruleLists{}), nouns); diff != "" {
		t.Error(diff)
	}
}

// What is printed can be applied again, and comes out the same.
func TestParseReadsManifestAndJSON(t *testing.T) {
	for name, written := range map[string]string{
		"a VirtualService": canary,
		"a ResiliencePolicy of one target": `{apiVersion: weft.dev/v1, kind: ResiliencePolicy, metadata: {name: a},
spec: {timeout: 90s, targetRef: {kind: VirtualService, name: a, sectionName: x}, fallback: {status: 200, headers: {a.b: "c"}, body: <x>}}}`,
		"a ResiliencePolicy of two": `{apiVersion: weft.dev/v1, kind: ResiliencePolicy, metadata: {name: a},
spec: {targetRefs: [{kind: Service, name: a, namespace: default}, {kind: Service, name: b}], retry: {statuses: [503]}}}`,
		"a BreakerOverride": `{apiVersion: weft.dev/v1, kind: BreakerOverride, metadata: {name: a}, spec: {state: disabled, reason: "a < b"}}`,
		"a Service": `{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {clusterIP: None, publishNotReadyAddresses: true,
ports: [{name: http, port: 80, targetPort: 8080}, {name: dns, port: 53, protocol: UDP, targetPort: dns-udp}, {name: x, port: 1}]}}`,
	} {
		t.Run(name, func(t *testing.T) {
			first := parseOne(t, written)
			manifest, err := first.Manifest()
			if err != nil {
				t.Fatal(err)
			}
			if bytes.Contains(manifest, []byte("a.yaml")) {
				t.Errorf("the manifest names the file: %s", manifest)
			}
			for _, text := range [][]byte{manifest, first.JSON} {
				again := parseOne(t, string(text))
				got, err := again.Manifest()
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(string(manifest), string(got)); diff != "" || !first.SameSpec(again) {
					t.Error(diff)
				}
			}
		})
	}
}

func TestSameSpec(t *testing.T) {
	const policy = `{apiVersion: weft.dev/v1, kind: ResiliencePolicy, metadata: {name: a}, spec: {targetRef: {kind: Service, name: a}, timeout: %s}}`
	a := parseOne(t, fmt.Sprintf(policy, "60s"))
	if !a.SameSpec(parseOne(t, fmt.Sprintf(policy, "1m"))) {
		t.Error("60s is not 1m")
	}
	for _, other := range []*Resource{parseOne(t, fmt.Sprintf(policy, "2m")), parseOne(t, canary)} {
		if a.SameSpec(other) || other.SameSpec(a) {
			t.Errorf("the same as %s", other.JSON)
		}
	}
}

func TestDecodeTakesTheCallersSourceWhenTheJSONHasNone(t *testing.T) {
	manifest, err := parseOne(t, canary).Manifest()
	if err != nil {
		t.Fatal(err)
	}
	got, err := Decode(manifest, weft.SourceRef{File: "b.yaml", Line: 7})
	if err != nil {
		t.Fatal(err)
	}
	want := weft.SourceRef{Kind: "VirtualService", Namespace: "default", Name: "order-service", File: "b.yaml", Line: 7}
	if got.Source != want {
		t.Errorf("source %v, want %v", got.Source, want)
	}
}

func TestDecodeRefuses(t *testing.T) {
	good := string(parseOne(t, canary).JSON)
	for name, tt := range map[string]struct{ old, new, want string }{
		"no JSON":            {`{`, `{{`, "decode resource"},
		"an unknown kind":    {"VirtualService", "VirtualServant", `did you mean "VirtualService"?`},
		"an unknown version": {"/v1", "/v9", "is of apiVersion networking.istio.io/v1, "},
		"an unknown field":   {"weight", "wieght", "wieght"},
		"a bad meaning":      {`"weight":95`, `"weight":-95`, "-95 is negative"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Decode([]byte(strings.Replace(good, tt.old, tt.new, 1)), weft.SourceRef{})
			if weft.KindOf(err) != weft.Invalid || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want one with %q", err, tt.want)
			}
		})
	}
}

func TestDocumentsAreBounded(t *testing.T) {
	var bomb strings.Builder
	bomb.WriteString("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n")
	for i := 1; i < 12; i++ {
		fmt.Fprintf(&bomb, "a%d: &a%d [%s]\n", i, i, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*a%d, ", i-1), 10), ", "))
	}
	for name, tt := range map[string]struct{ yaml, want string }{
		"a large file":           {strings.Repeat("# comment\n", maxFileBytes/10+1), "a.yaml:1: the file is larger than 1048576 bytes; split it"},
		"aliases of aliases":     {bomb.String(), "more than 200000 values"},
		"an alias inside itself": {"a: &a\n  b: *a\n", "levels; split the file; look for an alias inside its own anchor"},
		"deep brackets":          {strings.Repeat("[", 9000), "a.yaml:1: "},
		"deep lists":             {strings.Repeat("[", 80) + strings.Repeat("]", 80), "more than 64 levels"},
	} {
		t.Run(name, func(t *testing.T) {
			resources, problems := Parse([]File{{Name: "a.yaml", Data: []byte(tt.yaml)}})
			if len(resources) > 0 || len(problems) != 1 || !strings.Contains(problems[0].String(), tt.want) {
				t.Errorf("problems %v, want one with %q", problems, tt.want)
			}
		})
	}
}

// Every limit names a field or a value that exists, and every field of every
// kind is of a form that the walker knows.
func TestDescriptors(t *testing.T) {
	unseen := map[protoreflect.FullName]bool{}
	for name := range limits {
		unseen[name] = true
	}
	seen := map[protoreflect.FullName]bool{}
	var walk func(md protoreflect.MessageDescriptor)
	walk = func(md protoreflect.MessageDescriptor) {
		if seen[md.FullName()] {
			return
		}
		seen[md.FullName()] = true
		if md.FullName().Parent() == "google.protobuf" {
			if md.Name() != "Duration" && !strings.HasSuffix(string(md.Name()), "Value") || md.Name() == "Value" || md.Name() == "ListValue" {
				t.Errorf("the walker does not know %s", md.FullName())
			}
			return
		}
		for i := range md.Fields().Len() {
			fd := md.Fields().Get(i)
			delete(unseen, fd.FullName())
			switch fd.Kind() {
			case protoreflect.MessageKind:
				walk(fd.Message())
			case protoreflect.EnumKind:
				for k := range fd.Enum().Values().Len() {
					delete(unseen, fd.Enum().Values().Get(k).FullName())
				}
			case protoreflect.StringKind, protoreflect.BoolKind, protoreflect.BytesKind, protoreflect.DoubleKind,
				protoreflect.Int32Kind, protoreflect.Uint32Kind, protoreflect.Int64Kind, protoreflect.Uint64Kind:
			default:
				t.Errorf("the walker does not know %s of %s", fd.Kind(), fd.FullName())
			}
		}
	}
	for _, k := range kinds {
		if m, ok := k.spec().(proto.Message); ok {
			walk(m.ProtoReflect().Descriptor())
		}
	}
	for name := range unseen {
		t.Errorf("limits name %s, which does not exist", name)
	}
}

func TestNearestName(t *testing.T) {
	known := []string{"weight", "destination", "headers", "http1MaxPendingRequests", "uri"}
	for name, want := range map[string]string{
		"wieght":                  "weight",
		"weigth":                  "weight",
		"Weight":                  "weight",
		"header":                  "headers",
		"http1maxpendingrequest":  "http1MaxPendingRequests",
		"url":                     "uri",
		"mirror":                  "",
		"":                        "",
		"a-name-of-another-world": "",
	} {
		if got := nearest(name, known); got != want {
			t.Errorf("nearest(%q) = %q, want %q", name, got, want)
		}
	}
}

// Forms that no field has which this version accepts, but that the walker knows.
func TestWalkerReadsNumbersAndBytes(t *testing.T) {
	for name, tt := range map[string]struct {
		message proto.Message
		yaml    string
		want    string // the JSON, or what is wrong
	}{
		"a fraction":           {&networking.Percent{}, "value: 0.5", `{"value":0.5}`},
		"no fraction":          {&networking.Percent{}, "value: half", `spec.value: want a number, got the text "half"`},
		"an infinite fraction": {&networking.Percent{}, "value: .inf", "spec.value: want a number, got +Inf"},
		"64 bits as text":      {&networking.LoadBalancerSettings_ConsistentHashLB_RingHash{}, `minimum_ring_size: "18446744073709551615"`, `{"minimumRingSize":18446744073709551615}`},
		"64 bits too many":     {&networking.LoadBalancerSettings_ConsistentHashLB_RingHash{}, `minimumRingSize: 18446744073709551616`, "want a whole number from 0, in 64 bits"},
		"base64":               {&networking.HTTPBody{}, "bytes: eA==", `{"bytes":"eA=="}`},
		"bytes of a number":    {&networking.HTTPBody{}, "bytes: 5", `spec.bytes: want text, got 5; write "5"`},
	} {
		t.Run(name, func(t *testing.T) {
			r := &report{lines: fieldLines{}}
			tree, _ := walker{r}.object(documents([]byte(tt.yaml))[0].root, tt.message.ProtoReflect().Descriptor(), "spec")
			got, err := json.Marshal(tree)
			if err != nil {
				t.Fatal(err)
			}
			if len(r.problems) > 0 {
				got = []byte(r.problems.Error())
			}
			if !strings.Contains(string(got), tt.want) {
				t.Errorf("got %s, want %s", got, tt.want)
			}
		})
	}
}
