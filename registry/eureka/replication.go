package eureka

import (
	"context"
	"encoding/json"
	"net/http"

	"github.com/weftmesh/weft"
)

// replication is what another Eureka server passes on.
type replication struct {
	List []replicationItem `json:"replicationList"`
}

type replicationItem struct {
	App       string  `json:"appName"`
	ID        string  `json:"id"`
	LastDirty number  `json:"lastDirtyTimestamp"`
	Status    status  `json:"status"`
	Instance  *record `json:"instanceInfo"`
	Action    string  `json:"action"`
}

// replicated is the answer to one item of it.
type replicated struct {
	Code   int             `json:"statusCode"`
	Entity json.RawMessage `json:"responseEntity,omitempty"`
}

// maxReplicated bounds the items of a batch. Eureka's servers send 250.
const maxReplicated = 1000

// postBatch: POST /peerreplication/batch
//
// So a running Eureka server that has weft as a peer passes all on that its clients
// tell it. Nothing is passed back: weft's servers have one catalogue.
func (a *API) postBatch(c *call) error {
	body, err := readBody(c.w, c.r)
	if err != nil {
		return err
	}
	var batch replication
	if err := unmarshal(body, &batch); err != nil {
		return weft.Errorf(weft.Invalid, "read body", c.r.URL.Path, "%w", err)
	}
	if len(batch.List) > maxReplicated {
		return weft.Errorf(weft.TooLarge, "read body", c.r.URL.Path, "has %d items; the limit is %d", len(batch.List), maxReplicated)
	}
	answers := make([]replicated, 0, len(batch.List))
	for i := range batch.List {
		newer, err := a.replicate(c.context(), &batch.List[i])
		answers = append(answers, replicatedAs(newer, err))
	}
	b, err := json.Marshal(struct {
		List []replicated `json:"responseList"`
	}{answers})
	if err != nil {
		return err
	}
	c.w.Header().Set("Content-Type", "application/json")
	_, _ = c.w.Write(b)
	return nil
}

func (a *API) replicate(ctx context.Context, item *replicationItem) (newer *record, err error) {
	switch item.Action {
	case "Heartbeat":
		return a.renew(ctx, item.App, item.ID, item.LastDirty)
	case "Register":
		return nil, a.registerReplica(ctx, item.App, item.Instance)
	case "Cancel":
		return nil, a.cancel(ctx, item.App, item.ID)
	case "StatusUpdate":
		return nil, a.override(ctx, item.App, item.ID, item.Status.known(), item.LastDirty)
	case "DeleteStatusOverride":
		return nil, a.endOverride(ctx, item.App, item.ID, item.Status, item.LastDirty)
	}
	return nil, weft.Errorf(weft.Invalid, "replicate", item.Action, "is no action")
}

func (a *API) registerReplica(ctx context.Context, app string, r *record) error {
	if r == nil {
		return weft.Errorf(weft.Invalid, "replicate", app, "there is no instanceInfo")
	}
	r.normalize()
	if fault := r.fault(app); fault != "" {
		return weft.Errorf(weft.Invalid, "replicate", app, "%s", fault)
	}
	return a.register(ctx, r)
}

func replicatedAs(newer *record, err error) replicated {
	switch {
	case err != nil:
		return replicated{Code: statusOf(err)}
	case newer != nil:
		return replicated{Code: http.StatusConflict, Entity: jsonFull.appendJSON(nil, newer, added)}
	}
	return replicated{Code: http.StatusOK}
}
