package websocket

import (
	"fmt"
	"net/http"
	"testing"
	"time"

	gorilla "github.com/gorilla/websocket"

	"github.com/weftmesh/weft/test/world"
)

// echo says something and hears it.
func echo(t *testing.T, c *gorilla.Conn, text string) {
	t.Helper()
	if err := c.WriteMessage(gorilla.TextMessage, []byte(text)); err != nil {
		t.Fatal(err)
	}
	if _, m, err := c.ReadMessage(); err != nil || string(m) != text {
		t.Fatalf("echo of %q: %q, %v", text, m, err)
	}
}

// drainable starts one proxy to be stopped, and says where clients come.
var drainable = map[string]func(t *testing.T, w *world.World, a *app, drain string) (stopped *world.Proxy, door string){
	"gateway": func(t *testing.T, w *world.World, a *app, drain string) (*world.Proxy, string) {
		w.Register("plain", "plain-1", a.address)
		w.Apply(world.Everything("plain"))
		g := w.Gateway("--access-log", "off", "--drain", drain)
		return g, g.HTTP
	},
	"caller's sidecar": func(t *testing.T, w *world.World, a *app, drain string) (*world.Proxy, string) {
		w.Sidecar("meshed", world.Port(t, a.address), "--access-log", "off")
		return w.Caller("tests", "meshed", "--access-log", "off", "--drain", drain)
	},
	"server's sidecar": func(t *testing.T, w *world.World, a *app, drain string) (*world.Proxy, string) {
		s := w.Sidecar("meshed", world.Port(t, a.address), "--access-log", "off", "--drain", drain)
		_, door := w.Caller("tests", "meshed", "--access-log", "off")
		return s, door
	},
}

// TestDrain: a proxy that is told to stop lets open sockets talk on, until they
// have ended.
func TestDrain(t *testing.T) {
	for name, start := range drainable {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := startApp(t)
			proxy, door := start(t, world.New(t), a, "60s")
			world.Eventually(t, patience, door, world.Answers("http://"+door+"/"))
			w := &way{name: name, address: door, app: a}
			first, _ := w.gorilla(t, "/gorilla")
			second, _ := w.gorilla(t, "/gorilla")
			echo(t, first, "before")
			echo(t, second, "before")
			proxy.Terminate()
			world.Eventually(t, patience, "new sockets to be refused", refusesNew(w))
			for i := range 20 {
				echo(t, first, fmt.Sprint("while it drains ", i))
			}
			_ = first.Close()
			echo(t, second, "after the other has gone")
			if !proxy.Alive() {
				t.Fatal("it did not wait for the second socket")
			}
			if err := second.WriteMessage(gorilla.CloseMessage, gorilla.FormatCloseMessage(1000, "")); err != nil {
				t.Fatal(err)
			}
			if _, _, err := second.ReadMessage(); !gorilla.IsCloseError(err, 1000) {
				t.Errorf("the reply to the close: %v", err)
			}
			_ = second.Close()
			select {
			case <-proxy.Done():
			case <-time.After(2 * patience):
				t.Error("it did not end when its last socket had")
			}
		})
	}
}

func refusesNew(w *way) func() error {
	d := gorilla.Dialer{HandshakeTimeout: patience}
	return func() error {
		c, _, err := d.Dial(w.url("/gorilla"), nil)
		if err != nil {
			return nil
		}
		_ = c.Close()
		return fmt.Errorf("one was opened")
	}
}

// TestDrainHasAnEnd: sockets that stay are cut, and are told so.
func TestDrainHasAnEnd(t *testing.T) {
	for name, start := range drainable {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := startApp(t)
			proxy, door := start(t, world.New(t), a, "1s")
			world.Eventually(t, patience, door, world.Answers("http://"+door+"/"))
			w := &way{name: name, address: door, app: a}
			ids := []string{newID(), newID()}
			c, _ := w.gorilla(t, "/gorilla?id="+ids[0])
			tu := w.tunnel(t)
			tu.open(t, 3, "/gorilla?id="+ids[1])
			tu.say(t, 3, false, wsText("hello"))
			tu.hear(t, 3, "\x81\x05hello")
			echo(t, c, "before")
			proxy.Terminate()
			if _, m, err := c.ReadMessage(); err == nil {
				t.Errorf("got %q", m)
			}
			select {
			case <-proxy.Done():
			case <-time.After(2 * patience):
				t.Error("it waits for a socket that does not end")
			}
			for _, id := range ids {
				if err := ended(t, w, id); err == nil {
					t.Error("the server saw no end")
				}
			}
		})
	}
}

// TestChangesKeepSockets: routes, policies and endpoints come and go beside open
// sockets.
func TestChangesKeepSockets(t *testing.T) {
	a := startApp(t)
	w := world.New(t)
	w.Register("plain", "plain-1", a.address)
	w.Apply(world.Everything("plain"))
	g := w.Gateway("--access-log", "off")
	world.Eventually(t, patience, "the gateway", world.Answers("http://"+g.HTTP+"/"))
	way := &way{name: "gateway", address: g.HTTP, app: a}
	c, _ := way.gorilla(t, "/gorilla")
	w.Apply(world.Everything("plain") + `
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: plain}
spec:
  host: plain
  trafficPolicy: {connectionPool: {tcp: {maxConnections: 100}}}
`)
	echo(t, c, "after a change")
	w.Deregister("plain-1")
	world.Eventually(t, patience, "the endpoint to go", func() error {
		resp, err := http.Get("http://" + g.HTTP + "/")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusServiceUnavailable {
			return fmt.Errorf("%s", resp.Status)
		}
		return nil
	})
	echo(t, c, "after its endpoint has left")
}
