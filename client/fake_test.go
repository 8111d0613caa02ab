package client_test

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/client"
)

// server is a weft server as far as clients see it: services in memory. Package api
// has the real one, and tests that it and a client understand each other.
type server struct {
	mu      sync.Mutex
	index   uint64
	states  map[string]*client.State // by name
	moved   chan struct{}
	beats   map[string]client.Heartbeat // by instance
	watches int                         // asked so far
	http    *httptest.Server
	over    chan struct{} // closed when this process of the server ends
}

func newServer() *server {
	s := &server{states: map[string]*client.State{}, moved: make(chan struct{}), beats: map[string]client.Heartbeat{}, index: 1}
	s.start("127.0.0.1:0")
	return s
}

func (s *server) addr() string { return s.http.Listener.Addr().String() }

func (s *server) start(addr string) {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /api/services/{name}/watch", s.watch)
	mux.HandleFunc("POST /api/instances", s.register)
	mux.HandleFunc("PUT /api/instances/{id}/heartbeat", s.heartbeat)
	mux.HandleFunc("DELETE /api/instances/{id}", s.drain)
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		panic(err)
	}
	over := make(chan struct{})
	dying := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-over: // it came on a connection that was made in the last moment
			panic(http.ErrAbortHandler)
		default:
			mux.ServeHTTP(w, r)
		}
	})
	s.http, s.over = &httptest.Server{Listener: ln, Config: &http.Server{Handler: dying}}, over
	s.http.Start()
}

// stop ends the server as a crash does.
func (s *server) stop() {
	close(s.over)
	s.http.Listener.Close()
	s.http.CloseClientConnections()
	s.http.Close()
}

// restart is a new process at the same address; fresh: on an empty disk.
func (s *server) restart(fresh bool) {
	addr := s.addr()
	if fresh {
		s.mu.Lock()
		s.states, s.beats, s.index = map[string]*client.State{}, map[string]client.Heartbeat{}, 1
		s.mu.Unlock()
	}
	s.start(addr)
}

// change lets fn change a service, which then has a new index.
func (s *server) change(name string, fn func(*client.State)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.index++
	state := *s.state(name)
	state.Index = s.index
	fn(&state)
	state.Instances = max(state.Instances, len(state.Endpoints))
	state.Policy = fmt.Sprintf("%s|%s|%s", state.LoadBalancer, state.Breaker, state.Resilience)
	s.states[name] = &state
	close(s.moved)
	s.moved = make(chan struct{})
}

// set makes the endpoints of a service those at the addresses.
func (s *server) set(name string, addresses ...string) {
	s.change(name, func(state *client.State) {
		state.Endpoints, state.Instances = []client.Endpoint{}, 0
		for i, a := range addresses {
			state.Endpoints = append(state.Endpoints, client.Endpoint{ID: fmt.Sprintf("laptop/%s-%d", name, i+1), Address: a, Weight: 1, Plain: true})
		}
	})
}

// policy gives a service a ResiliencePolicy, as its spec is written.
func (s *server) policy(name, spec string) {
	s.change(name, func(state *client.State) { state.Resilience = json.RawMessage(spec) })
}

func (s *server) state(name string) *client.State {
	if state := s.states[name]; state != nil {
		return state
	}
	service, namespace, _ := strings.Cut(name, ".")
	return &client.State{Namespace: cmp.Or(namespace, "default"), Service: service, Index: 1, Policy: "none", Endpoints: []client.Endpoint{}}
}

func (s *server) watch(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	name := r.PathValue("name")
	if ns := q.Get("namespace"); ns != "default" {
		name += "." + ns
	}
	index, _ := strconv.ParseUint(q.Get("index"), 10, 64)
	wait, _ := time.ParseDuration(q.Get("wait"))
	patience, over := time.After(wait), s.over
	s.mu.Lock()
	s.watches++
	s.mu.Unlock()
	for waiting := true; ; {
		s.mu.Lock()
		state, moved := s.state(name), s.moved
		s.mu.Unlock()
		if state.Index != index || state.Policy != q.Get("policy") || !waiting {
			answer(w, state)
			return
		}
		select {
		case <-moved:
		case <-patience:
			waiting = false
		case <-over:
			panic(http.ErrAbortHandler)
		case <-r.Context().Done():
			return
		}
	}
}

func (s *server) register(w http.ResponseWriter, r *http.Request) {
	var in client.Registration
	_ = json.NewDecoder(r.Body).Decode(&in)
	s.mu.Lock()
	s.beats[in.ID] = in.Heartbeat
	s.mu.Unlock()
	s.change(in.Service, func(state *client.State) {
		e := client.Endpoint{ID: in.ID, Address: net.JoinHostPort(cmp.Or(in.Address, "127.0.0.1"), strconv.Itoa(in.Port)), Labels: in.Labels, Weight: 1, Plain: true}
		state.Endpoints = append(without(state.Endpoints, in.ID), e)
	})
	s.mu.Lock()
	index := s.index
	s.mu.Unlock()
	answer(w, client.Leased{ID: in.ID, TTL: in.TTL, Index: index})
}

func without(list []client.Endpoint, id string) []client.Endpoint {
	return slices.DeleteFunc(slices.Clone(list), func(e client.Endpoint) bool { return e.ID == id })
}

func (s *server) heartbeat(w http.ResponseWriter, r *http.Request) {
	var beat client.Heartbeat
	_ = json.NewDecoder(r.Body).Decode(&beat)
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, known := s.beats[r.PathValue("id")]; !known {
		w.WriteHeader(http.StatusNotFound)
		answer(w, client.NewFailure(weft.Errorf(weft.NotFound, "renew", "instance", "it is not registered")))
		return
	}
	s.beats[r.PathValue("id")] = beat
	close(s.moved)
	s.moved = make(chan struct{})
	w.WriteHeader(http.StatusNoContent)
}

func (s *server) drain(w http.ResponseWriter, r *http.Request) {
	id := r.PathValue("id")
	s.mu.Lock()
	var of string
	for name, state := range s.states {
		if len(without(state.Endpoints, id)) < len(state.Endpoints) {
			of = name
		}
	}
	delete(s.beats, id)
	s.mu.Unlock()
	s.change(of, func(state *client.State) {
		state.Endpoints = without(state.Endpoints, id)
		state.Instances = len(state.Endpoints)
	})
	answer(w, client.Drained{})
}

func answer(w http.ResponseWriter, v any) { _ = json.NewEncoder(w).Encode(v) }
