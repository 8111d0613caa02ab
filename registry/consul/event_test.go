package consul

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

func TestEvents(t *testing.T) {
	w := newWorld(t)
	if a := w.get("/v1/event/list"); a.body != "[]\n" || a.index() != 1 {
		t.Errorf("before the first: %s index %d", a.body, a.index())
	}
	fired := w.send("PUT", "/v1/event/fire/deploy?service=web&tag=v1&node=n", "\x00now", "Content-Type", "application/json").want(200)
	id, _ := fired.field("ID").(string)
	w.put("/v1/event/fire/other", "")
	w.get("/v1/event/list?name=deploy").wantJSON(`[{"ID":"` + id + `","Name":"deploy","Payload":"AG5vdw==",
		"NodeFilter":"n","ServiceFilter":"web","TagFilter":"v1","Version":1,"LTime":1}]`)
	all := w.get("/v1/event/list")
	last, _ := all.field("1.ID").(string)
	if all.field("1.Name") != "other" || all.field("1.Payload") != nil || all.index() != indexOfID(last) {
		t.Errorf("all: %s, index %d", all.body, all.index())
	}
	w.get("/v1/event/list?name=none").wantJSON(`[]`)
}

// Clients make the index of an event from its ID by themselves.
func TestIndexOfID(t *testing.T) {
	for id, want := range map[string]uint64{
		"00000000-0000-0001-0000-000000000003": 2,
		"b54fe110-7af5-cafc-d1fb-afc8ba432b1c": 0x64b44ed8c0b6e1e0,
		"short":                                1,
	} {
		if got := indexOfID(id); got != want {
			t.Errorf("%s: %x, want %x", id, got, want)
		}
	}
}

// Its index is not ordered: a list blocks until it is another one.
func TestEventListBlocks(t *testing.T) {
	w := newWorld(t)
	w.put("/v1/event/fire/a", "")
	index := w.get("/v1/event/list").index()
	waiting := w.ask(fmt.Sprintf("/v1/event/list?index=%d&wait=60s", index))
	select {
	case a := <-waiting:
		t.Fatalf("did not wait: %s", a.body)
	case <-time.After(30 * time.Millisecond): // a read that does not wait is here by then
	}
	w.put("/v1/event/fire/b", "")
	if a := <-waiting; a.index() == index || !strings.Contains(a.body, `"Name":"b"`) {
		t.Errorf("woke with index %d, %s", a.index(), a.body)
	}
	w.get(fmt.Sprintf("/v1/event/list?index=%d&wait=60s", index)) // is another one already
	if a := w.get(fmt.Sprintf("/v1/event/list?index=%d&wait=10ms", w.get("/v1/event/list").index())); a.field("1.Name") != "b" {
		t.Errorf("after the time: %s", a.body)
	}
}

func TestEventsAreBounded(t *testing.T) {
	w := newWorld(t)
	for range maxEvents + 3 {
		w.put("/v1/event/fire/a", "")
	}
	a := w.get("/v1/event/list")
	if first, last := a.field("0.LTime"), a.field(fmt.Sprintf("%d.LTime", maxEvents-1)); first != 4.0 || last != float64(maxEvents+3) {
		t.Errorf("kept are %v to %v", first, last)
	}
}

func TestWrongEvents(t *testing.T) {
	w := newWorld(t)
	for _, c := range []struct {
		method, path, body string
		status             int
		says               string
	}{
		{"PUT", "/v1/event/fire/", "", 400, "missing event name"},
		{"PUT", "/v1/event/fire/a?tag=t", "", 400, "without service filter"},
		{"PUT", "/v1/event/fire/a", strings.Repeat("x", maxPayload+1), 413, "over 65536 bytes"},
		{"GET", "/v1/event/fire/a", "", 405, "PUT"},
		{"GET", "/v1/event/list?index=x", "", 400, "index"},
	} {
		if a := w.send(c.method, c.path, c.body); a.status != c.status || !strings.Contains(a.body, c.says) {
			t.Errorf("%s %s: %d %.200s", c.method, c.path, a.status, a.body)
		}
	}
	w.get("/v1/event/list").wantJSON(`[]`)
}
