package store

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weftmesh/weft"
)

// journal is a log that a test reads while it is written.
type journal struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (j *journal) Write(b []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.b.Write(b)
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.b.String()
}

func TestAMemberSaysWhomItWaitsFor(t *testing.T) {
	t.Parallel()
	all := newWorld(t).cluster(2)
	for _, s := range all {
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	log := new(journal)
	c := all[0].config
	c.Logger = slog.New(slog.NewTextHandler(log, nil))
	ctx, cancel := context.WithTimeout(t.Context(), 2*tellAfter+2*time.Second)
	defer cancel()
	_, err := Open(ctx, c)
	wantKind(t, err, weft.Unavailable, "1 of 2 members", "2 are needed")
	if text := log.String(); !strings.Contains(text, "waiting for the others") || !strings.Contains(text, "s1 at "+all[1].link.addr()) {
		t.Errorf("the log says nothing of s1: %s", text)
	}
}
