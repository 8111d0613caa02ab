package eureka

import (
	"bytes"
	"compress/flate"
	"compress/gzip"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/weftmesh/weft"
)

func TestJoinCRC(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		text := make([]byte, random.IntN(5000))
		for i := range text {
			text[i] = byte(random.Uint32())
		}
		at := random.IntN(len(text) + 1)
		first, second := crc32.ChecksumIEEE(text[:at]), crc32.ChecksumIEEE(text[at:])
		if got, want := joinCRC(first, second, len(text)-at), crc32.ChecksumIEEE(text); got != want {
			t.Fatalf("%d+%d bytes: %08x, want %08x", at, len(text)-at, got, want)
		}
	}
}

// A stream of segments is what the standard library reads as one member, with its
// length and its checksum.
func TestStream(t *testing.T) {
	z, _ := flate.NewWriter(nil, flate.BestSpeed)
	for _, texts := range [][]string{
		nil, {""}, {"a"}, {"one", "", "two"},
		{strings.Repeat("x", 100000), strings.Repeat("xy", 40000), "end"},
	} {
		var segments []segment
		for i, text := range texts {
			if i%2 == 0 && len(text) < 1000 {
				segments = append(segments, stored(text))
			} else {
				segments = append(segments, compress(z, []byte(text)))
			}
		}
		s := newStream(segments)
		want := strings.Join(texts, "")
		var plain, packed bytes.Buffer
		if err := s.writePlain(&plain); err != nil {
			t.Fatal(err)
		}
		if err := s.writePacked(&packed); err != nil {
			t.Fatal(err)
		}
		if plain.String() != want || s.size != len(want) || s.packed != packed.Len() {
			t.Errorf("%d bytes plain (said %d), %d packed (said %d), want %d plain", plain.Len(), s.size, packed.Len(), s.packed, len(want))
		}
		r, err := gzip.NewReader(&packed)
		if err != nil {
			t.Fatal(err)
		}
		r.Multistream(false)
		got, err := io.ReadAll(r)
		if err != nil || string(got) != want {
			t.Errorf("unpacked %d bytes, %v; want %d", len(got), err, len(want))
		}
	}
}

// Only the application that changed is encoded again.
func TestSegmentsAreKept(t *testing.T) {
	w := newWorld(t)
	w.registerHere("A", "a-1")
	w.registerHere("B", "b-1")
	before := w.api.view.current()
	before.stream(jsonFull)
	w.registerHere("B", "b-2")
	after := w.api.view.current()
	if before.app("A") != after.app("A") || before.app("B") == after.app("B") {
		t.Error("an application was made again that did not change, or none was")
	}
	if after.app("A").segments[jsonFull] == nil {
		t.Error("the segment of A is gone")
	}
	w.send("PUT", "/eureka/apps/A/a-1", "").want(200)
	if w.api.view.current() != after {
		t.Error("a renewal made a new picture")
	}
}

// benchmarkRegistry has services of ten instances, half of them Eureka's.
func benchmarkRegistry(t testing.TB, services int) *picture {
	p := &picture{}
	nodes := &nodesOf{seen: map[string]*weft.Node{"n": nil, nodeName: nil}}
	for i := range services {
		name := weft.NewServiceName("", fmt.Sprintf("service-%04d", i))
		g := group{name: appOf(name)}
		for k := range 10 {
			in := weft.Instance{ID: fmt.Sprint("id-", k), Node: "n", Service: name, Address: "10.0.0.1", Port: 8080}
			if k%2 == 0 {
				r, err := decodeJSON([]byte(body(g.name, in.ID)))
				if err != nil {
					t.Fatal(err)
				}
				if in, err = r.instance(name, weft.InstanceKey{Node: nodeName, ID: in.ID}, nil); err != nil {
					t.Fatal(err)
				}
			}
			g.instances = append(g.instances, &in)
		}
		p.apps = append(p.apps, newApp(g, nil, nodes))
	}
	return p
}

func BenchmarkFullList(b *testing.B) {
	p := benchmarkRegistry(b, 1000)
	b.Run("first", func(b *testing.B) {
		for b.Loop() {
			for _, a := range p.apps {
				a.segments[jsonFull] = nil
			}
			p.streams[jsonFull] = nil
			p.stream(jsonFull)
		}
	})
	b.Run("one changed", func(b *testing.B) {
		for b.Loop() {
			p.apps[500].segments[jsonFull] = nil
			p.streams[jsonFull] = nil
			p.stream(jsonFull)
		}
	})
	b.Run("same", func(b *testing.B) {
		for b.Loop() {
			_ = p.stream(jsonFull).writePacked(io.Discard)
		}
	})
}
