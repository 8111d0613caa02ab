package registry

import (
	"context"
	"encoding/json"
	"strings"
)

// maxActor bounds the name of who changes something, in bytes.
const maxActor = 256

type actorKey struct{}

// WithActor says who makes the writes that are made with the context, in a few words
// for people: "admin by weft apply", "sidecar of web-1". History tells it.
func WithActor(ctx context.Context, actor string) context.Context {
	if len(actor) > maxActor {
		actor = actor[:maxActor]
	}
	return context.WithValue(ctx, actorKey{}, strings.ToValidUTF8(actor, "?"))
}

// actorOf returns who makes a write, "" when nobody said so.
func actorOf(ctx context.Context) string {
	actor, _ := ctx.Value(actorKey{}).(string)
	return actor
}

// signature is what a record of an instance, a node or a guard says besides the noun.
type signature struct {
	By string `json:"by,omitempty"`
}

// signed puts a signature into the JSON of an object.
func signed(record []byte, by string) []byte {
	if by == "" {
		return record
	}
	text, _ := json.Marshal(by) // a text: cannot fail
	out := make([]byte, 0, len(record)+len(text)+len(`{"by":,`))
	out = append(out, `{"by":`...)
	out = append(out, text...)
	out = append(out, ',')
	return append(out, record[1:]...)
}

// signerOf returns who signed a record, "" when nobody did.
func signerOf(record []byte) string {
	var s signature
	if len(record) == 0 || json.Unmarshal(record, &s) != nil {
		return ""
	}
	return s.By
}

// aliasActor makes the changes that follow from others.
const aliasActor = "what its alias check looks at"

// departures is what the index cell of a service says of the change that put it: who
// took instances away. A deleted record says nothing itself.
type departures struct {
	By     string            `json:"by,omitempty"`     // of all
	Others map[string]string `json:"others,omitempty"` // of some another, by record
}

func (d *departures) add(record, by string, first bool) {
	switch {
	case first:
		d.By = by
	case d.By != by:
		if d.Others == nil {
			d.Others = make(map[string]string)
		}
		d.Others[record] = by
	}
}

func (d *departures) of(record string) string {
	if by, ok := d.Others[record]; ok {
		return by
	}
	return d.By
}

func (d *departures) encode() []byte {
	if d == nil || d.By == "" && d.Others == nil {
		return nil
	}
	b, _ := json.Marshal(d) // texts: cannot fail
	return b
}
