package weftgrpc_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strconv"
	"sync"
	"time"

	"github.com/weftmesh/weft/client"
)

// server is a weft server as far as a watcher of services sees it.
type server struct {
	*httptest.Server

	mu     sync.Mutex
	index  uint64
	states map[string]*client.State // by name
	moved  chan struct{}
}

func newServer() *server {
	s := &server{states: map[string]*client.State{}, moved: make(chan struct{}), index: 1}
	s.Server = httptest.NewServer(http.HandlerFunc(s.watch))
	return s
}

func (s *server) close() {
	s.CloseClientConnections()
	s.Close()
}

// change lets fn change a service.
func (s *server) change(name string, fn func(*client.State)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.index++
	state := *s.state(name)
	fn(&state)
	state.Index, state.Instances = s.index, len(state.Endpoints)
	state.Policy = fmt.Sprintf("%s|%s|%s", state.LoadBalancer, state.Breaker, state.Resilience)
	s.states[name] = &state
	close(s.moved)
	s.moved = make(chan struct{})
}

// set makes the endpoints of a service those at the addresses.
func (s *server) set(name string, addresses ...string) {
	s.change(name, func(state *client.State) {
		state.Endpoints = nil
		for _, a := range addresses {
			state.Endpoints = append(state.Endpoints, client.Endpoint{ID: "laptop/" + a, Address: a, Weight: 1, Plain: true})
		}
	})
}

func (s *server) state(name string) *client.State {
	if state := s.states[name]; state != nil {
		return state
	}
	return &client.State{Namespace: "default", Service: name, Index: 1, Policy: "none"}
}

func (s *server) watch(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	var name string
	_, _ = fmt.Sscanf(r.URL.Path, "/api/services/%s", &name)
	name = name[:len(name)-len("/watch")]
	index, _ := strconv.ParseUint(q.Get("index"), 10, 64)
	wait, _ := time.ParseDuration(q.Get("wait"))
	over := time.After(wait)
	for waiting := true; ; {
		s.mu.Lock()
		state, moved := s.state(name), s.moved
		s.mu.Unlock()
		if state.Index != index || state.Policy != q.Get("policy") || !waiting {
			_ = json.NewEncoder(w).Encode(state)
			return
		}
		select {
		case <-moved:
		case <-over:
			waiting = false
		case <-r.Context().Done():
			return
		}
	}
}
