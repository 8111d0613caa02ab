package cluster

import (
	"cmp"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
)

// operation on a register: a key, or an instance. A value is written once only, so
// it stands for the index at which it was.
type operation struct {
	register string
	kind     kind
	value    string // put, cas: that is written
	expected string // cas: the value that is replaced; "" is none
}

type kind string

const (
	get kind = "get"
	put kind = "put" // also a registration
	del kind = "delete"
	cas kind = "cas"
)

// outcome of an operation. Of one that is not known there is no return either.
type outcome struct {
	known bool
	value string // get: that was read; "" is none
	done  bool   // cas: it was not refused
}

// register is the model: what a key or an instance is, as if all was done one after
// the other.
var register = porcupine.Model{
	Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
		by := map[string][]porcupine.Operation{}
		for _, o := range history {
			name := o.Input.(operation).register
			by[name] = append(by[name], o)
		}
		var parts [][]porcupine.Operation
		for _, part := range by {
			parts = append(parts, part)
		}
		return parts
	},
	Init: func() any { return "" },
	Step: func(state, input, output any) (bool, any) {
		now, o, out := state.(string), input.(operation), output.(outcome)
		switch o.kind {
		case get:
			return out.value == now, now
		case put:
			return true, o.value
		case del:
			return true, ""
		}
		fits := now == o.expected
		if out.known && out.done != fits {
			return false, now
		}
		if fits {
			return true, o.value
		}
		return true, now
	},
	DescribeOperation: func(input, output any) string {
		o, out := input.(operation), output.(outcome)
		switch {
		case o.kind == get:
			return fmt.Sprintf("get %s: %q", o.register, out.value)
		case !out.known:
			return fmt.Sprintf("%s %s %q for %q: unknown", o.kind, o.register, o.value, o.expected)
		case o.kind == cas:
			return fmt.Sprintf("cas %s %q for %q: %v", o.register, o.value, o.expected, out.done)
		}
		return fmt.Sprintf("%s %s %q", o.kind, o.register, o.value)
	},
	DescribeState: func(state any) string { return fmt.Sprintf("%q", state) },
}

// history is what clients did and saw.
type history struct {
	began time.Time

	mu         sync.Mutex
	operations []porcupine.Operation
	unknown    int
}

func newHistory() *history { return &history{began: time.Now()} }

func (h *history) now() int64 { return int64(time.Since(h.began)) }

// record keeps an operation that was called at a time and has returned now. A read
// whose answer is not known tells nothing, and is left out.
func (h *history) record(client int, called int64, o operation, out outcome) {
	returned := h.now()
	if !out.known {
		returned = math.MaxInt64
		if o.kind == get {
			return
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if !out.known {
		h.unknown++
	}
	h.operations = append(h.operations, porcupine.Operation{ClientId: client, Input: o, Call: called, Output: out, Return: returned})
}

// checkTimeout bounds the search for an order. Registers are short-lived, so that it
// takes far less.
const checkTimeout = 2 * time.Minute

// judge fails when no order of the operations explains what was seen.
func (h *history) judge(t *testing.T, dir string) {
	t.Helper()
	h.mu.Lock()
	defer h.mu.Unlock()
	slices.SortFunc(h.operations, func(a, b porcupine.Operation) int { return cmp.Compare(a.Call, b.Call) })
	result, info := porcupine.CheckOperationsVerbose(register, h.operations, checkTimeout)
	switch result {
	case porcupine.Ok:
		t.Logf("%d operations, %d of unknown outcome: linearizable", len(h.operations), h.unknown)
		return
	case porcupine.Unknown:
		t.Errorf("%d operations, %d of unknown outcome: no order was found in %s, and none excluded", len(h.operations), h.unknown, checkTimeout)
		return
	}
	for _, part := range register.Partition(h.operations) {
		if porcupine.CheckOperationsTimeout(register, part, checkTimeout) != porcupine.Illegal {
			continue
		}
		slices.SortFunc(part, func(a, b porcupine.Operation) int { return cmp.Compare(a.Call, b.Call) })
		for _, o := range part {
			t.Logf("client %d, %s to %s: %s", o.ClientId, time.Duration(o.Call), time.Duration(o.Return), register.DescribeOperation(o.Input, o.Output))
		}
	}
	page := filepath.Join(dir, "history.html")
	if err := porcupine.VisualizePath(register, info, page); err != nil {
		page = err.Error()
	}
	t.Errorf("the history is not linearizable; it is drawn in %s", page)
}

// TestTheJudge judges the judge: histories that are known to be wrong or right.
func TestTheJudge(t *testing.T) {
	read := func(value string) outcome { return outcome{known: true, value: value} }
	done, refused, unknown := outcome{known: true, done: true}, outcome{known: true}, outcome{}
	const forever = math.MaxInt64
	type entry = porcupine.Operation
	for _, c := range []struct {
		what    string
		history []entry
		want    porcupine.CheckResult
	}{
		{"a write is lost", []entry{
			{Input: operation{"k", put, "a", ""}, Output: done, Call: 0, Return: 10},
			{Input: operation{"k", get, "", ""}, Output: read(""), Call: 20, Return: 30}}, porcupine.Illegal},
		{"what was read before is read after", []entry{
			{Input: operation{"k", put, "a", ""}, Output: done, Call: 0, Return: 100},
			{ClientId: 1, Input: operation{"k", get, "", ""}, Output: read("a"), Call: 10, Return: 20},
			{ClientId: 2, Input: operation{"k", get, "", ""}, Output: read(""), Call: 30, Return: 40}}, porcupine.Illegal},
		{"two replace the same", []entry{
			{Input: operation{"k", cas, "a", ""}, Output: done, Call: 0, Return: 10},
			{ClientId: 1, Input: operation{"k", cas, "b", ""}, Output: done, Call: 5, Return: 15}}, porcupine.Illegal},
		{"what fits is refused", []entry{
			{Input: operation{"k", put, "a", ""}, Output: done, Call: 0, Return: 10},
			{Input: operation{"k", cas, "b", "a"}, Output: refused, Call: 20, Return: 30}}, porcupine.Illegal},
		{"it is registered again by nobody", []entry{
			{Input: operation{"i", put, "a", ""}, Output: done, Call: 0, Return: 100},
			{ClientId: 1, Input: operation{"i", get, "", ""}, Output: read("a"), Call: 10, Return: 20},
			{ClientId: 1, Input: operation{"i", del, "", ""}, Output: done, Call: 30, Return: 40},
			{ClientId: 1, Input: operation{"i", get, "", ""}, Output: read(""), Call: 50, Return: 60},
			{ClientId: 1, Input: operation{"i", get, "", ""}, Output: read("a"), Call: 70, Return: 80}}, porcupine.Illegal},
		{"an unknown write shows late", []entry{
			{Input: operation{"k", put, "a", ""}, Output: unknown, Call: 0, Return: forever},
			{ClientId: 1, Input: operation{"k", get, "", ""}, Output: read(""), Call: 10, Return: 20},
			{ClientId: 1, Input: operation{"k", get, "", ""}, Output: read("a"), Call: 30, Return: 40}}, porcupine.Ok},
		{"an unknown write never shows", []entry{
			{Input: operation{"k", put, "a", ""}, Output: unknown, Call: 0, Return: forever},
			{ClientId: 1, Input: operation{"k", get, "", ""}, Output: read(""), Call: 10, Return: 20}}, porcupine.Ok},
		{"two registers", []entry{
			{Input: operation{"k", put, "a", ""}, Output: done, Call: 0, Return: 10},
			{Input: operation{"l", get, "", ""}, Output: read(""), Call: 20, Return: 30}}, porcupine.Ok},
	} {
		if got := porcupine.CheckOperations(register, c.history); got != (c.want == porcupine.Ok) {
			t.Errorf("%s: judged %v", c.what, got)
		}
	}
	// A wrong history is drawn.
	wrong := []entry{{Input: operation{"k", get, "", ""}, Output: read("x"), Call: 0, Return: 10}}
	_, info := porcupine.CheckOperationsVerbose(register, wrong, checkTimeout)
	page := filepath.Join(t.TempDir(), "history.html")
	if err := porcupine.VisualizePath(register, info, page); err != nil {
		t.Fatal(err)
	}
	if size, err := os.Stat(page); err != nil || size.Size() == 0 {
		t.Errorf("the page: %v %v", size, err)
	}
}
