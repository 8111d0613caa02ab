package ca

import (
	"crypto/sha256"
	"crypto/x509"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/weftmesh/weft"
)

// maxVerdicts bounds what is remembered of peers' certificates, at about 150
// bytes each.
const maxVerdicts = 2048

// verdicts remember which chains lead to the roots, because every connection of
// a peer shows the same one. Without them a pair of handshakes takes 820 µs instead
// of 675, and 715 instead of 460 when it resumes. Refusals are not remembered. They live as long as the set of roots that they are true for.
type verdicts struct {
	mu    sync.Mutex
	known map[[sha256.Size]byte]verdict
}

// verdict is true from its first to its last moment: then all of the chain is
// valid.
type verdict struct {
	id          spiffeid.ID
	first, last time.Time
}

// verify tells whether a peer's chain leads to one of the roots now, and the peer
// is one whom we want.
func (h *held) verify(chain []*x509.Certificate, want spiffeid.Matcher) error {
	sum, now := sumOf(chain), time.Now()
	v, ok := h.verdicts.find(sum, now)
	if !ok {
		id, chains, err := x509svid.Verify(chain, h.bundle, x509svid.WithTime(now))
		if err != nil {
			return &weft.Error{Kind: weft.Denied, Op: "verify peer", Thing: id.String(), Err: err}
		}
		v = verdict{id: id, first: chains[0][0].NotBefore, last: chains[0][0].NotAfter}
		for _, cert := range chains[0][1:] {
			if cert.NotBefore.After(v.first) {
				v.first = cert.NotBefore
			}
			if cert.NotAfter.Before(v.last) {
				v.last = cert.NotAfter
			}
		}
		h.verdicts.remember(sum, v)
	}
	if err := want(v.id); err != nil {
		return &weft.Error{Kind: weft.Denied, Op: "verify peer", Thing: v.id.String(), Err: err}
	}
	return nil
}

// sumOf is over all that was sent. Certificates are DER and tell their own
// length, so that two chains cannot give the same bytes.
func sumOf(chain []*x509.Certificate) (sum [sha256.Size]byte) {
	if len(chain) == 1 {
		return sha256.Sum256(chain[0].Raw)
	}
	hash := sha256.New()
	for _, cert := range chain {
		hash.Write(cert.Raw)
	}
	hash.Sum(sum[:0])
	return sum
}

func (v *verdicts) find(sum [sha256.Size]byte, now time.Time) (verdict, bool) {
	v.mu.Lock()
	found, ok := v.known[sum]
	v.mu.Unlock()
	return found, ok && !now.Before(found.first) && !now.After(found.last)
}

func (v *verdicts) remember(sum [sha256.Size]byte, d verdict) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.known == nil || len(v.known) >= maxVerdicts {
		v.known = make(map[[sha256.Size]byte]verdict)
	}
	v.known[sum] = d
}
