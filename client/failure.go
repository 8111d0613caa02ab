package client

import (
	"errors"

	"github.com/weftmesh/weft"
)

// Failure is the JSON body of every answer that is not 2xx.
type Failure struct {
	// Kind is "internal", "invalid", "not-found", "conflict", "denied",
	// "unavailable" or "too-large".
	Kind    string `json:"kind"`
	Op      string `json:"op,omitempty"`    // what was tried: "delete"
	Thing   string `json:"thing,omitempty"` // on what: "VirtualService default/order-service"
	Message string `json:"message"`         // the cause
	// Problems is everything that is wrong with what was sent, warnings
	// included, each with its file and line.
	Problems weft.Problems `json:"problems,omitempty"`
}

// kindNames is indexed by weft.Kind.
var kindNames = [...]string{"internal", "invalid", "not-found", "conflict", "denied", "unavailable", "too-large"}

// NewFailure describes err for the wire.
func NewFailure(err error) Failure {
	var f Failure
	kind := weft.KindOf(err)
	cause := err
	var e *weft.Error
	if errors.As(err, &e) {
		f.Op, f.Thing, cause = e.Op, e.Thing, e.Err
	}
	if errors.As(err, &f.Problems) && e == nil {
		kind = weft.Invalid
	}
	f.Kind = kindNames[kind]
	if cause != nil {
		f.Message = cause.Error()
	}
	return f
}

// err rebuilds the error. op and thing are used where the server named none.
func (f Failure) err(op, thing string) error {
	e := &weft.Error{Kind: weft.Internal, Op: f.Op, Thing: f.Thing}
	for k, name := range kindNames {
		if name == f.Kind {
			e.Kind = weft.Kind(k)
		}
	}
	if e.Op == "" {
		e.Op, e.Thing = op, thing
	}
	switch {
	case len(f.Problems) > 0:
		e.Err = f.Problems
	case f.Message != "":
		e.Err = errors.New(f.Message)
	}
	return e
}
