package proxy

import (
	"testing"

	"github.com/weftmesh/weft"
)

// An HTTP/2 client need not say how long its body is. What it sends in one piece
// must not become chunks that it wrote itself.
func TestBodyOfUnknownLengthIsFramed(t *testing.T) {
	back := record(t)
	m := newMesh(t, back.address)
	m.speak(weft.HTTP)
	for _, body := range []string{"", "x", "0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: shop\r\n\r\n"} {
		f := dialFrames(t, m.addr)
		if err := f.ask(1, false, "POST", "/"); err != nil {
			t.Fatal(err)
		}
		if err := f.WriteData(1, true, []byte(body)); err != nil {
			t.Fatal(err)
		}
		if r, err := f.reply(1); err != nil || r.status != "200" {
			t.Errorf("%v %v", r, err)
		}
		if got := back.take(); len(got) != 1 || got[0].body != body {
			t.Errorf("%q: the application heard %q, cut: %q", body, got, back.cut())
		}
	}
	settled(t, m.proxy)
}
