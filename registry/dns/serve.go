package dns

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"runtime/debug"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

const (
	idleTimeout  = 10 * time.Second // from one question's end to the next one's end, over TCP
	writeTimeout = 5 * time.Second  // for one answer, over TCP
	maxQuestion  = 4096             // bytes of a question over UDP; longer ones are cut, and so malformed
)

// udpSocket reads questions and sends answers. On a socket that is bound to every
// address of the machine, the answer must leave from the address that was asked,
// which needs the control messages of a session.
type udpSocket struct {
	net.PacketConn
	everywhere *net.UDPConn // nil when bound to one address
}

// asker is where an answer goes; one of its fields is set.
type asker struct {
	addr    net.Addr
	session *dns.SessionUDP
}

func newUDPSocket(p net.PacketConn) udpSocket {
	u, ok := p.(*net.UDPConn)
	if !ok || !u.LocalAddr().(*net.UDPAddr).IP.IsUnspecified() {
		return udpSocket{PacketConn: p}
	}
	// A socket of one family refuses the other's option. Without either, answers
	// leave from the address that the system chooses.
	err4 := ipv4.NewPacketConn(u).SetControlMessage(ipv4.FlagDst|ipv4.FlagInterface, true)
	err6 := ipv6.NewPacketConn(u).SetControlMessage(ipv6.FlagDst|ipv6.FlagInterface, true)
	if err4 != nil && err6 != nil {
		return udpSocket{PacketConn: p}
	}
	return udpSocket{PacketConn: p, everywhere: u}
}

func (u udpSocket) receive(b []byte) (n int, from asker, err error) {
	if u.everywhere != nil {
		n, from.session, err = dns.ReadFromSessionUDP(u.everywhere, b)
	} else {
		n, from.addr, err = u.ReadFrom(b)
	}
	return n, from, err
}

func (u udpSocket) send(b []byte, to asker) (err error) {
	if u.everywhere != nil {
		_, err = dns.WriteToSessionUDP(u.everywhere, b, to.session)
	} else {
		_, err = u.WriteTo(b, to.addr)
	}
	return err
}

// servePackets reads and answers one packet after the other. Nothing blocks in
// between, so a few of these use all cores, and a flood starts no goroutines.
func (s *Server) servePackets(socket udpSocket) error {
	question := make([]byte, maxQuestion)
	buffer := make([]byte, maxUDPAnswer)
	for {
		n, from, err := socket.receive(question)
		switch {
		case err != nil && s.isClosed():
			return nil
		case errors.Is(err, net.ErrClosed):
			return err
		case err != nil: // such as an ICMP message about an earlier answer
			continue
		}
		if answer := s.respond(question[:n], buffer, dns.MinMsgSize); answer != nil {
			socket.send(answer, from) // lost answers are the client's to ask for again
		}
	}
}

// serveConns accepts until the listener is closed.
func (s *Server) serveConns(l net.Listener) error {
	pause := time.Duration(0)
	for {
		c, err := l.Accept()
		if err != nil {
			if s.isClosed() {
				return nil
			}
			if errors.Is(err, net.ErrClosed) {
				return err
			}
			// Out of file descriptors, for example: wait for some to be freed.
			pause = min(max(2*pause, 5*time.Millisecond), time.Second)
			s.logger.Warn("DNS connection not accepted", "error", err, "retry", pause)
			select {
			case <-time.After(pause):
			case <-s.done:
			}
			continue
		}
		pause = 0
		if !s.admit(c) {
			c.Close()
		}
	}
}

// admit starts to serve a connection, unless there are too many.
func (s *Server) admit(c net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || len(s.conns) >= s.maxConns {
		return false
	}
	s.conns[c] = struct{}{}
	s.work.Go(func() {
		s.serveConn(c)
		c.Close()
		s.mu.Lock()
		delete(s.conns, c)
		s.mu.Unlock()
	})
	return true
}

// serveConn answers the questions of one connection in their order. A client may
// send many before it reads (RFC 7766 section 6.2.1.1).
func (s *Server) serveConn(c net.Conn) {
	in := bufio.NewReaderSize(c, 2048)
	var question, buffer []byte
	for s.awaitQuestion(c) {
		var length [2]byte
		if _, err := io.ReadFull(in, length[:]); err != nil {
			return
		}
		n := int(binary.BigEndian.Uint16(length[:]))
		if cap(question) < n {
			question = make([]byte, n)
		}
		question = question[:n]
		if _, err := io.ReadFull(in, question); err != nil {
			return
		}
		if buffer == nil {
			buffer = make([]byte, 4096)
		}
		answer := s.respond(question, buffer, dns.MaxMsgSize-1)
		if answer == nil {
			return // not a question: this client speaks something else
		}
		c.SetWriteDeadline(time.Now().Add(writeTimeout))
		framed := append(binary.BigEndian.AppendUint16(make([]byte, 0, 2+len(answer)), uint16(len(answer))), answer...)
		if _, err := c.Write(framed); err != nil {
			return
		}
	}
}

// awaitQuestion sets the deadline for the next question, unless the server closes.
func (s *Server) awaitQuestion(c net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	c.SetReadDeadline(time.Now().Add(idleTimeout))
	return true
}

// respond returns the packed answer to a packed question, in buffer when it fits;
// nil when there is nothing to answer. A failure of ours is SERVFAIL, and never
// more than this one question's.
func (s *Server) respond(question, buffer []byte, size int) (answer []byte) {
	defer func() {
		if cause := recover(); cause != nil {
			s.logger.Error("DNS question failed", "error", cause, "stack", string(debug.Stack()))
			answer = refusal(question, dns.RcodeServerFailure)
		}
	}()
	m, rcode := s.parse(question)
	switch {
	case rcode != dns.RcodeSuccess:
		return refusal(question, rcode)
	case m == nil:
		return nil
	}
	packed, err := s.reply(m, size).PackBuffer(buffer)
	if err != nil {
		s.logger.Error("DNS answer not packed", "question", m.Question[0].String(), "error", err)
		return refusal(question, dns.RcodeServerFailure)
	}
	return packed
}

// parse reads a question. It returns nil for what must not be answered: an
// answer, and what is too short to have an id.
func (s *Server) parse(b []byte) (m *dns.Msg, rcode int) {
	const header = 12
	if len(b) < header || b[2]&0x80 != 0 {
		return nil, dns.RcodeSuccess
	}
	if opcode := b[2] >> 3 & 0xf; opcode != dns.OpcodeQuery {
		return nil, dns.RcodeNotImplemented
	}
	m = new(dns.Msg)
	if err := m.Unpack(b); err != nil || len(m.Question) != 1 || len(m.Answer) != 0 || edns(m) > 1 {
		return nil, dns.RcodeFormatError
	}
	return m, dns.RcodeSuccess
}

// edns counts the OPT records, of which there may be one (RFC 6891 section 6.1.1).
func edns(m *dns.Msg) (n int) {
	for _, r := range m.Extra {
		if r.Header().Rrtype == dns.TypeOPT {
			n++
		}
	}
	return n
}

// refusal is the header of an answer without any section, for a question that was
// not read.
func refusal(question []byte, rcode int) []byte {
	b := make([]byte, 12)
	copy(b, question[:4])
	b[2] = b[2]&0x79 | 0x80 // QR; the opcode and RD as they came
	b[3] = byte(rcode)
	return b
}
