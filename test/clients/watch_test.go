package clients

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"

	"github.com/hashicorp/consul/api"
	"github.com/hashicorp/consul/api/watch"
	"github.com/hashicorp/go-hclog"

	"github.com/weftmesh/weft/test/world"
)

// plan is a running watch plan, and what its handler was given last.
type plan struct {
	mu    sync.Mutex
	last  string // JSON
	calls int
}

func follow(t *testing.T, address string, parameters map[string]any) *plan {
	t.Helper()
	w, err := watch.Parse(parameters)
	must(t, err)
	p := &plan{}
	w.Handler = func(_ uint64, what any) {
		text, err := json.Marshal(what)
		if err != nil {
			t.Error(err)
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		p.last, p.calls = string(text), p.calls+1
	}
	ended := make(chan error, 1)
	go func() {
		ended <- w.RunWithClientAndHclog(client(t, address), hclog.New(&hclog.LoggerOptions{Output: io.Discard}))
	}()
	t.Cleanup(func() {
		w.Stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return p
}

func (p *plan) told(parts ...string) func() error {
	return func() error {
		p.mu.Lock()
		defer p.mu.Unlock()
		for _, part := range parts {
			if !strings.Contains(p.last, part) {
				return fmt.Errorf("after %d calls the handler has %s, want %q", p.calls, p.last, part)
			}
		}
		return nil
	}
}

func TestWatchPlans(t *testing.T) {
	s := start(t)
	s.passes("web", "web-1", "10.0.0.1", 8080, "blue")
	kv, agent := s.api.KV(), s.api.Agent()
	put := func(key, value string) {
		_, err := kv.Put(&api.KVPair{Key: key, Value: []byte(value)}, nil)
		must(t, err)
	}
	put("app/color", "red")
	for name, test := range map[string]struct {
		parameters    map[string]any
		path          string // of its requests
		first, second []string
		change        func()
	}{
		"key":       {map[string]any{"key": "app/color"}, "/v1/kv/app/color", []string{`"Value":"cmVk"`}, []string{`"Value":"Ymx1ZQ=="`}, func() { put("app/color", "blue") }},
		"keyprefix": {map[string]any{"prefix": "list/"}, "/v1/kv/list/", []string{``}, []string{`"Key":"list/a"`}, func() { put("list/a", "1") }},
		"services":  {map[string]any{}, "/v1/catalog/services", []string{`"web":["blue"]`}, []string{`"api":[]`}, func() { s.passes("api", "api-1", "10.0.0.2", 80) }},
		"nodes": {map[string]any{}, "/v1/catalog/nodes", []string{`127.0.0.1`}, []string{`"Node":"far"`}, func() {
			_, err := s.api.Catalog().Register(&api.CatalogRegistration{Node: "far", Address: "10.2.0.1"}, nil)
			must(t, err)
		}},
		"service": {map[string]any{"service": "web", "tag": "blue", "passingonly": true}, "/v1/health/service/web", []string{`"ID":"web-1"`}, []string{`[]`}, func() {
			must(t, agent.FailTTL("service:web-1", ""))
		}},
		"checks": {map[string]any{"state": "critical"}, "/v1/health/state/critical", []string{``}, []string{`"CheckID":"disk"`}, func() {
			must(t, agent.CheckRegister(&api.AgentCheckRegistration{ID: "disk", Name: "disk", ServiceID: "churn", AgentServiceCheck: api.AgentServiceCheck{TTL: "1h"}}))
		}},
		"event": {map[string]any{"name": "deploy"}, "/v1/event/list", []string{``}, []string{`"Payload":"Z28="`}, func() {
			_, _, err := s.api.Event().Fire(&api.UserEvent{Name: "deploy", Payload: []byte("go")}, nil)
			must(t, err)
		}},
		"connect_roots": {map[string]any{}, "/v1/agent/connect/ca/roots", []string{`"Active":true`}, []string{`"Active":true`}, func() {}},
		"connect_leaf":  {map[string]any{"service": "web"}, "/v1/agent/connect/ca/leaf/web", []string{`BEGIN CERTIFICATE`}, []string{`BEGIN CERTIFICATE`}, func() {}},
		"agent_service": {map[string]any{"service_id": "tagged"}, "/v1/agent/service/tagged", []string{`"Tags":["one"]`}, []string{`"Tags":["two"]`}, func() {
			s.passes("tagged", "tagged", "10.0.0.3", 80, "two")
		}},
	} {
		t.Run(name, func(t *testing.T) {
			s := &server{World: s.World, T: t, requests: s.requests, counted: s.counted, api: s.api}
			s.Register("churn", "churn", "10.9.9.9:1")
			if name == "agent_service" {
				s.passes("tagged", "tagged", "10.0.0.3", 80, "one")
			}
			test.parameters["type"] = name
			before := s.requests.of(test.path)
			p := follow(t, s.counted, test.parameters)
			world.Eventually(t, soon, "the first answer", p.told(test.first...))
			world.Eventually(t, soon, "a query that blocks", func() error {
				if n := s.requests.of(test.path) - before; n < 2 {
					return fmt.Errorf("%d requests", n)
				}
				return nil
			})
			s.idle(test.path)
			test.change()
			world.Eventually(t, soon, "the change", p.told(test.second...))
		})
	}
}
