package mux

import (
	"testing"
	"time"

	judge "golang.org/x/net/http2"
)

// A peer whose last bytes and whose end come together, while a stream is open: the
// reader does not ask after a short read, so the owner's Expire has to make it.
func TestEndBehindTheLastBytesIsSeen(t *testing.T) {
	r, c := rawServer(t, Config{})
	s := open(t, c)
	if err := s.SendRequest(&get, nil, nil, true); err != nil {
		t.Fatal(err)
	}
	r.await(judge.FrameHeaders)
	r.headers(1, false, ":status", "200")
	r.sock.Close()
	failed := make(chan error, 1)
	go func() {
		if err := s.AwaitHead(); err != nil {
			failed <- err
			return
		}
		_, err := s.Next()
		failed <- err
	}()
	for deadline := time.Now().Add(5 * time.Second); ; {
		select {
		case err := <-failed:
			if err == nil {
				t.Error("the body went on")
			}
			s.Close()
			return
		case now := <-time.After(10 * time.Millisecond):
			c.Expire(now)
			if now.After(deadline) {
				t.Fatal("the end was not seen")
			}
		}
	}
}
