package dns

import (
	"errors"
	"net"
	"net/netip"
	"runtime"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

const (
	maxQuestion = 4096    // bytes of a question over UDP; longer ones are cut, and so malformed
	readBuffer  = 2 << 20 // bytes of the kernel's, for questions that come while we have no core
)

// udpSocket reads questions and sends answers. On a socket that is bound to every
// address of the machine, the answer must leave from the address that was asked,
// which needs the control messages of both.
type udpSocket struct {
	packet     net.PacketConn
	udp        *net.UDPConn // nil when packet is something else
	everywhere bool         // it is bound to every address
}

// peer is where an answer goes.
type peer struct {
	addr    netip.AddrPort // of a UDP socket
	other   net.Addr       // of something else
	control []byte         // to be sent along; nil for none
}

func newUDPSocket(p net.PacketConn) udpSocket {
	u, ok := p.(*net.UDPConn)
	if !ok {
		return udpSocket{packet: p}
	}
	_ = u.SetReadBuffer(readBuffer) // the system may allow less
	s := udpSocket{packet: p, udp: u}
	if !u.LocalAddr().(*net.UDPAddr).IP.IsUnspecified() {
		return s
	}
	// A socket of one family refuses the other's option. Without either, answers
	// leave from the address that the system chooses.
	err4 := ipv4.NewPacketConn(u).SetControlMessage(ipv4.FlagDst|ipv4.FlagInterface, true)
	err6 := ipv6.NewPacketConn(u).SetControlMessage(ipv6.FlagDst|ipv6.FlagInterface, true)
	s.everywhere = err4 == nil || err6 == nil
	return s
}

// receive reads one packet. control is for what comes with it.
func (u udpSocket) receive(b, control []byte) (n int, from peer, err error) {
	switch {
	case u.udp == nil:
		n, from.other, err = u.packet.ReadFrom(b)
	case !u.everywhere:
		n, from.addr, err = u.udp.ReadFromUDPAddrPort(b)
	default:
		var c int
		n, c, _, from.addr, err = u.udp.ReadMsgUDPAddrPort(b, control)
		from.control = answerControl(control[:c])
	}
	return n, from, err
}

func (u udpSocket) send(b []byte, to peer) (err error) {
	switch {
	case u.udp == nil:
		_, err = u.packet.WriteTo(b, to.other)
	case to.control == nil:
		_, err = u.udp.WriteToUDPAddrPort(b, to.addr)
	default:
		_, _, err = u.udp.WriteMsgUDPAddrPort(b, to.control, to.addr)
	}
	return err
}

// answerControl makes of the control message of a question that of its answer: from
// the address that was asked, by whichever interface.
func answerControl(received []byte) []byte {
	if runtime.GOOS == "linux" && len(received) >= linuxControl {
		// The kernel takes what it gave, less the interface: a header of 16 bytes,
		// then struct in_pktinfo, or in6_pktinfo, whose address may need it.
		switch received[12] {
		case 8: // IP_PKTINFO
			clear(received[16:20])
			return received
		case 50: // IPV6_PKTINFO
			if len(received) >= 36 && (received[16] != 0xfe || received[17]&0xc0 != 0x80) {
				clear(received[32:36])
			}
			return received
		}
	}
	var v6 ipv6.ControlMessage
	if v6.Parse(received) == nil && v6.Dst != nil && v6.Dst.To4() == nil {
		return (&ipv6.ControlMessage{Src: v6.Dst, IfIndex: v6.IfIndex}).Marshal()
	}
	var v4 ipv4.ControlMessage
	if v4.Parse(received) == nil && v4.Dst != nil {
		return (&ipv4.ControlMessage{Src: v4.Dst}).Marshal()
	}
	return nil
}

const linuxControl = 28 // bytes of a control message with struct in_pktinfo

// servePackets reads and answers one packet after the other. Nothing blocks in
// between, so a few of these use all cores, and a flood starts no more goroutines
// than there may be errands.
func (s *Server) servePackets(socket udpSocket) error {
	question := make([]byte, maxQuestion)
	buffer := make([]byte, 0, 4096)
	control := make([]byte, 128)
	r := s.newResponder()
	for {
		n, from, err := socket.receive(question, control)
		switch {
		case err != nil && s.isClosed():
			return nil
		case errors.Is(err, net.ErrClosed):
			return err
		case err != nil: // such as an ICMP message about an earlier answer
			continue
		}
		if !s.serves(from.addr.Addr()) {
			if no := turnAway(buffer[:0], question[:n]); len(no) > 0 {
				_ = socket.send(no, from)
			}
			continue
		}
		answer, later := r.respond(buffer[:0], question[:n], asker{addr: from.addr.Addr()})
		if later != nil {
			answer = s.runLater(r, buffer[:0], later, socket, from)
		}
		if len(answer) > 0 {
			_ = socket.send(answer, from) // lost answers are the client's to ask for again
			buffer = answer
		}
	}
}

// runLater starts an errand, whose answer will be sent to a peer. When there are too
// many it returns an answer that says so.
func (s *Server) runLater(r *responder, b []byte, e *errand, socket udpSocket, to peer) []byte {
	if to.control != nil {
		to.control = append([]byte(nil), to.control...)
	}
	if !s.begin() {
		return r.busy(b, e)
	}
	s.work.Go(func() {
		defer s.end()
		own := s.newResponder()
		if answer := own.run(s.ctx, e, nil); len(answer) > 0 {
			_ = socket.send(answer, to)
		}
	})
	return nil
}

// begin takes one of the places of errands, if there is one. end gives it back.
func (s *Server) begin() bool {
	select {
	case s.errands <- struct{}{}:
		return true
	default:
		return false
	}
}

func (s *Server) end() { <-s.errands }

// busy appends the answer to an errand that cannot be done now.
func (r *responder) busy(b []byte, e *errand) []byte {
	if r.query.read(e.packet) != asked {
		return b
	}
	return plain(b, &r.query, dns.RcodeServerFailure, r.frame(&r.query, e.from))
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
			case <-s.ctx.Done():
			}
			continue
		}
		pause = 0
		if !s.serves(clientOf(c)) || !s.admit(c) {
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
