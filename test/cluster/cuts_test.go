package cluster

import (
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/weftmesh/weft/test/world"
)

func TestOneMemberIsCutOff(t *testing.T) {
	t.Parallel()
	c := newCluster(t, newNetwork(t), 3)
	leader, others := c.leader()
	t.Run("follower", func(t *testing.T) { c.cutOff(t, others[1], []*server{leader, others[0]}) })
	leader, others = c.leader()
	t.Run("leader", func(t *testing.T) { c.cutOff(t, leader, others) })
}

// cutOff takes a server out of the others' reach and back.
func (c *cluster) cutOff(t *testing.T, one *server, others []*server) {
	l := c.under(stale, others...)
	l.ackedSince(time.Now(), 5*time.Second, others...)
	one.mustPut("place", "old")
	began := time.Now()
	one.place.cut(t)
	done := make(chan error, 2)
	go func() { done <- one.refusesAlone("GET", "kv/place?consistent") }()
	go func() { done <- one.refusesAlone("PUT", "kv/place") }()
	took := l.ackedSince(began, 2*writesWithin, others...)
	t.Logf("writes stopped for %s", took)
	if took > writesWithin {
		t.Errorf("writes stopped for %s", took)
	}
	others[0].mustPut("place", "new")
	if p := one.mustGet("place", stale); string(p.Value) != "old" {
		t.Errorf("who is cut off reads %q", p.Value)
	}
	for range cap(done) {
		if err := <-done; err != nil {
			t.Errorf("who is cut off: %v", err)
		}
	}
	healed := time.Now()
	one.place.heal(t)
	world.Eventually(t, 10*time.Second, "who was cut off to catch up", func() error {
		p, _, err := one.get(within(time.Second), "place", consistent)
		if err == nil && string(p.Value) != "new" {
			t.Fatalf("%q was read as consistent", p.Value)
		}
		return err
	})
	l.ackedSince(healed, 10*time.Second, one)
	t.Logf("it took part %s after that", time.Since(healed))
	c.settled()
	l.stop()
	l.readsWentOn(readsWithin)
	l.nothingLost(c.servers...)
}

// refusesAlone: a call that needs a majority is answered with a reason, in time.
func (s *server) refusesAlone(method, path string) error {
	var body any
	if method == "PUT" {
		body = "by who is alone"
	}
	_, err := s.consulCall(within(callTimeout), method, path, body)
	var answered *statusError
	switch {
	case err == nil:
		return errors.New(method + " " + path + " was answered")
	case !errors.As(err, &answered):
		return err
	case answered.status != http.StatusInternalServerError || !saysWhy(answered.text):
		return errors.New(method + " " + path + ": the reason given is " + answered.Error())
	}
	return nil
}

func saysWhy(text string) bool {
	for _, reason := range []string{"no server leads", "no leader", "majority", "the leader went away", "no answer"} {
		if strings.Contains(text, reason) {
			return true
		}
	}
	return false
}
