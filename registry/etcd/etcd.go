// Package etcd brings what is registered in a running etcd into the catalogue, and
// follows it: for services that register there, until they register here.
//
//	c, err := etcd.Parse("http://10.0.0.1:2379,10.0.0.2:2379/services")
//	s, err := etcd.New(registry, c)
//	err = s.Run(ctx)
//
// Every key under the prefix is an instance. Its value is what gRPC's naming for
// etcd writes, or just an address:
//
//	services/order-service/10.0.0.7:3000   {"Op":0,"Addr":"10.0.0.7:3000","Metadata":{"version":"v1"}}
//	services/order-service/7587832         10.0.0.7:3000
//
// The service is what stands between the prefix and the last slash, further slashes
// written as "-"; without anything there it is the last part of the prefix. Metadata
// are labels, as far as they are texts, numbers or truth values; "zone" is the zone.
//
// The instances have Dialect "etcd" and are on a node of their own, which stands for
// the etcd. One lives as long as its key: the lease that the service keeps there ends
// it here. While etcd is away, or has no leader, what it said last stands, and Status
// says since when; when it is back the difference is written. A value that cannot be
// read leaves what its key said.
//
// Of several servers that follow one etcd the one that writes the registry writes.
package etcd

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/registry"
	"github.com/weftmesh/weft/registry/mirror"
)

// Dialect of the instances that come from etcd.
const Dialect = "etcd"

const (
	patience = 3 * time.Second // for one question
	// lookEvery is how soon it is noticed that etcd went silent, and what somebody
	// else took out of the registry; also that this server has to write now.
	lookEvery  = 2 * time.Second
	firstRetry = 500 * time.Millisecond
	lastRetry  = 10 * time.Second
	maxAnswer  = 64 << 20 // bytes of all keys and values under the prefix
)

// Config of a Source. Endpoints must be given.
type Config struct {
	Endpoints          []string // host:port, of one cluster
	Prefix             string   // "services", or "/services" when the keys begin with a slash; "" is every key
	Username, Password string
	TLS                *tls.Config // nil is plain text
	Node               string      // name of the node in the catalogue; "etcd" when empty; each import has its own
	Logger             *slog.Logger
}

// Parse reads a Config from an address: http or https, any number of host:port, and
// the prefix: "http://10.0.0.1:2379/services", or with two slashes when the keys begin
// with one. Options are node, and the names of files: ca, cert, key, password-file.
func Parse(address string) (Config, error) {
	a, err := mirror.ParseAddress(address, map[string]string{"http": "2379", "https": "2379"}, "node", "ca", "cert", "key", "password-file")
	if err != nil {
		return Config{}, err
	}
	c := Config{Endpoints: a.Hosts, Prefix: a.Path, Username: a.User, Password: a.Password, Node: a.Options.Get("node")}
	if file := a.Options.Get("password-file"); file != "" {
		b, err := os.ReadFile(file)
		if err != nil {
			return Config{}, &weft.Error{Kind: weft.Invalid, Op: "read", Thing: "password of " + a.String(), Err: err}
		}
		c.Password = strings.TrimSpace(string(b))
	}
	ca, cert, key := a.Options.Get("ca"), a.Options.Get("cert"), a.Options.Get("key")
	switch {
	case a.Scheme == "https":
		c.TLS, err = tlsConfig(ca, cert, key)
	case ca+cert+key != "":
		err = errors.New("ca, cert and key are for https")
	}
	if err != nil {
		return Config{}, &weft.Error{Kind: weft.Invalid, Op: "read", Thing: "address of etcd " + a.String(), Err: err}
	}
	return c, nil
}

func tlsConfig(ca, cert, key string) (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	if ca != "" {
		b, err := os.ReadFile(ca)
		if err != nil {
			return nil, err
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(b) {
			return nil, fmt.Errorf("%s has no certificate in PEM", ca)
		}
	}
	if cert != "" || key != "" {
		pair, err := tls.LoadX509KeyPair(cert, key)
		if err != nil {
			return nil, err
		}
		c.Certificates = []tls.Certificate{pair}
	}
	return c, nil
}

// Source follows one etcd.
type Source struct {
	// constant
	config          clientv3.Config
	prefix          string // "" or with a slash at its end
	mirror          *mirror.Mirror
	patience, every time.Duration

	entries *mirror.Entries // of Run's goroutine
}

// New makes a Source, which has not called anybody yet.
func New(r *registry.Registry, c Config) (*Source, error) {
	if len(c.Endpoints) == 0 {
		return nil, weft.Errorf(weft.Invalid, "follow", "etcd", "no endpoint is given")
	}
	address, _, err := net.SplitHostPort(c.Endpoints[0])
	if err != nil {
		return nil, &weft.Error{Kind: weft.Invalid, Op: "follow", Thing: "etcd " + c.Endpoints[0], Err: err}
	}
	s := &Source{patience: patience, every: lookEvery}
	name := "etcd at " + strings.Join(c.Endpoints, ",")
	if prefix := strings.TrimRight(c.Prefix, "/"); prefix != "" {
		s.prefix = prefix + "/"
		name += "/" + prefix
	}
	scheme := "http://"
	if c.TLS != nil {
		scheme = "https://"
	}
	s.config = clientv3.Config{
		TLS: c.TLS, Username: c.Username, Password: c.Password, Logger: zap.NewNop(),
		DialTimeout: patience, DialKeepAliveTime: 10 * time.Second, DialKeepAliveTimeout: patience,
		MaxCallRecvMsgSize: maxAnswer,
	}
	for _, e := range c.Endpoints {
		s.config.Endpoints = append(s.config.Endpoints, scheme+e)
	}
	s.mirror = mirror.New(r, mirror.Config{
		Node: cmp.Or(c.Node, Dialect), Address: address, Dialect: Dialect, Source: name, Writes: r.Writes, Logger: c.Logger,
	})
	s.entries = mirror.NewEntries(s.mirror)
	return s, nil
}

// Status tells what was imported, and whether etcd is there.
func (s *Source) Status() mirror.Status { return s.mirror.Status() }

// Run follows etcd until ctx ends. What was imported stays then.
func (s *Source) Run(ctx context.Context) error {
	ctx = registry.WithActor(ctx, "import from "+s.Status().Source)
	wait := firstRetry
	for ctx.Err() == nil {
		began := time.Now()
		err := s.session(ctx)
		if ctx.Err() != nil {
			break
		}
		if !errors.Is(err, rpctypes.ErrCompacted) {
			s.mirror.Away(err)
		}
		if time.Since(began) > lastRetry {
			wait = firstRetry
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
		wait = min(2*wait, lastRetry)
	}
	return nil
}

// session reads everything, and follows until that fails. A client of its own each
// time: one that lost a server is slow to find it again.
func (s *Source) session(ctx context.Context) error {
	ctx, end := context.WithCancel(ctx)
	defer end()
	config := s.config
	config.Context = ctx
	client, err := clientv3.New(config)
	if err != nil {
		return err
	}
	defer client.Close()
	rev, err := s.read(ctx, client)
	if err != nil {
		return err
	}
	key, option := s.keys()
	changes := client.Watch(clientv3.WithRequireLeader(ctx), key, option, clientv3.WithRev(rev+1))
	tick := time.NewTicker(s.every)
	defer tick.Stop()
	for {
		s.apply(ctx)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case c, ok := <-changes:
			if !ok {
				return errors.New("the watch has ended")
			}
			if err := c.Err(); err != nil {
				return err
			}
			for _, ev := range c.Events {
				s.take(string(ev.Kv.Key), ev.Kv.Value, ev.Type == clientv3.EventTypeDelete)
			}
		case <-tick.C:
			if err := s.ask(ctx, client); err != nil {
				return err
			}
		}
	}
}

// keys are the prefix's.
func (s *Source) keys() (key string, option clientv3.OpOption) {
	if s.prefix == "" {
		return "\x00", clientv3.WithFromKey()
	}
	return s.prefix, clientv3.WithPrefix()
}

// read takes in all keys, and returns their revision.
func (s *Source) read(ctx context.Context, client *clientv3.Client) (rev int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, s.patience)
	defer cancel()
	key, option := s.keys()
	resp, err := client.Get(ctx, key, option)
	if err != nil {
		return 0, err
	}
	there := make(map[string]bool, len(resp.Kvs))
	for _, kv := range resp.Kvs {
		there[string(kv.Key)] = true
		s.take(string(kv.Key), kv.Value, false)
	}
	s.entries.Keep(func(key string) bool { return there[key] })
	return resp.Header.Revision, nil
}

// ask finds out whether etcd still answers, by a majority of its members. A watch
// that hears nothing cannot tell.
func (s *Source) ask(ctx context.Context, client *clientv3.Client) error {
	ctx, cancel := context.WithTimeout(ctx, s.patience)
	defer cancel()
	key, _ := s.keys()
	_, err := client.Get(ctx, key, clientv3.WithCountOnly())
	return err
}

func (s *Source) take(key string, value []byte, deleted bool) {
	if deleted {
		s.entries.Delete(key)
		return
	}
	claim, there, err := parse(s.prefix, key, value)
	if err == nil && !there {
		s.entries.Delete(key)
		return
	}
	s.entries.Put(key, claim, err)
}

// apply tells the registry. What fails is tried again with the next change or tick,
// and is in Status.
func (s *Source) apply(ctx context.Context) {
	claims, problems := s.entries.Claims()
	_ = s.mirror.Apply(ctx, claims, problems)
}
