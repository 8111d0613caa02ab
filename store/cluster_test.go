package store

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	mrand "math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/types"

	"github.com/weftmesh/weft"
)

// link is the way to a member: a listener that passes bytes on until it is cut.
type link struct {
	listener net.Listener
	target   string
	work     sync.WaitGroup

	mu    sync.Mutex
	isCut bool
	open  map[net.Conn]bool
}

func newLink(t *testing.T, target string) *link {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := &link{listener: listener, target: target, open: make(map[net.Conn]bool)}
	l.work.Go(l.accept)
	t.Cleanup(func() {
		_ = l.listener.Close()
		l.cut()
		l.work.Wait()
	})
	return l
}

func (l *link) addr() string { return l.listener.Addr().String() }

func (l *link) accept() {
	for {
		near, err := l.listener.Accept()
		if err != nil {
			return
		}
		far, err := net.Dial("tcp", l.target)
		if err != nil {
			_ = near.Close()
			continue
		}
		if !l.keep(near, far) {
			continue
		}
		pass := func(to, from net.Conn) {
			_, _ = io.Copy(to, from)
			l.drop(near, far)
		}
		l.work.Go(func() { pass(near, far) })
		l.work.Go(func() { pass(far, near) })
	}
}

func (l *link) keep(conns ...net.Conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range conns {
		if l.isCut {
			_ = c.Close()
		} else {
			l.open[c] = true
		}
	}
	return !l.isCut
}

func (l *link) drop(conns ...net.Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range conns {
		_ = c.Close()
		delete(l.open, c)
	}
}

func (l *link) cut() {
	l.mu.Lock()
	l.isCut = true
	for c := range l.open {
		_ = c.Close()
	}
	l.mu.Unlock()
}

func (l *link) mend() {
	l.mu.Lock()
	l.isCut = false
	l.mu.Unlock()
}

// freeAddr is on a loopback address that nobody else uses, so that the port is
// still free when it is bound again.
func freeAddr(t *testing.T) string {
	t.Helper()
	ip := fmt.Sprintf("127.%d.%d.%d", 1+mrand.IntN(250), 1+mrand.IntN(250), 2+mrand.IntN(250))
	l, err := net.Listen("tcp", net.JoinHostPort(ip, "0"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// authority signs the members' certificates.
type authority struct {
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	a := &authority{dir: t.TempDir(), key: key, cert: &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}}
	der, err := x509.CreateCertificate(rand.Reader, a.cert, a.cert, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	writePEM(t, a.path("ca"), "CERTIFICATE", der)
	return a
}

func (a *authority) path(name string) string { return filepath.Join(a.dir, name+".pem") }

func (a *authority) sign(t *testing.T, name string) (certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}, a.cert, &key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	writePEM(t, a.path(name), "CERTIFICATE", der)
	writePEM(t, a.path(name+"-key"), "EC PRIVATE KEY", keyDER)
	return a.path(name), a.path(name + "-key")
}

func writePEM(t *testing.T, path, kind string, der []byte) {
	t.Helper()
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}

// server is one that has a member of a cluster.
type server struct {
	*Store
	name, dir string
	link      *link
	config    Config
}

// world is where the servers of a test live.
type world struct {
	t  *testing.T
	ca *authority
}

func newWorld(t *testing.T) *world { return &world{t, newAuthority(t)} }

// server is not started yet.
func (w *world) server(name string) *server {
	w.t.Helper()
	dir := w.t.TempDir()
	listen := freeAddr(w.t)
	l := newLink(w.t, listen)
	cert, key := w.ca.sign(w.t, name)
	return &server{name: name, dir: dir, link: l, config: Config{Dir: dir, Cluster: &Cluster{
		Name: name, Listen: listen, Advertise: l.addr(), CertFile: cert, KeyFile: key, CAFile: w.ca.path("ca"),
	}}}
}

func (s *server) start(t *testing.T, join []Member) {
	t.Helper()
	c := s.config
	cluster := *c.Cluster
	cluster.Join = join
	c.Cluster = &cluster
	store, err := Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	s.Store = store
	t.Cleanup(func() {
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
}

// join starts s as a further member of the cluster that at is in, and waits for
// its vote.
func (s *server) join(t *testing.T, at *server) {
	t.Helper()
	var list []Member
	eventually(t, s.name+" is added", func() (ok bool) { // until the one before it is awake, it may take too long
		var err error
		list, err = at.AddMember(t.Context(), Member{Name: s.name, Peer: s.link.addr()})
		if err != nil && weft.KindOf(err) != weft.Unavailable {
			t.Fatal(err)
		}
		return err == nil
	})
	s.start(t, list)
	eventually(t, s.name+" votes", func() bool {
		for _, m := range at.Members() {
			if m.ID == s.ID() {
				return !m.Learner
			}
		}
		return false
	})
}

// cluster starts so many servers.
func (w *world) cluster(n int) []*server {
	w.t.Helper()
	var all []*server
	for i := range n {
		s := w.server("s" + strconv.Itoa(i))
		if i == 0 {
			s.start(w.t, nil)
		} else {
			s.join(w.t, all[0])
		}
		all = append(all, s)
	}
	return all
}

// isolate cuts a server off all others, in both directions.
func isolate(s *server, others ...*server) {
	s.link.cut()
	for _, o := range others {
		s.Store.server.CutPeer(o.Store.server.MemberID())
		o.Store.server.CutPeer(s.Store.server.MemberID())
	}
}

func rejoin(s *server, others ...*server) {
	s.link.mend()
	for _, o := range others {
		s.Store.server.MendPeer(types.ID(o.ID()))
		o.Store.server.MendPeer(types.ID(s.ID()))
	}
}

func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !is() {
		if time.Now().After(deadline) {
			t.Fatalf("it does not come to pass that %s", what)
		}
		time.Sleep(5 * time.Millisecond) // polls
	}
}

// leader is the server that leads, and the others.
func leader(t *testing.T, all []*server) (first *server, others []*server) {
	t.Helper()
	eventually(t, "somebody leads", func() bool {
		first, others = nil, nil
		for _, s := range all {
			if s.IsLeader() {
				first = s
			} else {
				others = append(others, s)
			}
		}
		return first != nil && len(others) == len(all)-1
	})
	return first, others
}

// writer commits one key after the other, by turns at its servers, and remembers
// what was acknowledged.
type writer struct {
	cancel context.CancelFunc
	first  chan struct{} // closed by the first acknowledgement
	done   chan struct{}
	// of its goroutine, until done
	acked   []string
	failed  int
	longest time.Duration // without an acknowledgement
}

func startWriter(t *testing.T, prefix string, at ...*Store) *writer {
	ctx, cancel := context.WithCancel(context.Background())
	w := &writer{cancel: cancel, first: make(chan struct{}), done: make(chan struct{})}
	go func() {
		defer close(w.done)
		last := time.Now()
		for i := 0; ctx.Err() == nil; i++ {
			key := prefix + strconv.Itoa(i)
			_, err := at[i%len(at)].Commit(ctx, Txn{Put: []KV{{Key: key, Value: []byte("v")}}})
			if ctx.Err() != nil {
				break
			}
			if err != nil {
				if weft.KindOf(err) != weft.Unavailable {
					t.Errorf("commit: %v", err)
				}
				w.failed++
				continue
			}
			if w.acked = append(w.acked, key); len(w.acked) == 1 {
				close(w.first)
			}
			w.longest = max(w.longest, time.Since(last))
			last = time.Now()
		}
		w.longest = max(w.longest, time.Since(last))
	}()
	t.Cleanup(w.stop)
	select {
	case <-w.first:
	case <-time.After(20 * time.Second):
		t.Fatal("nothing is acknowledged")
	}
	return w
}

func (w *writer) stop() {
	w.cancel()
	<-w.done
}

// lostNothing checks that all that was acknowledged is there.
func (w *writer) lostNothing(t *testing.T, s *Store, prefix string) {
	t.Helper()
	w.stop()
	kvs, _, err := s.List(t.Context(), prefix)
	if err != nil {
		t.Fatal(err)
	}
	have := make(map[string]bool, len(kvs))
	for _, kv := range kvs {
		have[kv.Key] = true
	}
	for _, key := range w.acked {
		if !have[key] {
			t.Errorf("%s was acknowledged, and is lost", key)
		}
	}
}

func TestOneGrowsToThreeWhileWriting(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	first := w.server("a")
	alone := openTest(t, first.dir) // without any cluster at first
	put(t, alone, "k/before", "x")
	if err := alone.Close(); err != nil {
		t.Fatal(err)
	}
	first.start(t, nil)
	writer := startWriter(t, "w/", first.Store)
	second, third := w.server("b"), w.server("c")
	second.join(t, first)
	third.join(t, first)
	third.wait(t, first)
	writer.lostNothing(t, third.Store, "w/")
	if writer.longest > 3*time.Second {
		t.Errorf("writes stood still for %v", writer.longest)
	}
	for _, s := range []*server{first, second, third} {
		if _, ok, err := s.Get(t.Context(), "k/before"); !ok || err != nil {
			t.Errorf("%s: what was written alone: %v, %v", s.name, ok, err)
		}
		var names []string
		for _, m := range s.Members() {
			names = append(names, m.Name)
			if m.Leader != (m.ID == s.Leader()) || m.Learner {
				t.Errorf("%s: %+v while %x leads", s.name, m, s.Leader())
			}
		}
		if fmt.Sprint(names) != "[a b c]" {
			t.Errorf("%s knows %v", s.name, names)
		}
	}
}

// wait until s knows what at knows.
func (s *server) wait(t *testing.T, at *server) {
	t.Helper()
	rev := at.Store.server.KV().Rev()
	have, err := s.Barrier(t.Context())
	if err != nil || have < rev {
		t.Fatalf("%s is at revision %d, %v; want %d", s.name, have, err, rev)
	}
}

func TestMinorityStopsAndMajorityGoesOn(t *testing.T) {
	t.Parallel()
	all := newWorld(t).cluster(3)
	first, others := leader(t, all)
	before := put(t, first.Store, "k/before", "x")
	for _, s := range all {
		s.wait(t, first)
	}

	changed := first.LeaderChanged()
	pending := startWriter(t, "cut/", first.Store)
	majority := startWriter(t, "on/", others[0].Store, others[1].Store)
	isolate(first, others...)
	start := time.Now()
	select {
	case <-changed:
	case <-time.After(3 * time.Second):
		t.Fatal("a leader that is cut off still believes to lead")
	}
	eventually(t, "the other two have a leader", func() bool { return others[0].IsLeader() || others[1].IsLeader() })
	if took := time.Since(start); took > 3*time.Second {
		t.Errorf("the new leader comes after %v", took)
	}

	start = time.Now()
	_, err := first.Commit(t.Context(), Txn{Put: []KV{{Key: "k/lost"}}})
	wantKind(t, err, weft.Unavailable, "no leader")
	if took := time.Since(start); took > 2*callTimeout {
		t.Errorf("a commit without a quorum takes %v", took)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	_, err = first.Barrier(ctx)
	wantKind(t, err, weft.Unavailable, "no leader")
	_, _, err = first.Get(ctx, "k/before")
	wantKind(t, err, weft.Unavailable, "no leader")
	if kvs, err := first.ListAt(t.Context(), "k/", before); err != nil || len(kvs) != 1 {
		t.Errorf("what is past is still known: %v, %v", kvs, err)
	}
	pending.stop()
	majority.stop()
	if majority.longest > 3*time.Second {
		t.Errorf("the majority's writes stood still for %v", majority.longest)
	}

	rejoin(first, others...)
	eventually(t, "the member that was cut off follows again", func() bool {
		_, err := first.Barrier(t.Context())
		return err == nil
	})
	for _, s := range all {
		majority.lostNothing(t, s.Store, "on/")
		pending.lostNothing(t, s.Store, "cut/")
		if _, ok, err := s.Get(t.Context(), "k/lost"); ok || err != nil {
			t.Errorf("%s has what was refused: %v", s.name, err)
		}
	}
}

func TestLossOfOneMember(t *testing.T) {
	t.Parallel()
	all := newWorld(t).cluster(3)
	first, others := leader(t, all)
	w := startWriter(t, "w/", others[0].Store)
	watch := others[1].Watch(t.Context(), "w/", 1)
	first.link.cut()
	if err := first.Close(); err != nil { // hands over, and ends
		t.Fatal(err)
	}
	eventually(t, "another one leads", func() bool { return others[0].IsLeader() || others[1].IsLeader() })
	rev := put(t, others[0].Store, "w/after", "x")
	w.lostNothing(t, others[1].Store, "w/")
	if w.longest > 3*time.Second {
		t.Errorf("writes stood still for %v", w.longest)
	}
	if events := collect(t, watch, rev); len(events) < len(w.acked)+1 {
		t.Errorf("the other one's watch sees %d changes; %d were acknowledged", len(events), len(w.acked)+1)
	}

	// It comes back by itself, without a list of members.
	first.link.mend()
	first.start(t, nil)
	w.lostNothing(t, first.Store, "w/")

	// Without two of three there is no quorum, and the error says so.
	for _, s := range others {
		s.link.cut()
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "the last member knows of no leader", func() bool { return first.Leader() == 0 })
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	_, err := first.Commit(ctx, Txn{Put: []KV{{Key: "k"}}})
	wantKind(t, err, weft.Unavailable, "no leader: 1 of 3 members can be reached, and 2 are needed")
}

func TestMoveLeaderWhileWriting(t *testing.T) {
	t.Parallel()
	all := newWorld(t).cluster(3)
	first, _ := leader(t, all)
	w := startWriter(t, "w/", first.Store)
	changed := first.LeaderChanged()
	if err := first.MoveLeader(t.Context()); err != nil {
		t.Fatal(err)
	}
	<-changed
	if first.IsLeader() {
		t.Error("it still leads")
	}
	if err := first.MoveLeader(t.Context()); err != nil {
		t.Errorf("who does not lead has nothing to hand over: %v", err)
	}
	put(t, first.Store, "after", "x")
	w.lostNothing(t, first.Store, "w/")
	if w.failed > 0 || w.longest > time.Second {
		t.Errorf("%d commits failed, and writes stood still for %v", w.failed, w.longest)
	}
}

func TestRemoveMember(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	all := w.cluster(3)
	first, others := leader(t, all)
	dead, alive := others[0], others[1]
	deadID := dead.ID()
	dead.link.cut()
	if err := dead.Close(); err != nil {
		t.Fatal(err)
	}
	err := first.RemoveMember(t.Context(), alive.ID())
	wantKind(t, err, weft.Unavailable, "member "+alive.name, "of the 2 voting members that would be left 1 can be reached, and 2 are needed")
	wantKind(t, first.RemoveMember(t.Context(), 42), weft.NotFound)

	// The dead one may go, and another come in its place.
	if err := alive.RemoveMember(t.Context(), deadID); err != nil {
		t.Fatal(err)
	}
	wantKind(t, first.RemoveMember(t.Context(), deadID), weft.NotFound)
	fourth := w.server("new")
	fourth.join(t, first)
	put(t, fourth.Store, "k", "v")

	// The leader may go too, and its store says why it has ended.
	gone := first.Done()
	ch := first.Watch(t.Context(), "", 1)
	if err := first.RemoveMember(t.Context(), first.ID()); err != nil {
		t.Fatal(err)
	}
	select {
	case <-gone:
	case <-time.After(10 * time.Second):
		t.Fatal("the removed member does not notice")
	}
	if err := first.Err(); !errors.Is(err, ErrRemoved) {
		t.Errorf("it has ended by %v", err)
	}
	for range ch { // ends
	}
	_, err = first.Commit(t.Context(), Txn{Put: []KV{{Key: "late"}}})
	wantRemoved(t, err, first.dir)
	_, err = first.Barrier(t.Context())
	wantRemoved(t, err, first.dir)
	put(t, alive.Store, "k2", "v")
	if got := len(alive.Members()); got != 2 {
		t.Errorf("%d members are left; want 2", got)
	}

	// Who was away when it was removed learns it at its start.
	dead.link.mend()
	c := dead.config
	_, err = Open(t.Context(), c)
	wantRemoved(t, err, dead.dir)
	// So does who was there.
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	_, err = Open(t.Context(), first.config)
	wantRemoved(t, err, first.dir)
}

func wantRemoved(t *testing.T, err error, dir string) {
	t.Helper()
	wantKind(t, err, weft.Unavailable, "removed from its cluster", "empty "+dir)
	if !errors.Is(err, ErrRemoved) {
		t.Errorf("%v is not ErrRemoved", err)
	}
}

func TestAddMemberTwice(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	first, second := w.server("a"), w.server("b")
	first.start(t, nil)
	add := Member{Name: "b", Peer: second.link.addr()}
	if _, err := first.AddMember(t.Context(), add); err != nil {
		t.Fatal(err)
	}
	list, err := first.AddMember(t.Context(), add) // the answer was lost
	if err != nil || len(list) != 2 {
		t.Fatal(list, err)
	}
	put(t, first.Store, "k", "v") // who has not started yet holds nobody up
	second.start(t, list)
	second.wait(t, first)
	_, err = first.AddMember(t.Context(), add)
	wantKind(t, err, weft.Conflict, "is there already")
	_, err = first.AddMember(t.Context(), Member{Name: "c"})
	wantKind(t, err, weft.Invalid)
	eventually(t, "b votes", func() bool { return !second.Members()[1].Learner })
	wantKind(t, first.PromoteMember(t.Context(), second.ID()), weft.Conflict, "votes already")

	alone := openTest(t, t.TempDir())
	_, err = alone.AddMember(t.Context(), add)
	wantKind(t, err, weft.Invalid, "alone")
	wantKind(t, alone.RemoveMember(t.Context(), alone.ID()), weft.Conflict, "last one")
}

func TestClusterSettings(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	s := w.server("a")
	good := *s.config.Cluster
	cases := []struct {
		name  string
		set   func(*Cluster)
		texts []string
	}{
		{"no name", func(c *Cluster) { c.Name = "" }, []string{"name"}},
		{"odd name", func(c *Cluster) { c.Name = "a=b" }, []string{`"a=b"`}},
		{"no address", func(c *Cluster) { c.Listen, c.Advertise = "", "" }, []string{"host:port"}},
		{"advertised address without port", func(c *Cluster) { c.Advertise = "host" }, []string{`"host"`}},
		{"advertised address that nobody can reach", func(c *Cluster) { c.Advertise = ":2380" }, []string{`":2380"`}},
		{"no certificate", func(c *Cluster) { c.CertFile = "" }, []string{"certificate"}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			cluster := good
			c.set(&cluster)
			_, err := Open(t.Context(), Config{Dir: t.TempDir(), Cluster: &cluster})
			wantKind(t, err, weft.Invalid, c.texts...)
		})
	}

	s.start(t, nil)
	put(t, s.Store, "k", "v")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	other := good
	other.Name = "b"
	_, err := Open(t.Context(), Config{Dir: s.dir, Cluster: &other})
	wantKind(t, err, weft.Conflict, "member a, not to b")
	_, err = Open(t.Context(), Config{Dir: s.dir})
	wantKind(t, err, weft.Invalid, "cluster's settings")
	// The name is kept, and the address may change.
	s.config.Cluster.Name = ""
	s.link = newLink(t, s.config.Cluster.Listen)
	s.config.Cluster.Advertise = s.link.addr()
	s.start(t, nil)
	if m := s.Members(); len(m) != 1 || m[0].Name != "a" || m[0].Peer != s.link.addr() {
		t.Errorf("after the move it is %+v", m)
	}
}

// TestStrangersAreNotLetIn: who has a certificate by another authority cannot join.
func TestStrangersAreNotLetIn(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	first := w.server("a")
	first.start(t, nil)
	stranger := newWorld(t).server("x")
	list, err := first.AddMember(t.Context(), Member{Name: "x", Peer: stranger.link.addr()})
	if err != nil {
		t.Fatal(err)
	}
	c := stranger.config
	c.Cluster.Join = list
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if s, err := Open(ctx, c); err == nil {
		t.Error("it joined", s.Close())
	}
	put(t, first.Store, "k", "v")
}
