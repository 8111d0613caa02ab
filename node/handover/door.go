package handover

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Door is where `weft upgrade` asks a process to be replaced: a socket in the
// abstract namespace, so that no file is left behind. Only the own user and root
// are heard.
type Door struct{ ln *net.UnixListener }

// Reply is the answer at a door.
type Reply struct {
	Said  string `json:"said,omitempty"`  // what happened, for people
	Error string `json:"error,omitempty"` // why nothing happened
	Ask   int    `json:"ask,omitempty"`   // the process to ask instead
}

// longestReply is far above any in bytes.
const longestReply = 64 << 10

// doorName has the process namespace in it: containers of one pod share a network,
// and each has a process 1.
func doorName(pid int) string {
	namespace, _ := os.Readlink("/proc/self/ns/pid") // "" when there is no /proc: then there is one namespace
	return "@weft-upgrade/" + namespace + "/" + strconv.Itoa(pid)
}

// OpenDoor opens this process's door.
func OpenDoor() (*Door, error) {
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: doorName(os.Getpid()), Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("open the door for upgrades: %w", err)
	}
	return &Door{ln}, nil
}

// Close shuts the door.
func (d *Door) Close() { _ = d.ln.Close() }

// Serve answers everybody who may ask, one after the other, until Close.
func (d *Door) Serve(answer func() Reply) error {
	for {
		conn, err := d.ln.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return err
		}
		if peer, err := credentials(conn); err == nil && (peer.Uid == 0 || int(peer.Uid) == os.Geteuid()) {
			b, _ := json.Marshal(answer()) // two strings and a number
			_ = conn.SetWriteDeadline(time.Now().Add(time.Second))
			_, _ = conn.Write(b) // who went away has the log
		}
		_ = conn.Close()
	}
}

func credentials(conn *net.UnixConn) (*unix.Ucred, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	var peer *unix.Ucred
	var failure error
	err = raw.Control(func(fd uintptr) { peer, failure = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	return peer, errors.Join(err, failure)
}

// Ask asks process pid to be replaced, and returns what it says when that is done.
func Ask(ctx context.Context, pid int) (Reply, error) {
	var none Reply
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: doorName(pid), Net: "unix"})
	if errors.Is(err, syscall.ECONNREFUSED) {
		return none, errors.New("there is no weft process of this number that can be replaced (a gateway, server, sidecar or demo)")
	}
	if err != nil {
		return none, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	if peer, err := credentials(conn); err != nil || int(peer.Pid) != pid {
		return none, errors.Join(errors.New("somebody else stands at its door"), err)
	}
	b, err := io.ReadAll(io.LimitReader(conn, longestReply))
	if ctx.Err() != nil {
		return none, context.Cause(ctx)
	}
	if err != nil {
		return none, err
	}
	if len(b) == 0 {
		return none, errors.New("it did not answer: only its own user and root may ask")
	}
	var r Reply
	if err := json.Unmarshal(b, &r); err != nil {
		return none, fmt.Errorf("its answer %.40q: %w", b, err)
	}
	return r, nil
}
