package node

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync/atomic"
	"time"

	"github.com/weftmesh/weft"
)

// CertificateFiles are a certificate chain and its key, PEM.
type CertificateFiles struct{ Cert, Key string }

// certificates are those of a door, read again when their files change.
type certificates struct {
	// constant
	files  []CertificateFiles
	logger *slog.Logger

	loaded atomic.Pointer[[]tls.Certificate]
	stamps []stamp // of watch, once it runs
}

// stamp tells whether a file is still the one that was read. A rotation by rename
// keeps neither; one in place changes time or size.
type stamp struct {
	changed time.Time
	size    int64
}

// lookInterval is how often files are looked at: certificates are renewed days
// before they expire.
const lookInterval = 2 * time.Second

func loadCertificates(files []CertificateFiles, logger *slog.Logger) (*certificates, error) {
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	c := &certificates{files: files, logger: logger}
	c.stamps = c.look()
	return c, c.load()
}

// load reads all files. When one is bad, those that were loaded stay.
func (c *certificates) load() error {
	loaded := make([]tls.Certificate, len(c.files))
	for i, f := range c.files {
		info, err := os.Stat(f.Key)
		if err != nil {
			return &weft.Error{Kind: weft.Invalid, Op: "load", Thing: "key (--key)", Err: err}
		}
		if mode := info.Mode().Perm(); mode&0o077 != 0 {
			return weft.Errorf(weft.Denied, "load", "key "+f.Key, "its mode is %#o: others could read it; chmod 600 it", mode)
		}
		if loaded[i], err = tls.LoadX509KeyPair(f.Cert, f.Key); err != nil {
			thing := fmt.Sprintf("certificate %s with key %s", f.Cert, f.Key)
			return &weft.Error{Kind: weft.Invalid, Op: "load", Thing: thing, Err: err}
		}
		if leaf := loaded[i].Leaf; time.Now().After(leaf.NotAfter) {
			c.logger.Warn("a certificate has expired", "file", f.Cert, "since", leaf.NotAfter)
		}
	}
	c.loaded.Store(&loaded)
	return nil
}

// config is for a listener: TLS 1.2 or later, HTTP/2 preferred.
func (c *certificates) config() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		NextProtos: []string{"h2", "http/1.1"},
		// Of TLS 1.2 only what HTTP/2 allows (RFC 9113 §9.2.2).
		CipherSuites: []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
			tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
			tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256},
		GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			all := *c.loaded.Load()
			if len(all) == 0 {
				return nil, weft.Errorf(weft.NotFound, "serve", "TLS", "there is no certificate: this door only passes on what a route names")
			}
			for i := range all {
				if hello.SupportsCertificate(&all[i]) == nil {
					return &all[i], nil
				}
			}
			return &all[0], nil
		},
	}
}

// watch loads the files again when they change, until ctx ends.
func (c *certificates) watch(ctx context.Context) error {
	tick := time.NewTicker(lookInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		now := c.look()
		if slices.Equal(now, c.stamps) {
			continue
		}
		c.stamps = now
		// The two files of a pair do not change in one moment: what does not fit yet
		// may fit at the next change.
		if err := c.load(); err != nil {
			c.logger.Error("changed certificates are not used; the old ones stay", "error", err)
		} else {
			c.logger.Info("certificates loaded again")
		}
	}
}

func (c *certificates) look() []stamp {
	var out []stamp
	for _, f := range c.files {
		for _, name := range []string{f.Cert, f.Key} {
			var s stamp
			if info, err := os.Stat(name); err == nil {
				s = stamp{info.ModTime(), info.Size()}
			}
			out = append(out, s)
		}
	}
	return out
}
