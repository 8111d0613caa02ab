package consul

import (
	"bytes"

	"github.com/weftmesh/weft"
)

// pieces are the parts of an answer about all services: encoded, and good while their
// service is at the index that they were made at. So a change costs the encoding of one
// service, however many there are.
type pieces map[weft.ServiceName]piece

type piece struct {
	index uint64
	json  []byte // empty when there is nothing to tell of the service
}

func (p pieces) size() (n int) {
	for name, one := range p {
		n += len(name.Namespace) + len(name.Name) + len(one.json) + 96 // of the map
	}
	return n
}

// assemble puts an answer together: what comes first, then one piece for each service
// of the namespace, between the two brackets. Pieces that are still good are not made
// again. The registry must have been asked for the answer's index before.
func (a *api) assemble(namespace, brackets string, first []byte, was pieces, encode func(weft.ServiceName, []*weft.Instance) ([]byte, error)) ([]byte, pieces, error) {
	names, _ := a.registry.ServiceNames()
	now := make(pieces, len(names))
	var body bytes.Buffer
	body.WriteByte(brackets[0])
	body.Write(first)
	for _, name := range names {
		if name.Namespace != namespace {
			continue
		}
		instances, index := a.registry.Instances(name)
		p, known := was[name]
		if !known || p.index != index {
			b, err := encode(name, instances)
			if err != nil {
				return nil, nil, weft.Errorf(weft.Internal, "encode answer", name.String(), "%w", err)
			}
			p = piece{index, b}
		}
		now[name] = p
		if len(p.json) > 0 {
			if body.Len() > 1 {
				body.WriteByte(',')
			}
			body.Write(p.json)
		}
	}
	body.WriteString(brackets[1:] + "\n")
	return body.Bytes(), now, nil
}
