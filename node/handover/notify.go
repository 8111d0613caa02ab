package handover

import (
	"fmt"
	"net"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// What a supervisor is told, in the words of sd_notify(3).
const (
	Started  = "READY=1"
	Stopping = "STOPPING=1"
)

// Reloading says that a replacement has begun; Started ends it.
func Reloading() string {
	var now unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &now) // it fails only for a wrong clock
	return fmt.Sprintf("RELOADING=1\nMONOTONIC_USEC=%d", now.Nano()/1000)
}

// MovedTo says that pid is the main process from now on.
func MovedTo(pid int) string { return fmt.Sprintf("MAINPID=%d\n%s", pid, Started) }

// Notify tells the supervisor, when there is one that wants to know ($NOTIFY_SOCKET).
// A process on a leash is not the main one, and says nothing.
func (p *Process) Notify(what string) error {
	if p == nil || p.notify == "" || p.leash != nil {
		return nil
	}
	name := p.notify
	if strings.HasPrefix(name, "@") {
		name = "\x00" + name[1:]
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("notify the supervisor: %w", err)
	}
	defer conn.Close()
	_ = conn.SetWriteDeadline(time.Now().Add(time.Second))
	if _, err := conn.Write([]byte(what)); err != nil {
		return fmt.Errorf("notify the supervisor: %w", err)
	}
	return nil
}

// Supervised reports whether a supervisor listens that can be told of a new main
// process.
func (p *Process) Supervised() bool { return p != nil && p.notify != "" }
