package cluster

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

var pid = os.Getpid()

// caller calls one server's doors, from where the server is.
type caller struct {
	server *server
	client *http.Client
}

func newCaller(s *server) *caller {
	c := &caller{server: s}
	c.client = &http.Client{Transport: &http.Transport{DialContext: c.dial, MaxIdleConnsPerHost: 16}}
	return c
}

// dial makes the socket in the server's namespace. The thread that went there is
// given up with its goroutine.
func (c *caller) dial(ctx context.Context, network, address string) (net.Conn, error) {
	if c.server.place == nil {
		return new(net.Dialer).DialContext(ctx, network, address)
	}
	type result struct {
		conn net.Conn
		err  error
	}
	done := make(chan result, 1)
	go func() {
		runtime.LockOSThread()
		f, err := os.Open("/run/netns/" + c.server.place.name)
		if err == nil {
			defer f.Close()
			err = unix.Setns(int(f.Fd()), unix.CLONE_NEWNET)
		}
		var conn net.Conn
		if err == nil {
			conn, err = new(net.Dialer).DialContext(ctx, network, address)
		}
		done <- result{conn, err}
	}()
	r := <-done
	return r.conn, r.err
}

// answer of a door.
type answer struct {
	status int
	header http.Header
	body   []byte
}

// errRefused: nobody listened, so nothing happened.
var errRefused = errors.New("connection refused")

// statusError is an answer that is none of those that were wanted.
type statusError struct {
	status int
	text   string
}

func (e *statusError) Error() string {
	return fmt.Sprintf("%d %s", e.status, strings.TrimSpace(e.text))
}

// call is answered with 200 or 404, else it is an error.
func (c *caller) call(ctx context.Context, method, url string, body any) (answer, error) {
	var in io.Reader
	switch b := body.(type) {
	case nil:
	case string:
		in = strings.NewReader(b)
	default:
		encoded, err := json.Marshal(b)
		if err != nil {
			return answer{}, err
		}
		in = bytes.NewReader(encoded)
	}
	req, err := http.NewRequestWithContext(ctx, method, url, in)
	if err != nil {
		return answer{}, err
	}
	resp, err := c.client.Do(req)
	if err != nil {
		if errors.Is(err, unix.ECONNREFUSED) {
			err = errors.Join(errRefused, err)
		}
		return answer{}, err
	}
	defer resp.Body.Close()
	a := answer{status: resp.StatusCode, header: resp.Header}
	if a.body, err = io.ReadAll(io.LimitReader(resp.Body, 16<<20)); err != nil {
		return a, err
	}
	if a.status != http.StatusOK && a.status != http.StatusNotFound {
		return a, &statusError{a.status, string(a.body)}
	}
	return a, nil
}

// consul calls the Consul API.
func (s *server) consulCall(ctx context.Context, method, path string, body any) (answer, error) {
	return s.http.call(ctx, method, "http://"+s.consul+"/v1/"+path, body)
}

// within bounds a call.
func within(d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	context.AfterFunc(ctx, cancel)
	return ctx
}

// pair is a key as the API shows it.
type pair struct {
	Key         string
	Value       []byte
	ModifyIndex uint64
	Session     string
}

// How new a read has to be.
const (
	stale      = "?stale"
	ordinary   = "?"
	consistent = "?consistent"
)

// get reads a key; p is nil when it is not there. index is the answer's.
func (s *server) get(ctx context.Context, key, how string) (p *pair, index uint64, err error) {
	a, err := s.consulCall(ctx, "GET", "kv/"+key+how, nil)
	if err != nil {
		return nil, 0, err
	}
	if index, err = strconv.ParseUint(a.header.Get("X-Consul-Index"), 10, 64); err != nil {
		return nil, 0, err
	}
	if a.status == http.StatusNotFound {
		return nil, index, nil
	}
	var list []pair
	if err := json.Unmarshal(a.body, &list); err != nil {
		return nil, 0, err
	}
	return &list[0], index, nil
}

// put writes a key. params are such as "acquire=…"; ok is what the API answers.
func (s *server) put(ctx context.Context, key, value, params string) (ok bool, err error) {
	a, err := s.consulCall(ctx, "PUT", "kv/"+key+"?"+params, value)
	if err != nil {
		return false, err
	}
	return strings.TrimSpace(string(a.body)) == "true", nil
}

// mustPut writes a key and fails when that is not acknowledged.
func (s *server) mustPut(key, value string) {
	s.c.t.Helper()
	if ok, err := s.put(within(10*time.Second), key, value, ""); !ok || err != nil {
		s.c.t.Fatalf("put %s at %s: %v %v", key, s.name, ok, err)
	}
}

// mustGet reads a key that has to be there.
func (s *server) mustGet(key, how string) *pair {
	s.c.t.Helper()
	p, _, err := s.get(within(10*time.Second), key, how)
	if err != nil || p == nil {
		s.c.t.Fatalf("get %s%s at %s: %v %v", key, how, s.name, p, err)
	}
	return p
}

// registerAgent registers an instance with the server as its agent.
func (s *server) registerAgent(ctx context.Context, id string, body map[string]any) error {
	body["ID"] = id
	_, err := s.consulCall(ctx, "PUT", "agent/service/register", body)
	return err
}

// instance as the API shows it.
type instance struct {
	Node    struct{ Node string }
	Service struct {
		ID   string
		Meta map[string]string
	}
	Checks []struct{ CheckID, Status, Output string }
}

// instances reads a service.
func (s *server) instances(ctx context.Context, service, how string) (list []instance, index uint64, err error) {
	a, err := s.consulCall(ctx, "GET", "health/service/"+url.PathEscape(service)+how, nil)
	if err != nil {
		return nil, 0, err
	}
	if index, err = strconv.ParseUint(a.header.Get("X-Consul-Index"), 10, 64); err != nil {
		return nil, 0, err
	}
	return list, index, json.Unmarshal(a.body, &list)
}
