package frames

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"golang.org/x/net/http2"
)

// TestAClientOfGoesServer: what is sent is understood, what comes is seen.
func TestAClientOfGoesServer(t *testing.T) {
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		w.Header().Set("Trailer", "sum")
		fmt.Fprint(w, r.Method, r.URL.Path, len(b), strings.Repeat("x", 200_000))
		w.Header().Set("sum", "42")
	}))
	server.Config.Protocols = new(http.Protocols)
	server.Config.Protocols.SetUnencryptedHTTP2(true)
	server.Start()
	t.Cleanup(server.Close)
	c, err := Dial(server.Listener.Addr().String(), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if err := errors.Join(c.Request(1, false, "POST", "/a"), c.WriteData(1, true, make([]byte, 1000))); err != nil {
		t.Fatal(err)
	}
	r, err := c.Response(1)
	if err != nil || r.Get(":status") != "200" || !strings.HasPrefix(string(r.Body), "POST/a1000x") || len(r.Body) != 200_010 || r.Trailer("sum") != "42" {
		t.Errorf("got %+v, %v", r.Head, err)
	}
	if c.Settings[http2.SettingMaxConcurrentStreams] == 0 {
		t.Errorf("settings %v", c.Settings)
	}
	if err := c.WriteWindowUpdate(0, 1<<31-1); err != nil {
		t.Fatal(err)
	}
	if code, seen, err := c.End(); code != http2.ErrCodeFlowControl || !seen || err != nil {
		t.Errorf("the end: %s, %v, %v", code, seen, err)
	}
}
