package consul

import (
	"encoding/json"
	"net/http"
	"time"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/registry"
)

const (
	minSessionTTL    = 10 * time.Second
	maxSessionTTL    = 24 * time.Hour
	defaultLockDelay = 15 * time.Second
	maxLockDelay     = time.Minute
	// Integers of LockDelay below this are seconds, others nanoseconds.
	lockDelaySeconds = 1000
)

func (a *api) sessionEndpoints() endpoints {
	return endpoints{
		"session/create":   {put: a.sessionCreate},
		"session/destroy/": {put: a.sessionDestroy},
		"session/renew/":   {put: a.sessionRenew},
		"session/info/":    {get: a.sessionInfo},
		"session/node/":    {get: a.sessionNode},
		"session/list":     {get: a.sessionList},
	}
}

type serviceCheckRecord struct {
	ID        string
	Namespace string `json:",omitempty"`
}

type sessionRecord struct {
	ID            string
	Name          string
	Node          string
	LockDelay     time.Duration // nanoseconds
	Behavior      string
	TTL           string
	NodeChecks    []string
	ServiceChecks []serviceCheckRecord
	CreateIndex   uint64
	ModifyIndex   uint64
}

func newSessionRecord(s *registry.Session) sessionRecord {
	r := sessionRecord{
		ID: s.ID, Name: s.Name, Node: s.Node, LockDelay: s.LockDelay.Std(), Behavior: "release", TTL: durationText(s.TTL),
		NodeChecks: orNone(s.NodeChecks), CreateIndex: s.CreateIndex, ModifyIndex: s.ModifyIndex,
	}
	if s.DeleteKeys {
		r.Behavior = "delete"
	}
	for _, c := range s.ServiceChecks {
		r.ServiceChecks = append(r.ServiceChecks, serviceCheckRecord(c))
	}
	return r
}

// sessionBody is the body of session/create, which may also be missing.
type sessionBody struct {
	Name          string
	Node          string
	LockDelay     duration
	Behavior      string
	TTL           duration
	Checks        []string // the older form of NodeChecks
	NodeChecks    []string
	ServiceChecks []serviceCheckRecord
	Datacenter    string
}

// PUT /v1/session/create
func (a *api) sessionCreate(w http.ResponseWriter, q *query) error {
	var body sessionBody
	raw, err := readBody(w, q, maxBody)
	if err != nil {
		return err
	}
	if len(raw) > 0 {
		if err := unmarshal(raw, &body); err != nil {
			return weft.Errorf(weft.Invalid, "read body", q.request.URL.Path, "%w", err)
		}
	}
	if body.Datacenter != "" && body.Datacenter != a.registry.Datacenter() {
		return noPath(body.Datacenter)
	}
	s, err := body.session()
	if err != nil {
		return err
	}
	if s, err = a.registry.CreateSession(q.request.Context(), s); err != nil {
		return err
	}
	b, err := q.marshal(struct{ ID string }{s.ID})
	if err == nil {
		writeJSON(w, http.StatusOK, b)
	}
	return err
}

func (b *sessionBody) session() (s registry.Session, err error) {
	s = registry.Session{Name: b.Name, Node: b.Node, NodeChecks: b.NodeChecks}
	if s.NodeChecks == nil {
		s.NodeChecks = b.Checks // still nil when neither was given
	}
	for _, c := range b.ServiceChecks {
		s.ServiceChecks = append(s.ServiceChecks, registry.ServiceCheck(c))
	}
	invalid := func(format string, args ...any) (registry.Session, error) {
		return s, weft.Errorf(weft.Invalid, "create session", b.Name, format, args...)
	}
	switch b.Behavior {
	case "", "release":
	case "delete":
		s.DeleteKeys = true
	default:
		return invalid("Invalid Behavior setting '%s', want release or delete", b.Behavior)
	}
	if s.TTL, err = b.TTL.parse("TTL"); err != nil {
		return s, err
	}
	if ttl := s.TTL.Std(); ttl != 0 && (ttl < minSessionTTL || ttl > maxSessionTTL) {
		return invalid("Invalid Session TTL '%d', must be between [%v=%v]", ttl, minSessionTTL, maxSessionTTL)
	}
	s.LockDelay, err = b.lockDelay()
	return s, err
}

func (b *sessionBody) lockDelay() (weft.Duration, error) {
	if b.LockDelay == "" || b.LockDelay == `""` || b.LockDelay == "null" {
		return weft.Duration(defaultLockDelay), nil
	}
	var seconds int64
	if json.Unmarshal([]byte(b.LockDelay), &seconds) == nil && seconds > 0 && seconds < lockDelaySeconds {
		return weft.Duration(min(time.Duration(seconds)*time.Second, maxLockDelay)), nil
	}
	d, err := b.LockDelay.parse("LockDelay")
	if err == nil && d < 0 {
		err = weft.Errorf(weft.Invalid, "read LockDelay", d.String(), "is negative")
	}
	return min(d, weft.Duration(maxLockDelay)), err
}

// PUT /v1/session/destroy/{id}. One that is not there is as good as destroyed.
func (a *api) sessionDestroy(w http.ResponseWriter, q *query) error {
	id, err := q.need("session")
	if err != nil {
		return err
	}
	if _, err := a.registry.DestroySession(q.request.Context(), id); err != nil {
		return err
	}
	return a.done(w, q)
}

// PUT /v1/session/renew/{id}
func (a *api) sessionRenew(w http.ResponseWriter, q *query) error {
	id, err := q.need("session")
	if err != nil {
		return err
	}
	s, err := a.registry.RenewSession(q.request.Context(), id)
	if err != nil {
		return err
	}
	if s == nil {
		return &plainError{http.StatusNotFound, "Session id '" + id + "' not found"}
	}
	return a.fixed(w, q, []sessionRecord{newSessionRecord(s)})
}

// GET /v1/session/info/{id}: a list of one, or of none.
func (a *api) sessionInfo(w http.ResponseWriter, q *query) error {
	id, err := q.need("session")
	if err != nil {
		return err
	}
	return a.answer(w, q, view{topic: registry.SessionTopic(id), build: func() (any, uint64) {
		s, index := a.registry.Session(id)
		if s == nil {
			return []sessionRecord{}, index
		}
		return []sessionRecord{newSessionRecord(s)}, index
	}})
}

// GET /v1/session/node/{name}
func (a *api) sessionNode(w http.ResponseWriter, q *query) error {
	node, err := q.need("node name")
	if err != nil {
		return err
	}
	return a.answerSessions(w, q, node)
}

// GET /v1/session/list
func (a *api) sessionList(w http.ResponseWriter, q *query) error { return a.answerSessions(w, q, "") }

func (a *api) answerSessions(w http.ResponseWriter, q *query, node string) error {
	return a.answer(w, q, view{topic: registry.SessionsTopic(node), build: func() (any, uint64) {
		sessions, index := a.registry.Sessions(node)
		out := make([]sessionRecord, 0, len(sessions))
		for _, s := range sessions {
			out = append(out, newSessionRecord(s))
		}
		return out, index
	}})
}
