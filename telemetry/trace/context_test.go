package trace

import (
	"encoding/hex"
	"math/rand/v2"
	"regexp"
	"strings"
	"testing"
)

const example = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"

func TestParse(t *testing.T) {
	const ids = "4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7"
	for _, c := range []struct {
		name, in string
		ok       bool
		flags    byte
	}{
		{"sampled", example, true, FlagSampled},
		{"not sampled", "00-" + ids + "-00", true, 0},
		{"sampled with random ids", "00-" + ids + "-03", true, FlagSampled | FlagRandom},
		{"reserved flags are dropped", "00-" + ids + "-fd", true, FlagSampled},
		{"a later version", "01-" + ids + "-01", true, FlagSampled},
		{"a later version with more fields", "cc-" + ids + "-01-what-comes-next", true, FlagSampled},
		{"a later version whose fields end in a dash", "cc-" + ids + "-01-", true, FlagSampled},
		{"of a later version's flags only sampled is known", "cc-" + ids + "-ff", true, FlagSampled},
		{"empty", "", false, 0},
		{"version ff", "ff-" + ids + "-01", false, 0},
		{"version 00 with more fields", example + "-extra", false, 0},
		{"version 00 with a trailing dash", example + "-", false, 0},
		{"version 00 with a trailing space", example + " ", false, 0},
		{"leading space", " " + example, false, 0},
		{"a later version without the dash", "cc-" + ids + "-01.what", false, 0},
		{"upper-case trace id", strings.ToUpper(example), false, 0},
		{"upper-case flags", "00-" + ids + "-0A", false, 0},
		{"not hex in the version", "0x-" + ids + "-01", false, 0},
		{"not hex in the trace id", "00-4bf92f3577b34da6a3ce929d0e0e473g-00f067aa0ba902b7-01", false, 0},
		{"not hex in the flags", "00-" + ids + "-0.", false, 0},
		{"trace id zero", "00-00000000000000000000000000000000-00f067aa0ba902b7-01", false, 0},
		{"parent id zero", "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01", false, 0},
		{"flags cut", "00-" + ids + "-0", false, 0},
		{"no flags", "00-" + ids, false, 0},
		{"other dashes", strings.ReplaceAll(example, "-", "_"), false, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, ok := Parse([]byte(c.in))
			if ok != c.ok || got.Flags != c.flags {
				t.Fatalf("Parse(%q) = flags %02x, %v; want %02x, %v", c.in, got.Flags, ok, c.flags, c.ok)
			}
			if ok && (got.TraceID.String() != c.in[3:35] || got.SpanID.String() != c.in[36:52]) {
				t.Errorf("Parse(%q) = %s %s", c.in, got.TraceID, got.SpanID)
			}
			if !ok && got != (Context{}) {
				t.Errorf("an invalid header gave %+v", got)
			}
		})
	}
}

func TestAppendWritesVersion00(t *testing.T) {
	c, _ := Parse([]byte("cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more"))
	if got := string(c.Append([]byte("traceparent: "))); got != "traceparent: "+example {
		t.Errorf("Append = %q", got)
	}
}

func TestChildKeepsTraceAndFlags(t *testing.T) {
	c, _ := Parse([]byte(example))
	id := SpanID{1, 2, 3, 4, 5, 6, 7, 8}
	if got := string(c.Child(id).Append(nil)); got != "00-4bf92f3577b34da6a3ce929d0e0e4736-0102030405060708-01" {
		t.Errorf("Child = %s", got)
	}
}

func TestNewIDsAreNeverZero(t *testing.T) {
	draws := []uint64{0, 0, 0, 7, 0, 9} // a trace id of zeros, one of 7, then span ids
	next := func() uint64 { d := draws[0]; draws = draws[1:]; return d }
	c := NewRoot(next, true)
	if got := string(c.Append(nil)); got != "00-00000000000000000000000000000007-0000000000000009-01" {
		t.Errorf("root = %s", got)
	}
	if len(draws) != 0 {
		t.Errorf("%d draws unused", len(draws))
	}
}

func TestSamplerFollowsTheCaller(t *testing.T) {
	always, never := NewSampler(1), Sampler{}
	for _, c := range []struct {
		name    string
		sampler Sampler
		header  string
		want    bool
	}{
		{"caller sampled", never, example, true},
		{"caller did not sample", always, strings.TrimSuffix(example, "1") + "0", false},
		{"no caller, always", always, "", true},
		{"no caller, never", never, "", false},
		{"broken header, always", always, example + "x", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, parent := c.sampler.Start([]byte(c.header), rand.Uint64)
			if got.Sampled() != c.want {
				t.Errorf("sampled = %v, want %v", got.Sampled(), c.want)
			}
			caller, ok := Parse([]byte(c.header))
			if parent != caller.SpanID {
				t.Errorf("parent = %s, want %s", parent, caller.SpanID)
			}
			if ok && got.TraceID != caller.TraceID {
				t.Errorf("trace id = %s, want the caller's %s", got.TraceID, caller.TraceID)
			}
			if got.SpanID.IsZero() || got.SpanID == caller.SpanID || got.TraceID.IsZero() {
				t.Errorf("ids of the new span: %s %s", got.TraceID, got.SpanID)
			}
		})
	}
}

func TestSamplerRatio(t *testing.T) {
	ids := rand.New(rand.NewPCG(1, 2))
	const n = 100_000
	for _, ratio := range []float64{-1, 0, 0.01, 0.25, 0.5, 1, 7} {
		s := NewSampler(ratio)
		var sampled float64
		for range n {
			if s.Sample(NewRoot(ids.Uint64, false).TraceID) {
				sampled++
			}
		}
		want := min(max(ratio, 0), 1)
		if got := sampled / n; got < want-0.01 || got > want+0.01 || (want == 0 && got != 0) || (want == 1 && got != 1) {
			t.Errorf("ratio %v sampled %v", ratio, got)
		}
	}
	// The low 56 bits decide, and a higher ratio takes all that a lower one takes.
	low, high := TraceID{8: 0xff, 9: 0}, TraceID{9: 0x80}
	if s := NewSampler(0.5); s.Sample(low) || !s.Sample(high) {
		t.Error("a ratio of 0.5 must take exactly the ids whose 56th bit is set")
	}
}

func TestNoAllocations(t *testing.T) {
	header, buf := []byte(example), make([]byte, 0, 64)
	s := NewSampler(1)
	random := func() uint64 { return 42 }
	if n := testing.AllocsPerRun(100, func() {
		c, _ := s.Start(header, random)
		buf = c.Append(buf[:0])
		c, _ = s.Start(nil, random)
		buf = c.Append(buf[:0])
	}); n != 0 {
		t.Errorf("%v allocations for two starts", n)
	}
}

// slowParse is Parse written from the specification's grammar, without regard
// for speed.
var (
	version00  = regexp.MustCompile(`^00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})$`)
	anyVersion = regexp.MustCompile(`(?s)^([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?$`)
)

func slowParse(s string) (trace, span string, flags byte, ok bool) {
	m := anyVersion.FindStringSubmatch(s)
	if m == nil || m[1] == "ff" || strings.Trim(m[2], "0") == "" || strings.Trim(m[3], "0") == "" {
		return "", "", 0, false
	}
	raw, _ := hex.DecodeString(m[4])
	flags = raw[0] % 2
	if m[1] == "00" {
		if !version00.MatchString(s) || strings.HasSuffix(s, "\n") {
			return "", "", 0, false
		}
		flags = raw[0] % 4
	}
	return m[2], m[3], flags, true
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{
		example, "", example + "-x", "cc-" + example[3:] + "-future", "ff-" + example[3:],
		strings.ToUpper(example), "00-" + strings.Repeat("0", 32) + example[35:], example[:54],
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		got, ok := Parse(in)
		trace, span, flags, want := slowParse(string(in))
		if ok != want {
			t.Fatalf("Parse(%q) ok = %v, the grammar says %v", in, ok, want)
		}
		if !ok {
			return
		}
		if got.TraceID.String() != trace || got.SpanID.String() != span || got.Flags != flags {
			t.Fatalf("Parse(%q) = %+v, the grammar says %s %s %02x", in, got, trace, span, flags)
		}
		if again, ok := Parse(got.Append(nil)); !ok || again != got {
			t.Fatalf("Parse(Append(%+v)) = %+v, %v", got, again, ok)
		}
	})
}

func BenchmarkStartAndAppend(b *testing.B) {
	header, buf := []byte(example), make([]byte, 0, 64)
	s := NewSampler(0.01)
	b.ReportAllocs()
	for b.Loop() {
		c, _ := s.Start(header, rand.Uint64)
		buf = c.Append(buf[:0])
	}
}
