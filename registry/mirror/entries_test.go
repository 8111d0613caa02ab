package mirror

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/weftmesh/weft"
)

// said is "a b; problem".
func said(e *Entries) string {
	claims, problems := e.Claims()
	var ids []string
	for _, c := range claims {
		ids = append(ids, fmt.Sprintf("%s:%d", c.ID, c.Port))
	}
	return strings.Join(ids, " ") + "; " + strings.Join(problems, ", ")
}

func TestEntries(t *testing.T) {
	m, c, _ := newMirror()
	e := NewEntries(m)
	steps := []struct {
		do   func()
		want string
	}{
		{func() { e.Put("k1", claim("a", 1), nil) }, "a:1; "},
		{func() { e.Put("k2", claim("b", 1), nil) }, "a:1 b:1; "},
		{func() { e.Put("k1", Claim{}, errors.New("k1 is broken")) }, "a:1 b:1; k1 is broken"},
		{func() { e.Put("k1", claim("a", 2), nil) }, "a:2 b:1; "},
		{func() { e.Put("k0", claim("b", 3), nil) }, `b:3 a:2; line of b: instance "b" is registered by line of b already`},
		{func() { e.Delete("k2") }, "b:3 a:2; "},
		{func() { e.Keep(func(key string) bool { return key == "k1" }) }, "a:2; "},
		{func() { e.Put("k9", Claim{}, errors.New("k9 never said anything")) }, "a:2; k9 never said anything"},
	}
	for i, s := range steps {
		if s.do(); said(e) != s.want {
			t.Errorf("step %d: got %q, want %q", i, said(e), s.want)
		}
	}
	if !e.Has("k9") || e.Has("k2") {
		t.Error("Has is wrong")
	}
	claims, _ := e.Claims()
	apply(t, m, claims...)

	// Another process finds in the catalogue what a broken key said.
	e = NewEntries(New(c, Config{Node: "n1", Dialect: "file", Source: "files"}))
	e.Put("k1", Claim{}, errors.New("k1 is broken"))
	if got := said(e); got != "a:2; k1 is broken" {
		t.Errorf("got %q", got)
	}
}

func TestAddressesDoNotTellPasswords(t *testing.T) {
	for _, s := range []string{"zk://u:secret@h:1:2", "ftp://u:secret@h", "zk://u:secret@h?x=%zz", "zk://u:secret@/p", "zk://u:secret@h?no=1", "zk://u:secret@h/%zz"} {
		_, err := ParseAddress(s, map[string]string{"zk": "2181"})
		if weft.KindOf(err) != weft.Invalid || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v", s, err)
		}
	}
	a, err := ParseAddress("zk://u:p%2F@h/a/b/?x=1", map[string]string{"zk": "2181"}, "x")
	if err != nil || a.Password != "p/" || a.String() != "h:2181/a/b" || a.Options.Get("x") != "1" {
		t.Errorf("%+v, %v", a, err)
	}
}
