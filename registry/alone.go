package registry

import (
	"context"

	"github.com/weftmesh/weft/store"
)

// leadership is what a store tells of who leads. A store that is alone always does.
type leadership interface {
	IsLeader() bool
	LeaderChanged() <-chan struct{}
	Barrier(ctx context.Context) (rev int64, err error)
}

type alone struct{ store *store.Store }

func (alone) IsLeader() bool                 { return true }
func (alone) LeaderChanged() <-chan struct{} { return nil }
func (a alone) Barrier(ctx context.Context) (int64, error) {
	_, rev, err := a.store.List(ctx, fence)
	return rev, err
}
