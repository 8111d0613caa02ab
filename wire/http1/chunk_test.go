package http1

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"
	"testing"
)

// decoded is what a ChunkDecoder made of some bytes.
type decoded struct {
	data, trailers, rest string
	err                  error // ErrIncomplete when the end did not come
}

// decode feeds a body to d in pieces of at most step bytes.
func decode(d *ChunkDecoder, body []byte, step int) decoded {
	var out decoded
	var data []byte
	for from := 0; from < len(body); {
		to := min(len(body), from+step)
		n, piece, done, err := d.Next(body[from:to])
		data = append(data, piece...)
		from += n
		if err != nil || done {
			out.data, out.trailers, out.rest, out.err = string(data), string(d.Trailers()), string(body[from:]), err
			return out
		}
		if n == 0 {
			panic("a decoder that takes nothing would loop for ever")
		}
	}
	out.data, out.err = string(data), ErrIncomplete
	return out
}

func TestChunkCases(t *testing.T) {
	quoted := func(s string) string {
		return strings.ReplaceAll(strings.Trim(strconv.QuoteToASCII(s), `"`), `\"`, `"`)
	}
	var d ChunkDecoder // used again for each case, as on a connection
	for _, c := range readCases(t, "testdata/chunks.txt") {
		t.Run(c.title, func(t *testing.T) {
			d.Reset()
			got := decode(&d, c.wire, len(c.wire)+1)
			c.check(t, map[string]string{
				"data": quoted(got.data), "trailers": quoted(got.trailers), "rest": quoted(got.rest),
			}, got.err)
			checkSplitChunks(t, c.wire)
		})
	}
}

// checkSplitChunks decodes the body in pieces of each small size: data, end,
// trailers and fault must be the same.
func checkSplitChunks(t *testing.T, body []byte) {
	t.Helper()
	var d ChunkDecoder
	want := decode(&d, body, len(body)+1)
	for step := 1; step < 9; step++ {
		d.Reset()
		got := decode(&d, body, step)
		if got.err != nil {
			got.rest = want.rest // where exactly a fault was found is nobody's business
		}
		if got != want {
			t.Errorf("in pieces of %d: %+v\nat once: %+v", step, got, want)
		}
	}
}

func TestChunkDecoderTakesAllItCan(t *testing.T) {
	var d ChunkDecoder
	body := []byte("5\r\nhello\r\n0\r\nX: y\r\n\r\nnext")
	n, data, done, err := d.Next(body)
	if n != len(body)-4 || string(data) != "hello" || !done || err != nil {
		t.Errorf("took %d of %d, data %q, done %v, %v", n, len(body), data, done, err)
	}
	if n, data, done, err = d.Next(body); n != 0 || data != nil || !done || err != nil {
		t.Errorf("after the end: took %d, data %q, done %v, %v", n, data, done, err)
	}
}

func TestChunkLimits(t *testing.T) {
	chunk := func(ext string, data string) string { return fmt.Sprintf("%x;%s\r\n%s\r\n", len(data), ext, data) }
	long := strings.Repeat("e", 1000)
	for _, c := range []struct{ name, body, want string }{
		{"an extension of 1 KiB", chunk(strings.Repeat("e", 1024), "x") + "0\r\n\r\n", ""},
		{"a longer extension", chunk(strings.Repeat("e", 1025), "x") + "0\r\n\r\n", "400 bad_chunk_extension"},
		{"an extension without end", "1;" + strings.Repeat(" ", 1025), "400 bad_chunk_extension"},
		{"long extensions with little data", strings.Repeat(chunk(long, "x"), 17), "400 chunk_overhead"},
		{"long extensions with much data", strings.Repeat(chunk(long, strings.Repeat("x", 8000)), 100) + "0\r\n\r\n", ""},
		{"short extensions", strings.Repeat(chunk("e", "x"), 5000) + "0\r\n\r\n", ""},
		{"tiny chunks", strings.Repeat("1\r\nx\r\n", 50000) + "0\r\n\r\n", ""},
		{"64 trailers", "0\r\n" + strings.Repeat("X: y\r\n", 64) + "\r\n", ""},
		{"65 trailers", "0\r\n" + strings.Repeat("X: y\r\n", 65) + "\r\n", "431 trailers_too_large"},
		{"trailers that are dropped count too", "0\r\n" + strings.Repeat("Host: y\r\n", 65) + "\r\n", "431 trailers_too_large"},
		{"a trailer of 8 KiB", "0\r\nX: " + strings.Repeat("y", 8192-7) + "\r\n\r\n", ""},
		{"a longer trailer", "0\r\nX: " + strings.Repeat("y", 8192), "431 trailers_too_large"},
		{"the largest size", "fffffffffffffff\r\nx", "incomplete"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var d ChunkDecoder
			got := ""
			if out := decode(&d, []byte(c.body), len(c.body)); out.err != nil {
				got = refusal(out.err)
			}
			if got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
			checkSplitChunks(t, []byte(c.body))
		})
	}
}

func TestChunkEncoders(t *testing.T) {
	var wire []byte
	want := ""
	for _, n := range []int{1, 15, 16, 255, 4096} {
		data := strings.Repeat("x", n)
		wire = AppendChunkHeader(wire, n)
		wire = append(wire, data+"\r\n"...)
		want += data
	}
	wire = AppendLastChunk(wire, []byte("Grpc-Status: 0\r\n"))
	var d ChunkDecoder
	got := decode(&d, wire, len(wire))
	if got.err != nil || got.data != want || got.trailers != "Grpc-Status: 0\r\n" {
		t.Errorf("read back %+v", got)
	}
}

func TestChunksAllocateNothing(t *testing.T) {
	body := []byte("400;a=b\r\n" + strings.Repeat("x", 1024) + "\r\n5\r\nhello\r\n0\r\nA:b\r\nHost: x\r\n\r\n")
	plain := body[:bytes.Index(body, []byte("A:b"))]
	plain = append(plain[:len(plain):len(plain)], "\r\n"...)
	if n := testing.AllocsPerRun(100, func() {
		var fresh ChunkDecoder
		for rest, done := plain, false; !done; {
			n, _, end, err := fresh.Next(rest)
			if err != nil {
				t.Error(err)
			}
			rest, done = rest[n:], end
		}
	}); n != 0 {
		t.Errorf("%v allocations by a fresh decoder of a body without trailers", n)
	}

	var d ChunkDecoder
	out := make([]byte, 0, 4096)
	if n := testing.AllocsPerRun(100, func() {
		d.Reset()
		out = out[:0]
		for rest, done := body, false; !done; {
			n, data, end, err := d.Next(rest[:min(len(rest), 100)])
			if err != nil {
				t.Error(err)
			}
			out = AppendChunkHeader(out, len(data))
			out = append(out, data...)
			rest, done = rest[n:], end
		}
		out = AppendLastChunk(out, d.Trailers())
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkChunkDecode(b *testing.B) {
	for _, size := range []int{64, 4096} {
		b.Run(strconv.Itoa(size), func(b *testing.B) {
			var body []byte
			for range 16 {
				body = AppendChunkHeader(body, size)
				body = append(body, strings.Repeat("x", size)+"\r\n"...)
			}
			body = AppendLastChunk(body, nil)
			b.SetBytes(int64(len(body)))
			b.ReportAllocs()
			var d ChunkDecoder
			for b.Loop() {
				d.Reset()
				for rest, done := body, false; !done; {
					n, _, end, err := d.Next(rest)
					if err != nil {
						b.Fatal(err)
					}
					rest, done = rest[n:], end
				}
			}
		})
	}
}
