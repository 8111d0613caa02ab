package cli

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/node"
)

// tokenEnv holds a join token. There is no flag for the token itself: everybody
// on the machine can read a process's arguments.
const tokenEnv = "WEFT_TOKEN"

// proxyFlags are the flags that gateways and sidecars share.
type proxyFlags struct {
	tokenFile string
	accessLog string
	level     *slog.Level
	memory    string
}

func addProxyFlags(cmd *cobra.Command, c *node.ProxyConfig) *proxyFlags {
	p := &proxyFlags{level: levelFlag(cmd)}
	f := cmd.Flags()
	f.StringVar(&c.Control, "control", c.Control, "`address` of the server's control door; of a cluster several, with commas")
	f.StringVar(&c.Admin, "admin", c.Admin, "`address` of /metrics and /healthz; port 0 takes a free one")
	f.StringVar(&c.Zone, "zone", "", "`zone` where it runs, as eu-west/a: services may prefer what is near")
	f.DurationVar(&c.Drain, "drain", c.Drain, "how `long` requests in flight may still take at the end, or after an upgrade")
	f.Float64Var(&c.Sample, "sample", c.Sample, "`share` of the traces that begin here that are kept, 0 to 1")
	f.StringVar(&p.memory, "memory", "", "ceiling of resident memory, as `512MiB`: near it requests are refused early (default 90 % of the control group's limit)")
	f.IntVar(&c.Connections, "max-connections", 0, "`number` of connections that clients may have open (default by the limit of file descriptors)")
	f.StringVar(&p.tokenFile, "token-file", "", "`file` with the join token (default $"+tokenEnv+", else "+node.TokenFile(node.DefaultServer.DataDir)+")")
	f.StringVar(&p.accessLog, "access-log", "stderr", "`file` for one JSON line a request; \"stderr\", or \"off\"")
	return p
}

// begin takes over from the process before, if there is one, and completes c by the
// flags. end gives everything back, when the process has run or could not.
func (p *proxyFlags) begin(c *node.ProxyConfig, keepPID bool, stderr io.Writer) (end func(*error), err error) {
	switch {
	case c.Sample < 0 || c.Sample > 1:
		return nil, usagef("--sample %v: want a number from 0 to 1", c.Sample)
	case c.Drain < 0:
		return nil, usagef("--drain %v: want a time from 0s", c.Drain)
	case c.Connections < 0:
		return nil, usagef("--max-connections %d: want a number from 0", c.Connections)
	}
	if c.Memory, err = parseBytes(p.memory); err != nil {
		return nil, usagef("--memory %q: %v", p.memory, err)
	}
	c.Logger = node.NewLogger(stderr, *p.level)
	if c.Process, err = node.Begin(keepPID, c.Logger); err != nil {
		return nil, err
	}
	log, err := p.fill(c, stderr)
	if err != nil {
		c.Process.End(err)
		return nil, err
	}
	return func(err *error) {
		c.Process.End(*err)
		*err = errors.Join(*err, log.Close())
	}, nil
}

// fill reads what the flags point to. The caller closes what it returns.
func (p *proxyFlags) fill(c *node.ProxyConfig, stderr io.Writer) (io.Closer, error) {
	token, err := joinToken(p.tokenFile)
	if err != nil && !c.Process.Inherited() { // the process before hands over its own
		return nil, err
	}
	c.Token = token
	switch p.accessLog {
	case "off":
		return nothing{}, nil
	case "stderr":
		c.AccessLog = stderr
		return nothing{}, nil
	}
	// Append: whoever rotates it moves it away and restarts.
	f, err := os.OpenFile(p.accessLog, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, &weft.Error{Kind: weft.Invalid, Op: "open", Thing: "access log (--access-log)", Err: err}
	}
	c.AccessLog = f
	return f, nil
}

// leastMemory is what a proxy needs with a few connections; a lower ceiling would
// only refuse everything.
const leastMemory = 64 << 20

// parseBytes reads "512MiB", "1GiB" or a number of bytes; "" is 0.
func parseBytes(s string) (int64, error) {
	if s == "" {
		return 0, nil
	}
	digits, unit := s, int64(1)
	for suffix, n := range map[string]int64{"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30} {
		if rest, found := strings.CutSuffix(s, suffix); found {
			digits, unit = rest, n
		}
	}
	n, err := strconv.ParseInt(digits, 10, 64)
	switch {
	case err != nil || n < 0 || n > math.MaxInt64/unit:
		return 0, errors.New("want a number with KiB, MiB or GiB, as 512MiB")
	case n*unit < leastMemory:
		return 0, errors.New("want 64MiB at least")
	}
	return n * unit, nil
}

// nothing needs no closing.
type nothing struct{}

func (nothing) Close() error { return nil }

// joinToken reads the token from a file, the environment, or where a server that
// was started in this directory keeps it.
func joinToken(file string) (string, error) {
	if file == "" {
		if token := strings.TrimSpace(os.Getenv(tokenEnv)); token != "" {
			return token, nil
		}
	}
	path := file
	if path == "" {
		path = node.TokenFile(node.DefaultServer.DataDir)
	}
	f, err := os.Open(path)
	if file == "" && errors.Is(err, fs.ErrNotExist) {
		return "", weft.Errorf(weft.Invalid, "join", "mesh", "there is no join token: set %s, or --token-file to the join-token file in the server's data directory", tokenEnv)
	}
	if err != nil {
		return "", fmt.Errorf("read the join token: %w", err)
	}
	defer f.Close()
	const longest = 4 << 10 // far above any token; not a device or a wrong file
	b, err := io.ReadAll(io.LimitReader(f, longest))
	if err != nil {
		return "", fmt.Errorf("read the join token: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}
