package soak

import (
	"encoding/binary"
	"fmt"
	"io"
	"strings"
	"testing"
)

// word is the i-th of eight bytes of the body that belongs to an id (splitmix64).
func word(id uint64, i int64) uint64 {
	z := id*0xd1342543de82ef95 + uint64(i+1)*0x9e3779b97f4a7c15
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

// fill writes what the body of id has from offset at on.
func fill(b []byte, id uint64, at int64) {
	var w [8]byte
	for len(b) > 0 {
		binary.LittleEndian.PutUint64(w[:], word(id, at/8))
		n := copy(b, w[at%8:])
		b, at = b[n:], at+int64(n)
	}
}

// body reads as the first n bytes of id's.
type body struct {
	id    uint64
	at, n int64
}

func newBody(id uint64, n int64) *body { return &body{id: id, n: n} }

func (r *body) Read(p []byte) (int, error) {
	if r.at == r.n {
		return 0, io.EOF
	}
	p = p[:min(int64(len(p)), r.n-r.at)]
	fill(p, r.id, r.at)
	r.at += int64(len(p))
	return len(p), nil
}

func (r *body) bytes() []byte {
	b := make([]byte, r.n)
	fill(b, r.id, 0)
	return b
}

// wrongBytes is what must never happen.
type wrongBytes struct{ what string }

func (w *wrongBytes) Error() string { return "WRONG: " + w.what }

// checker takes a body and compares it.
type checker struct {
	id   uint64
	at   int64
	want [32 << 10]byte
}

func (c *checker) Write(p []byte) (int, error) {
	for done := 0; done < len(p); {
		w := c.want[:min(len(p)-done, len(c.want))]
		fill(w, c.id, c.at)
		got := p[done : done+len(w)]
		if string(got) != string(w) {
			i := 0
			for got[i] == w[i] {
				i++
			}
			return done, &wrongBytes{fmt.Sprintf("body of %x differs at byte %d: got %.40q, want %.40q", c.id, c.at+int64(i), got[i:], w[i:])}
		}
		c.at += int64(len(w))
		done += len(w)
	}
	return len(p), nil
}

// check reads a body to its end, and says whether it is what it should be. A
// reader that fails is an error like any; one that ends early or late is wrong.
func check(r io.Reader, id uint64, n int64) error {
	c := checker{id: id}
	if _, err := io.CopyBuffer(struct{ io.Writer }{&c}, struct{ io.Reader }{r}, make([]byte, 32<<10)); err != nil {
		return err
	}
	if c.at != n {
		return &wrongBytes{fmt.Sprintf("body of %x has %d bytes and ended without an error, want %d", id, c.at, n)}
	}
	return nil
}

func TestCheckFindsWhatIsWrong(t *testing.T) {
	whole := string(newBody(7, 100_000).bytes())
	for _, c := range []struct {
		name  string
		r     io.Reader
		wrong string // in the error
	}{
		{"whole", strings.NewReader(whole), ""},
		{"in pieces", io.MultiReader(strings.NewReader(whole[:13]), strings.NewReader(whole[13:])), ""},
		{"generated", newBody(7, 100_000), ""},
		{"cut off", strings.NewReader(whole[:99_999]), "99999 bytes"},
		{"empty", strings.NewReader(""), "0 bytes"},
		{"too long", newBody(7, 100_001), "100001 bytes"},
		{"another body", newBody(8, 100_000), "at byte 0"},
		{"shifted", strings.NewReader(whole[8:]), "at byte 0"},
		{"another body in the middle", io.MultiReader(strings.NewReader(whole[:50_003]), newBody(8, 49_997)), "at byte 50003"},
	} {
		err := check(c.r, 7, 100_000)
		switch {
		case c.wrong == "" && err != nil:
			t.Errorf("%s: %v", c.name, err)
		case c.wrong != "" && (err == nil || !strings.Contains(err.Error(), "WRONG") || !strings.Contains(err.Error(), c.wrong)):
			t.Errorf("%s: got %v, want %q", c.name, err, c.wrong)
		}
	}
	if err := check(io.MultiReader(strings.NewReader(whole[:10]), failing{}), 7, 100_000); err != io.ErrUnexpectedEOF {
		t.Errorf("a reader that fails: %v", err)
	}
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }
