package handover

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// Leash joins the first process of a chain, which has stayed, with the one that
// serves now. It is handed on with the sockets. Its end means that the other side
// is gone.
//
// It is a packet socket, so that a message is read whole or not at all by one of
// two processes that both hold this end for a moment.
type Leash struct {
	conn    *net.UnixConn
	closing sync.Once
}

// Word is what goes over a leash. Words that are not known are to be ignored: the
// two sides may be of different versions.
type Word struct {
	// to the first process
	PID int  `json:"pid,omitempty"` // this process serves now
	End bool `json:"end,omitempty"` // end the application, and tell its code
	Bye bool `json:"bye,omitempty"` // the data plane ends, with Code
	// from the first process
	Stop   bool `json:"stop,omitempty"`   // drain and end
	Exited bool `json:"exited,omitempty"` // the application has ended, with Code

	Code int `json:"code,omitempty"`
}

// longestWord is far above any in bytes.
const longestWord = 4 << 10

func newLeash(f *os.File) (*Leash, error) {
	conn, err := net.FileConn(f)
	_ = f.Close()
	if err != nil {
		return nil, fmt.Errorf("leash: %w", err)
	}
	unix, ok := conn.(*net.UnixConn)
	if !ok {
		return nil, errors.Join(fmt.Errorf("leash: it is a %T", conn), conn.Close())
	}
	return &Leash{conn: unix}, nil
}

// Say sends a word. It does not wait for a reader.
func (l *Leash) Say(w Word) error {
	b, err := json.Marshal(w)
	if err != nil {
		return err
	}
	_ = l.conn.SetWriteDeadline(time.Now().Add(time.Second)) // the queue holds hundreds
	_, err = l.conn.Write(b)
	return err
}

// Hear waits for the next word. The error is io.EOF when the other side is gone,
// and os.ErrDeadlineExceeded after Pause.
func (l *Leash) Hear() (Word, error) {
	var b [longestWord]byte
	for {
		n, err := l.conn.Read(b[:])
		if err != nil {
			return Word{}, err
		}
		if n == 0 { // how a packet socket says it
			return Word{}, io.EOF
		}
		var w Word
		if json.Unmarshal(b[:n], &w) == nil {
			return w, nil
		}
		// A later version may speak otherwise. What matters it says in known words.
	}
}

// Pause makes Hear fail, until Resume. What is said meanwhile waits.
func (l *Leash) Pause() { _ = l.conn.SetReadDeadline(time.Unix(1, 0)) }

// Resume ends Pause.
func (l *Leash) Resume() { _ = l.conn.SetReadDeadline(time.Time{}) }

// Close lets go of this end.
func (l *Leash) Close() { l.closing.Do(func() { _ = l.conn.Close() }) }
