package h2spec

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/summerwind/h2spec/client"
	"github.com/summerwind/h2spec/config"
	"github.com/summerwind/h2spec/generic"
	"github.com/summerwind/h2spec/hpack"
	"github.com/summerwind/h2spec/http2"
	"github.com/summerwind/h2spec/spec"

	"github.com/weftmesh/weft/test/world"
)

func TestMain(m *testing.M) { world.Main(m) }

// timeout is how long a case waits for what it expects. Some cases expect that
// nothing comes, and take as long.
const timeout = 2 * time.Second

// serverCase is one case of h2spec that is asked of a server.
type serverCase struct {
	id string // as in "http2/5.1.1/2"
	*spec.TestCase
}

func serverCases() []serverCase {
	var all []serverCase
	var walk func(g *spec.TestGroup)
	walk = func(g *spec.TestGroup) {
		for i, c := range append(g.Tests[:len(g.Tests):len(g.Tests)], g.StrictTests...) {
			all = append(all, serverCase{fmt.Sprintf("%s/%d", g.ID(), i+1), c})
		}
		for _, inner := range g.Groups {
			walk(inner)
		}
	}
	for _, g := range []*spec.TestGroup{generic.Spec(), http2.Spec(), hpack.Spec()} {
		walk(g)
	}
	return all
}

// clientCase is one case of h2spec that is asked of a client.
type clientCase struct {
	id string // as in "client/6.5/1"
	*spec.ClientTestCase
}

func clientCases() []clientCase {
	var all []clientCase
	var walk func(g *spec.ClientTestGroup)
	walk = func(g *spec.ClientTestGroup) {
		for i, c := range g.Tests {
			all = append(all, clientCase{fmt.Sprintf("%s/%d", g.ID(), i+1), c})
		}
		for _, inner := range g.Groups {
			walk(inner)
		}
	}
	walk(client.Spec())
	return all
}

// disagreements are what the list says of a door: cases, each with its reason.
func disagreements(t *testing.T, door string) map[string]string {
	t.Helper()
	f, err := os.Open("testdata/disagreements.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	list := map[string]string{}
	for in := bufio.NewScanner(f); in.Scan(); {
		line := strings.TrimSpace(in.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		of, rest, _ := strings.Cut(line, " ")
		id, reason, _ := strings.Cut(rest, " ")
		if reason == "" {
			t.Errorf("want a door, a case and a reason: %s", line)
		}
		if of == door {
			list[id] = reason
		}
	}
	return list
}

// configFor a door. Each case gets its own: h2spec changes it.
func configFor(t *testing.T, address string, tls bool) *config.Config {
	t.Helper()
	return &config.Config{Host: "127.0.0.1", Port: world.Port(t, address), Path: "/", Timeout: timeout,
		MaxHeaderLen: 4000, Strict: true, TLS: tls, Insecure: true}
}

// ask runs a case once, over a connection of its own.
func (c serverCase) ask(conf *config.Config) error {
	conn, err := spec.Dial(conf)
	if err != nil {
		return err
	}
	defer conn.Close()
	return c.Run(conf, conn)
}

// verdict compares how a case ended with the list.
func verdict(t *testing.T, id, description, requirement string, err error, listed map[string]string) {
	t.Helper()
	switch reason := listed[id]; {
	case err != nil && reason == "":
		if errors.Is(err, spec.ErrSkipped) {
			err = errors.New("h2spec could not ask: the server's settings do not let it")
		}
		t.Errorf("%s: %s\nrequired: %s\nexpected and seen: %v", id, description, requirement, err)
	case err == nil && reason != "":
		t.Errorf("%s passes, but is listed as a disagreement (%s): take it off the list", id, reason)
	}
}

// judge asks everything of a server.
func judge(t *testing.T, door, address string, tls bool) {
	t.Helper()
	listed := disagreements(t, door)
	for id := range listed {
		if !slices.ContainsFunc(serverCases(), func(c serverCase) bool { return c.id == id }) {
			t.Errorf("there is no case %s", id)
		}
	}
	for _, c := range serverCases() {
		t.Run(c.id, func(t *testing.T) {
			t.Parallel()
			verdict(t, c.id, c.Desc, c.Requirement, c.ask(configFor(t, address, tls)), listed)
		})
	}
}
