// Package cluster makes servers one: it lets a new server in, gives their stores
// certificates to know each other by, and carries writes to the server that leads.
//
// A server that may have others has an address where their stores reach its own
// (Config.Peer). What the servers share is in the directory "cluster" of the data
// directory and beside it:
//
//	cluster/ca.pem, ca.key      the authority that the servers' stores trust
//	cluster/peer.pem, peer.key  this server's certificate, made anew at each start
//	cluster/members.json        how this server joined; read until its store is made
//	server-token                lets a server join and forward: a secret
//
// The server token is not the join token of proxies: who has it becomes a server, is
// given the keys of the certificate authority, and may write anything.
//
// A server's life: Prepare (which joins, when the data directory is new and Join is
// set), open the store with Store, Attach it, open the rest, Register the service on
// the control port, Run.
package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"

	"google.golang.org/grpc"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/ca"
	"github.com/weftmesh/weft/store"
)

// Config of a Cluster.
type Config struct {
	Dir       string // data directory of the server
	Name      string // of the server, unique in the cluster
	Peer      string // host:port where the others' stores reach this one; empty: the one of the last start, or alone
	Join      string // host:port of the control port of a server to join; used while the data directory is new
	Token     string // server token; needed to join
	Addresses        // of this server, for the others
	Logger    *slog.Logger
}

// Addresses of a server, as others reach it.
type Addresses struct {
	Control string `json:"control"`
	API     string `json:"api"`
	Consul  string `json:"consul"`
}

// Cluster is this server's part in it. Its methods may be called from any goroutine.
type Cluster struct {
	// constant after Prepare
	dir    string
	config Config
	log    *slog.Logger

	// constant after Attach
	store *store.Store
	token atomic.Pointer[ca.JoinToken] // set by OpenToken
	raw   string                       // the same, to be shown to others

	execute func(ctx context.Context, command []byte) []byte // set by Register
	holder  Holder                                           // set by Tell

	mu    sync.Mutex
	conns map[string]*grpc.ClientConn // by control address
	book  map[uint64]Server           // by id
}

// Server is one server of the cluster.
type Server struct {
	ID      uint64 `json:"id"`
	Name    string `json:"name"`
	Peer    string `json:"peer,omitempty"`
	Learner bool   `json:"learner,omitempty"` // it has joined, and has not everything yet
	Leader  bool   `json:"leader,omitempty"`
	Self    bool   `json:"self,omitempty"`
	Addresses
}

// Prepare reads what the data directory says of the cluster, and joins when that is
// asked for and was not done. It returns nil when this server is alone, and is to
// stay so: neither Peer nor Join is set, and it had no peers before.
func Prepare(ctx context.Context, c Config) (*Cluster, error) {
	cl := &Cluster{dir: filepath.Join(c.Dir, "cluster"), config: c, log: c.Logger, conns: make(map[string]*grpc.ClientConn), book: make(map[uint64]Server)}
	if cl.log == nil {
		cl.log = slog.New(slog.DiscardHandler)
	}
	last, err := cl.lastPeer()
	if err != nil {
		return nil, err
	}
	if cl.config.Peer == "" {
		cl.config.Peer = last
	}
	if cl.config.Peer == "" {
		if c.Join != "" {
			return nil, weft.Errorf(weft.Invalid, "join", "the cluster at "+c.Join,
				"where the other servers reach this one is not known; set --peer HOST:PORT")
		}
		return nil, nil
	}
	host, _, err := net.SplitHostPort(cl.config.Peer)
	if err != nil || host == "" || net.ParseIP(host).IsUnspecified() {
		return nil, weft.Errorf(weft.Invalid, "start", "server: --peer "+cl.config.Peer, "want HOST:PORT, by which the other servers reach this one")
	}
	if cl.config.Control, err = reachable(c.Control, cl.config.Peer); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(cl.dir, 0o700); err != nil {
		return nil, fileError("make directory", cl.dir, err)
	}
	if err := cl.joinOnce(ctx); err != nil {
		return nil, err
	}
	if err := cl.certify(); err != nil {
		return nil, err
	}
	return cl, os.WriteFile(cl.file("peer"), []byte(cl.config.Peer+"\n"), 0o600)
}

func (c *Cluster) file(name string) string { return filepath.Join(c.dir, name) }

// lastPeer is the address that the server had when it was last started.
func (c *Cluster) lastPeer() (string, error) {
	b, err := os.ReadFile(c.file("peer"))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return strings.TrimSpace(string(b)), err
}

// Store is how the store is to be opened.
func (c *Cluster) Store() (*store.Cluster, error) {
	members, err := c.joinedMembers()
	if err != nil {
		return nil, err
	}
	return &store.Cluster{
		Name: c.config.Name, Listen: c.config.Peer, Advertise: c.config.Peer,
		CertFile: c.file("peer.pem"), KeyFile: c.file("peer.key"), CAFile: c.file("ca.pem"),
		Join: members,
	}, nil
}

// joinedMembers are the members that this server joined; nil when it began alone.
func (c *Cluster) joinedMembers() (members []store.Member, err error) {
	b, err := os.ReadFile(c.file("members.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fileError("read", c.file("members.json"), err)
	}
	if err := json.Unmarshal(b, &members); err != nil {
		return nil, fileError("read", c.file("members.json"), err)
	}
	return members, nil
}

// Host is the machine of this server as the others reach it, a name or an IP address.
func (c *Cluster) Host() string {
	host, _, _ := net.SplitHostPort(c.config.Peer) // Prepare has looked
	return host
}

// Attach tells the cluster the open store.
func (c *Cluster) Attach(s *store.Store) { c.store = s }

// TokenFile is where a server with this data directory keeps its server token.
func TokenFile(dataDir string) string { return filepath.Join(dataDir, "server-token") }

// OpenToken reads the server token, or makes it for the mesh of these roots.
func (c *Cluster) OpenToken(authority *ca.Authority) error {
	path := TokenFile(c.config.Dir)
	b, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		token, err := ca.NewJoinToken(authority.Roots())
		if err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(token+"\n"), 0o600); err != nil {
			return fileError("write", path, err)
		}
		b = []byte(token)
	case err != nil:
		return fileError("read", path, err)
	}
	token, err := ca.ParseJoinToken(string(b))
	if err != nil {
		return fileError("read", path, err)
	}
	c.raw = strings.TrimSpace(string(b))
	c.token.Store(&token)
	return nil
}

// Leave forgets how this server joined, after it was taken out: with its state
// emptied it may join again.
func (c *Cluster) Leave() error {
	err := os.Remove(c.file("members.json"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fileError("remove", c.file("members.json"), err)
	}
	return nil
}

// Close ends the connections to the other servers.
func (c *Cluster) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var errs []error
	for _, conn := range c.conns {
		errs = append(errs, conn.Close())
	}
	clear(c.conns)
	return errors.Join(errs...)
}

func fileError(op, path string, err error) error {
	return &weft.Error{Kind: weft.Internal, Op: op, Thing: path, Err: err}
}
