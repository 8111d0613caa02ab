package api

import (
	"testing"
	"time"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/client"
	"github.com/weftmesh/weft/control"
)

func TestWhyAProxyHasNotTheChange(t *testing.T) {
	acked, begun := time.Unix(100, 0), time.Unix(200, 0)
	for name, tt := range map[string]struct {
		proxy  control.Receipt
		behind uint64
		has    bool
		since  time.Time
		why    string
	}{
		"it has it":        {proxy: control.Receipt{Connected: true, Acked: 7, Since: acked}, has: true, since: acked},
		"has, and is gone": {proxy: control.Receipt{Acked: 8, Since: acked}, has: true, since: acked},
		"on its way":       {proxy: control.Receipt{Connected: true, Acked: 6, Since: acked, Waiting: begun}, since: begun, why: "it has not acknowledged the change"},
		"gone":             {proxy: control.Receipt{Acked: 6, Since: acked, Waiting: begun}, since: acked, why: "it is not connected: it goes on with what it has, if it runs"},
		"refused":          {proxy: control.Receipt{Connected: true, Acked: 6, Since: acked, Refused: "bad"}, since: acked, why: "it refused the change: bad"},
		"server is behind": {proxy: control.Receipt{Connected: true, Acked: 6, Since: acked}, behind: 3, since: acked, why: "its server is behind by 3"},
	} {
		r := receiptOf(&tt.proxy, &client.ServerReceipt{Server: "a", Behind: tt.behind}, 7)
		if r.Has != tt.has || !r.Since.Equal(tt.since) || r.Why != tt.why || r.Server != "a" {
			t.Errorf("%s: %+v", name, r)
		}
	}
}

func TestReceiptsHistoryGuardsAndDrains(t *testing.T) {
	h := openHouse(t)
	web := weft.NewServiceName("", "web")
	for i, id := range []string{"web-1", "web-2"} {
		_, err := h.registry.Register(t.Context(), weft.Instance{ID: id, Service: web, Address: "10.0.0.1", Port: 80 + i})
		check(t, err)
	}
	d, err := h.DrainInstance(t.Context(), "", "web-1", client.DrainOptions{Deadline: weft.Duration(time.Second)})
	if err != nil || d.Node != "laptop" || d.Service != "web.default" || d.Index == 0 || len(d.Acked)+len(d.Waiting) != 0 {
		t.Errorf("drained: %+v, %v", d, err)
	}
	r, err := h.Receipts(t.Context(), web)
	if err != nil || r.Index != d.Index || len(r.Changes) != 1 || r.Changes[0].Instance != "web-1" || r.Changes[0].By != "weft's API, from 127.0.0.1" {
		t.Errorf("receipts: %+v, %v", r, err)
	}
	check(t, h.EndDrain(t.Context(), "laptop", "web-1"))
	if list, _ := h.registry.Endpoints(web); len(list) != 2 {
		t.Errorf("after the drain: %+v", list)
	}
	past, err := h.History(t.Context(), web, time.Hour)
	if err != nil || len(past.Start) != 0 || len(past.Changes) != 4 || past.Changes[0].Instance != "web-1" || past.Changes[3].Index <= d.Index {
		t.Errorf("history: %+v, %v", past, err)
	}
	if list, err := h.Guards(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("guards: %+v, %v", list, err)
	}
	_, unknown := h.Receipts(t.Context(), weft.NewServiceName("", "nobody"))
	_, noHistory := h.History(t.Context(), weft.NewServiceName("", "nobody"), time.Hour)
	_, noDrain := h.DrainInstance(t.Context(), "", "nobody", client.DrainOptions{})
	_, elsewhere := h.DrainInstance(t.Context(), "moon", "web-1", client.DrainOptions{})
	for what, err := range map[string]error{"receipts": unknown, "history": noHistory, "drain": noDrain, "drain on another node": elsewhere,
		"end of a drain": h.EndDrain(t.Context(), "", "nobody"), "release": h.ReleaseGuard(t.Context(), web)} {
		if weft.KindOf(err) != weft.NotFound {
			t.Errorf("%s of what is not there: %v", what, err)
		}
	}
}
