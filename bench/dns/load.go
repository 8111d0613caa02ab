package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"
)

const (
	sockets = 4
	window  = 32 // questions on their way, of each socket
	answer  = 2048
	lost    = time.Second // the latency of a question that was never answered
)

// question is the packet that is sent, with an id to be filled in.
func question() ([]byte, error) { return new(dns.Msg).SetQuestion(name, dns.TypeA).Pack() }

func dial(addr string) (*ipv4.PacketConn, *net.UDPConn, error) {
	to, err := net.ResolveUDPAddr("udp4", addr)
	if err != nil {
		return nil, nil, err
	}
	c, err := net.DialUDP("udp4", nil, to)
	if err != nil {
		return nil, nil, err
	}
	c.SetReadBuffer(4 << 20) // as much of it as the system allows
	return ipv4.NewPacketConn(c), c, nil
}

// batch is room for so many packets.
func batch(n, size int) []ipv4.Message {
	list := make([]ipv4.Message, n)
	for i := range list {
		list[i].Buffers = [][]byte{make([]byte, size)}
	}
	return list
}

// check returns the id of a right answer.
func check(m *ipv4.Message) (id uint16, err error) {
	b := m.Buffers[0][:m.N]
	if len(b) < 12 || b[3]&0xf != 0 || b[2]&0x82 != 0x80 || binary.BigEndian.Uint16(b[6:]) != records {
		return 0, fmt.Errorf("a wrong answer: %x", b)
	}
	return binary.BigEndian.Uint16(b), nil
}

// saturate asks as fast as answers come, and returns how many came.
func saturate(addr string, length time.Duration) (int64, error) {
	ctx, cancel := context.WithTimeout(context.Background(), length)
	defer cancel()
	var total atomic.Int64
	errs := make(chan error, sockets)
	for range sockets {
		go func() { errs <- askAndAsk(ctx, addr, &total) }()
	}
	var all error
	for range sockets {
		all = errors.Join(all, <-errs)
	}
	return total.Load(), all
}

func askAndAsk(ctx context.Context, addr string, total *atomic.Int64) error {
	pc, c, err := dial(addr)
	if err != nil {
		return err
	}
	defer c.Close()
	q, err := question()
	if err != nil {
		return err
	}
	out, in := batch(window, len(q)), batch(window, answer)
	for i := range out {
		copy(out[i].Buffers[0], q)
	}
	next := window
	for ctx.Err() == nil {
		for sent := 0; sent < next; {
			n, err := pc.WriteBatch(out[sent:next], 0)
			if err != nil {
				return err
			}
			sent += n
		}
		c.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		n, err := pc.ReadBatch(in, 0)
		if errors.Is(err, os.ErrDeadlineExceeded) { // some were lost: begin again
			next = window
			continue
		}
		if err != nil {
			return err
		}
		for i := range n {
			if _, err := check(&in[i]); err != nil {
				return err
			}
		}
		total.Add(int64(n))
		next = n
	}
	return nil
}

// pace asks at a constant rate, and returns how long after it was due each question
// was answered.
func pace(addr string, perSec float64, length time.Duration) ([]time.Duration, error) {
	pc, c, err := dial(addr)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	q, err := question()
	if err != nil {
		return nil, err
	}
	var mu sync.Mutex // of due
	var due [1 << 16]time.Time
	var late []time.Duration
	read := make(chan error, 1)
	go func() {
		in := batch(window, answer)
		for {
			n, err := pc.ReadBatch(in, 0)
			now := time.Now()
			if err != nil {
				if errors.Is(err, os.ErrDeadlineExceeded) {
					err = nil
				}
				read <- err
				return
			}
			mu.Lock()
			for i := range n {
				id, err := check(&in[i])
				if err != nil {
					mu.Unlock()
					read <- err
					return
				}
				late = append(late, now.Sub(due[id]))
			}
			mu.Unlock()
		}
	}()
	out := batch(window, len(q))
	for i := range out {
		copy(out[i].Buffers[0], q)
	}
	tick := unix.NsecToTimespec(50_000)
	begin, sent := time.Now(), 0
	for time.Since(begin) < length {
		n := min(int(time.Since(begin).Seconds()*perSec)-sent, window)
		if n <= 0 {
			_ = unix.Nanosleep(&tick, nil) // time.Sleep would round up to a millisecond
			continue
		}
		mu.Lock()
		for i := range n {
			id := uint16(sent + i)
			due[id] = begin.Add(time.Duration(float64(sent+i) / perSec * float64(time.Second)))
			binary.BigEndian.PutUint16(out[i].Buffers[0], id)
		}
		mu.Unlock()
		for done := 0; done < n; {
			k, err := pc.WriteBatch(out[done:n], 0)
			if err != nil {
				return nil, err
			}
			done += k
		}
		sent += n
	}
	c.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
	if err := <-read; err != nil {
		return nil, err
	}
	for len(late) < sent {
		late = append(late, lost)
	}
	return late, nil
}

// answering waits until somebody answers at a port, for ten seconds.
func answering(port int) error {
	q, err := question()
	if err != nil {
		return err
	}
	b := make([]byte, answer)
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); {
		c, err := net.Dial("udp4", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			return err
		}
		c.SetDeadline(time.Now().Add(100 * time.Millisecond))
		_, err = c.Write(q)
		if err == nil {
			_, err = c.Read(b)
		}
		c.Close()
		if err == nil {
			return nil
		}
		time.Sleep(50 * time.Millisecond)
	}
	return fmt.Errorf("nobody answers at port %d", port)
}
