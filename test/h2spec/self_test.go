package h2spec

import (
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"testing"
)

// application answers everything with enough bytes for the cases that count them,
// after it has read what was sent.
var application = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body) // many cases send what cannot be read
	fmt.Fprint(w, "the answer of the application behind weft\n")
})

// TestTheJudge asks servers that are known: Go's HTTP/2, which has few bugs, and
// one that speaks no HTTP/2 at all. So the judge lets pass what is right and
// nothing else.
func TestTheJudge(t *testing.T) {
	total := len(serverCases())
	if total < 140 {
		t.Errorf("h2spec has only %d cases", total)
	}
	for name, c := range map[string]struct {
		http2       bool
		least, most int // failed cases
	}{
		"Go's HTTP/2": {true, 0, 8},
		"HTTP/1 only": {false, total - 1, total},
	} {
		server := httptest.NewUnstartedServer(application)
		server.Config.ErrorLog = log.New(io.Discard, "", 0)
		server.Config.Protocols = new(http.Protocols)
		server.Config.Protocols.SetHTTP1(true)
		server.Config.Protocols.SetUnencryptedHTTP2(c.http2)
		server.Start()
		failed := failures(t, server.Listener.Addr().String())
		server.Close()
		t.Logf("%s fails %d of %d", name, len(failed), total)
		if len(failed) < c.least || len(failed) > c.most {
			t.Errorf("%s fails %q, want %d to %d", name, failed, c.least, c.most)
		}
	}
}

// failures asks all cases at once.
func failures(t *testing.T, address string) []string {
	t.Helper()
	var mu sync.Mutex
	var failed []string
	var asking sync.WaitGroup
	for _, c := range serverCases() {
		asking.Go(func() {
			if err := c.ask(configFor(t, address, false)); err != nil {
				mu.Lock()
				defer mu.Unlock()
				failed = append(failed, c.id)
			}
		})
	}
	asking.Wait()
	slices.Sort(failed)
	return failed
}
