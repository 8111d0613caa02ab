// Package handover replaces a running process by a new one of the same command
// line, without a moment in which a listening socket is closed.
//
// The old process starts the executable by the path by which it was started
// itself, so that a file or a symbolic link that was put there since takes effect,
// with the same arguments, environment and standard streams. The new one inherits:
//
//   - a stream socket, whose number is in $WEFT_HANDOVER, for the conversation;
//   - the listening sockets by name, from the next number on. Accept queues belong
//     to the socket and not to a process: who connects waits there, whoever accepts;
//   - the leash, when the first process of the chain stays (see Leash).
//
// The conversation is one JSON object a message:
//
//	old → new  {"word":"hello","sockets":["http","admin"],"state":{…}}
//	new → old  {"word":"ready"}     everything is prepared
//	old → new  {"word":"take"}      it is yours
//	new → old  {"word":"serving"}   the old one may stop
//
// Until "serving" the old process keeps its sockets open and can go on: when the
// new one says {"word":"failed","reason":"…"}, ends, or takes too long, nothing has
// happened. The state may hold secrets; it goes from memory to memory.
//
// Sockets may also come from a supervisor in systemd's way ($LISTEN_FDS, with
// names in $LISTEN_FDNAMES).
package handover

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Names of environment variables that are for this process alone.
const (
	handoverEnv = "WEFT_HANDOVER"
	listenPID   = "LISTEN_PID"
	listenFDs   = "LISTEN_FDS"
	listenNames = "LISTEN_FDNAMES"
	notifyEnv   = "NOTIFY_SOCKET"
)

// firstFD is the first descriptor behind the standard streams.
const firstFD = 3

// longest bounds what is read of a conversation: far above a state with the most
// hosts that a sidecar follows.
const longest = 16 << 20

// Process is this process in the chain of those that replace one another. A nil
// Process is one that nobody replaces: it listens, and that is all.
type Process struct {
	// constant
	path   string   // of the executable, as it was started
	env    []string // for the next process
	notify string   // address of the supervisor's notify socket
	state  json.RawMessage
	leash  *Leash

	before *conversation // nil: there is none, or it is over

	mu      sync.Mutex
	sockets map[string]int // descriptors by name, kept open so that queues live on; not *os.File, which would be polled
}

// message of the conversation.
type message struct {
	Word    string          `json:"word"`
	Sockets []string        `json:"sockets,omitempty"`
	State   json.RawMessage `json:"state,omitempty"`
	Leash   bool            `json:"leash,omitempty"` // the descriptor behind the sockets is one
	Reason  string          `json:"reason,omitempty"`
}

// conversation is one end of the stream socket.
type conversation struct {
	conn net.Conn
	in   *json.Decoder
}

func converse(f *os.File) (*conversation, error) {
	conn, err := net.FileConn(f) // a duplicate
	_ = f.Close()
	if err != nil {
		return nil, err
	}
	return &conversation{conn: conn, in: json.NewDecoder(io.LimitReader(conn, longest))}, nil
}

func (c *conversation) say(m message) error {
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	_, err = c.conn.Write(b)
	return err
}

func (c *conversation) hear() (m message, err error) {
	err = c.in.Decode(&m)
	return m, err
}

// helloTimeout bounds the wait for what an old process says first; it has been
// written by then, or nearly.
const helloTimeout = 10 * time.Second

// Inherit reads what this process was given by the one before it or by a
// supervisor. Call it once, before other files are opened or programs started: the
// environment that it reads is taken away, so that no child believes it.
func Inherit() (*Process, error) {
	p := &Process{path: executable(), notify: os.Getenv(notifyEnv), sockets: map[string]int{}}
	fd, listen := os.Getenv(handoverEnv), os.Getenv(listenFDs)
	pid, names := os.Getenv(listenPID), os.Getenv(listenNames)
	for _, name := range []string{handoverEnv, listenPID, listenFDs, listenNames} {
		if err := os.Unsetenv(name); err != nil {
			return nil, err
		}
	}
	p.env = os.Environ() // with $NOTIFY_SOCKET: the next process may become the main one
	if err := os.Unsetenv(notifyEnv); err != nil {
		return nil, err
	}
	if fd != "" {
		return p, p.inherit(fd)
	}
	if pid == strconv.Itoa(os.Getpid()) {
		return p, p.activated(listen, names)
	}
	return p, nil
}

// inherit takes over from the process before.
func (p *Process) inherit(fd string) error {
	n, err := strconv.Atoi(fd)
	if err != nil || n < firstFD {
		return fmt.Errorf("take over: $%s is %q; unset it: it is for processes that weft starts", handoverEnv, fd)
	}
	if p.before, err = converse(os.NewFile(uintptr(adopt(n)), "handover")); err != nil {
		return fmt.Errorf("take over: descriptor %d: %w", n, err)
	}
	_ = p.before.conn.SetDeadline(time.Now().Add(helloTimeout))
	hello, err := p.before.hear()
	if err != nil || hello.Word != "hello" {
		return fmt.Errorf("take over: the old process said %q: %w", hello.Word, err)
	}
	_ = p.before.conn.SetDeadline(time.Time{})
	p.state = hello.State
	for i, name := range hello.Sockets {
		p.sockets[name] = adopt(n + 1 + i)
	}
	if hello.Leash {
		p.leash, err = newLeash(os.NewFile(uintptr(adopt(n+1+len(hello.Sockets))), "leash"))
	}
	return err
}

// activated takes sockets from a supervisor: sd_listen_fds(3).
func (p *Process) activated(count, names string) error {
	n, err := strconv.Atoi(count)
	if err != nil || n < 0 {
		return fmt.Errorf("take sockets: $%s is %q, not a number", listenFDs, count)
	}
	named := strings.Split(names, ":")
	for i := range n {
		if _, twice := p.sockets[at(named, i)]; twice || at(named, i) == "" {
			return fmt.Errorf("take sockets: socket %d of %d has no name of its own in $%s; set FileDescriptorName= to the name of its flag, as in http", i+1, n, listenNames)
		}
		p.sockets[named[i]] = adopt(firstFD + i)
	}
	return nil
}

func at(list []string, i int) string {
	if i >= len(list) {
		return ""
	}
	return list[i]
}

// adopt keeps an inherited descriptor from the programs that this process starts.
func adopt(fd int) int {
	syscall.CloseOnExec(fd)
	return fd
}

// duplicate makes a file of a descriptor that stays open.
func duplicate(fd int) (*os.File, error) {
	copied, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("dup", err)
	}
	return os.NewFile(uintptr(copied), "socket"), nil
}

// executable is the path by which this process was started, as far as that can be
// known: /proc/self/exe names a file that may have been replaced since.
func executable() string {
	self, err := os.Executable()
	if err != nil {
		self = os.Args[0]
	}
	path, err := exec.LookPath(os.Args[0])
	if err != nil {
		return self
	}
	if path, err = filepath.Abs(path); err != nil {
		return self
	}
	a, errA := os.Stat(path)
	b, errB := os.Stat(self)
	if errA != nil || errB != nil || !os.SameFile(a, b) {
		return self
	}
	return path
}

// Inherited reports whether this process is about to take over from another one.
func (p *Process) Inherited() bool { return p != nil && p.before != nil }

// State decodes what the process before gave to Begin.
func (p *Process) State(into any) error {
	if err := json.Unmarshal(p.state, into); err != nil {
		return fmt.Errorf("take over: state of the old process: %w", err)
	}
	return nil
}

// Leash is nil unless an older process has stayed as this one's parent.
func (p *Process) Leash() *Leash {
	if p == nil {
		return nil
	}
	return p.leash
}

// LetGo closes the leash: the next process has its own.
func (p *Process) LetGo() {
	if p.leash != nil {
		p.leash.Close()
	}
}

// Listen returns the TCP socket of this name that was inherited, whatever address
// says, or listens. The socket stays open, and its queue fills, until Close, even
// when the listener is closed: Listen again then continues with it.
func (p *Process) Listen(name, address string) (net.Listener, error) {
	f, err := p.kept(name)
	if err != nil {
		return nil, err
	}
	if f != nil {
		defer f.Close()
		return net.FileListener(f)
	}
	ln, err := net.Listen("tcp", address)
	if err != nil || p == nil {
		return ln, err
	}
	if err := p.keep(name, ln.(*net.TCPListener)); err != nil {
		return nil, errors.Join(err, ln.Close())
	}
	return ln, nil
}

// ListenPacket is Listen for UDP.
func (p *Process) ListenPacket(name, address string) (net.PacketConn, error) {
	f, err := p.kept(name)
	if err != nil {
		return nil, err
	}
	if f != nil {
		defer f.Close()
		return net.FilePacketConn(f)
	}
	conn, err := net.ListenPacket("udp", address)
	if err != nil || p == nil {
		return conn, err
	}
	if err := p.keep(name, conn.(*net.UDPConn)); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return conn, nil
}

// kept returns a duplicate of a socket that is there already, or nil.
func (p *Process) kept(name string) (*os.File, error) {
	if p == nil {
		return nil, nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	fd, ok := p.sockets[name]
	if !ok {
		return nil, nil
	}
	return duplicate(fd)
}

func (p *Process) keep(name string, socket syscall.Conn) error {
	fd, err := descriptor(socket)
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sockets[name] = fd
	return nil
}

// descriptor duplicates that of a socket. Its File method would not do: to start a
// program with such a file makes the socket blocking, for all who share it.
func descriptor(socket syscall.Conn) (copied int, err error) {
	raw, err := socket.SyscallConn()
	if err != nil {
		return 0, err
	}
	var failure error
	err = raw.Control(func(fd uintptr) { copied, failure = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0) })
	return copied, errors.Join(err, os.NewSyscallError("dup", failure))
}

// Close gives up sockets, all of them when none is named. Listeners that were made
// of them live on.
func (p *Process) Close(names ...string) {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for name, fd := range p.sockets {
		if len(names) == 0 || slices.Contains(names, name) {
			_ = unix.Close(fd)
			delete(p.sockets, name)
		}
	}
}

// Unused names the sockets that are not among used: what a supervisor gives and
// nobody takes would never be accepted from.
func (p *Process) Unused(used ...string) []string {
	if p == nil {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []string
	for name := range p.sockets {
		if !slices.Contains(used, name) {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}
