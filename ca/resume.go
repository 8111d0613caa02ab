package ca

import (
	"bytes"
	"container/list"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"slices"
	"sync"

	"github.com/weftmesh/weft"
)

// epoch names what a session was begun under: our own identity and our roots. A
// session of another epoch is not resumed, so that its peer is asked for a
// certificate again. Our own certificate is no part of it: a rotation under the
// same roots ends no session.
type epoch [sha256.Size]byte

func epochOf(id weft.Identity, roots []*x509.Certificate) epoch {
	sums := make([][]byte, len(roots))
	for i, root := range roots {
		sum := sha256.Sum256(root.Raw)
		sums[i] = sum[:]
	}
	slices.SortFunc(sums, bytes.Compare) // the order in which roots are told means nothing
	return sha256.Sum256(append([]byte(id), bytes.Join(sums, nil)...))
}

// resumable makes a server's configuration put the epoch into its tickets, and
// do a full handshake for tickets of another one. Without it a client whose
// ticket holds a certificate of a root that went would be refused, again and
// again, though it has a good certificate by now. crypto/tls itself rejects
// tickets of expired certificates, and changes the tickets' keys each day.
func (c *Credentials) resumable(config *tls.Config) *tls.Config {
	config.WrapSession = func(cs tls.ConnectionState, s *tls.SessionState) ([]byte, error) {
		h, err := c.held()
		if err != nil {
			return nil, err
		}
		// Once more, so that the certificate is good in the epoch that is written:
		// the roots may have changed since VerifyConnection.
		if len(cs.PeerCertificates) > 0 {
			if err := h.verify(cs.PeerCertificates, h.member); err != nil {
				return nil, err
			}
		}
		s.Extra = append(s.Extra, h.epoch[:])
		return config.EncryptTicket(cs, s)
	}
	config.UnwrapSession = func(ticket []byte, cs tls.ConnectionState) (*tls.SessionState, error) {
		h, err := c.held()
		if err != nil {
			return nil, err
		}
		s, err := config.DecryptTicket(ticket, cs)
		if s == nil || err != nil || len(s.Extra) == 0 || !bytes.Equal(s.Extra[len(s.Extra)-1], h.epoch[:]) {
			return nil, err
		}
		s.Extra = s.Extra[:len(s.Extra)-1]
		return s, nil
	}
	return config
}

// maxSessions bounds the sessions that a process keeps as a client. One takes
// about 1 KiB, and is for one address: each instance has ticket keys of its own.
const maxSessions = 1024

// sessions are those that a client can resume. The zero value is empty.
type sessions struct {
	mu     sync.Mutex
	epoch  epoch
	byPeer map[sessionKey]*list.Element
	recent list.List // of *session; the front was used last
}

type sessionKey struct {
	peer   weft.Identity
	server string // address, or name, as crypto/tls says it
}

type session struct {
	key   sessionKey
	state *tls.ClientSessionState
}

// enter drops everything when the epoch is another. It is called under mu.
func (s *sessions) enter(now epoch) {
	if s.byPeer == nil || s.epoch != now {
		s.epoch, s.byPeer = now, make(map[sessionKey]*list.Element)
		s.recent.Init()
	}
}

func (s *sessions) get(now epoch, key sessionKey) *tls.ClientSessionState {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.enter(now)
	e := s.byPeer[key]
	if e == nil {
		return nil
	}
	s.recent.MoveToFront(e)
	return e.Value.(*session).state
}

// put keeps a session; nil removes it.
func (s *sessions) put(now epoch, key sessionKey, state *tls.ClientSessionState) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.enter(now)
	e := s.byPeer[key]
	switch {
	case state == nil && e != nil:
		s.remove(e)
	case state == nil:
	case e != nil:
		e.Value.(*session).state = state
		s.recent.MoveToFront(e)
	default:
		if len(s.byPeer) >= maxSessions {
			s.remove(s.recent.Back())
		}
		s.byPeer[key] = s.recent.PushFront(&session{key, state})
	}
}

// forget removes all sessions with a peer.
func (s *sessions) forget(peer weft.Identity) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for key, e := range s.byPeer {
		if key.peer == peer {
			s.remove(e)
		}
	}
}

func (s *sessions) remove(e *list.Element) {
	delete(s.byPeer, e.Value.(*session).key)
	s.recent.Remove(e)
}

// peerSessions is the tls.ClientSessionCache of the configurations for one peer.
type peerSessions struct {
	c    *Credentials
	peer weft.Identity
}

func (p peerSessions) Get(server string) (*tls.ClientSessionState, bool) {
	h, err := p.c.held()
	if err != nil {
		return nil, false
	}
	state := p.c.sessions.get(h.epoch, sessionKey{p.peer, server})
	return state, state != nil
}

func (p peerSessions) Put(server string, state *tls.ClientSessionState) {
	if h, err := p.c.held(); err == nil {
		p.c.sessions.put(h.epoch, sessionKey{p.peer, server}, state)
	}
}
