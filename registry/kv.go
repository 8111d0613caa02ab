package registry

import (
	"github.com/weftmesh/weft"
)

// Entry is one key of a tree. Trees are apart from each other: KV is the users' own,
// which Consul's clients read and write; dialects keep what they have to keep in
// others ("acl/token", "query", "config", …).
type Entry struct {
	Key         string `json:"key"`
	Value       []byte `json:"value,omitempty"`
	Flags       uint64 `json:"flags,omitempty"`     // the client's; nobody here looks at them
	Session     string `json:"session,omitempty"`   // id of the session that holds the key's lock
	LockIndex   uint64 `json:"lockIndex,omitempty"` // how often the key was locked
	CreateIndex uint64 `json:"createIndex,omitempty"`
	ModifyIndex uint64 `json:"modifyIndex,omitempty"`
}

// KV is the name of the users' tree.
const KV = "kv"

// Session is a promise to be there, which locks on keys are bound to. It ends when
// its TTL passes without a renewal, when one of its checks is critical, when its
// node goes, or when it is destroyed.
type Session struct {
	ID            string         `json:"id"` // UUID; made when empty
	Name          string         `json:"name,omitempty"`
	Node          string         `json:"node"`                    // the own node when empty
	NodeChecks    []string       `json:"nodeChecks,omitempty"`    // ids of checks of the node
	ServiceChecks []ServiceCheck `json:"serviceChecks,omitempty"` // checks of its instances
	TTL           weft.Duration  `json:"ttl,omitempty"`           // 0 never lapses
	LockDelay     weft.Duration  `json:"lockDelay,omitempty"`     // how long a key cannot be locked after the session lost it
	DeleteKeys    bool           `json:"deleteKeys,omitempty"`    // at its end: its keys go; else they are released
	CreateIndex   uint64         `json:"createIndex,omitempty"`
	ModifyIndex   uint64         `json:"modifyIndex,omitempty"`
}

// ServiceCheck names a check of an instance that a session is bound to.
type ServiceCheck struct {
	ID        string `json:"id"`
	Namespace string `json:"namespace,omitempty"`
}
