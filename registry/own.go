package registry

import (
	"bytes"
	"encoding/json"
	"slices"

	"github.com/weftmesh/weft"
)

// ownInstance returns what the record of an instance says, sharing no memory with the
// instance. Reading the record does it; but as most instances come back as they went,
// a copy of those takes a fraction of the time.
func ownInstance(in *weft.Instance, record []byte) (*weft.Instance, error) {
	own := new(weft.Instance)
	if in.Extra != nil || bytes.Contains(record, badText) {
		return own, json.Unmarshal(record, own)
	}
	*own = *in
	own.Tags = ownSlice(in.Tags)
	own.Labels = ownMap(in.Labels)
	own.TaggedAddresses = ownMap(in.TaggedAddresses)
	own.Checks = ownSlice(in.Checks)
	for i := range own.Checks {
		c := &own.Checks[i]
		c.Args = ownSlice(c.Args)
		c.Header = ownMap(c.Header)
		for name, values := range c.Header {
			c.Header[name] = slices.Clone(values)
		}
	}
	return own, nil
}

// badText is how JSON writes what is no UTF-8.
var badText = []byte(`\ufffd`)

// pool finds equal texts, tags and labels, so that the instances of a service share
// them: they are a third of what a large catalogue takes. It is not safe for
// concurrent use. Whatever it has it also gave out, so it need not be exact, and begins
// anew when there is too much in it.
type pool struct {
	texts  map[string]string
	tags   map[string][]string
	labels map[string]map[string]string
	key    []byte   // of a lookup
	names  []string // of labels
}

// maxPool bounds what a pool has of each kind.
const maxPool = 1 << 16

// share lets an instance share what others have, too. Nobody else has it yet.
func (p *pool) share(in *weft.Instance) {
	for _, s := range [...]*string{
		&in.Service.Namespace, &in.Service.Name, &in.Zone, &in.Dialect,
		(*string)(&in.Protocol), (*string)(&in.Identity),
	} {
		p.text(s)
	}
	p.shareTags(in)
	p.shareLabels(in)
	for i := range in.Checks {
		c := &in.Checks[i]
		p.text(&c.Name)
		p.text((*string)(&c.Kind))
	}
}

func (p *pool) text(s *string) {
	if *s == "" {
		return
	}
	if same, ok := p.texts[*s]; ok {
		*s = same
		return
	}
	if p.texts == nil || len(p.texts) >= maxPool {
		p.texts = make(map[string]string)
	}
	p.texts[*s] = *s
}

func (p *pool) shareTags(in *weft.Instance) {
	if len(in.Tags) == 0 {
		return
	}
	p.key = p.key[:0]
	for _, tag := range in.Tags {
		p.add(tag)
	}
	if same, ok := p.tags[string(p.key)]; ok {
		in.Tags = same
		return
	}
	if p.tags == nil || len(p.tags) >= maxPool {
		p.tags = make(map[string][]string)
	}
	p.tags[string(p.key)] = in.Tags
}

func (p *pool) shareLabels(in *weft.Instance) {
	if len(in.Labels) == 0 {
		return
	}
	p.names = p.names[:0]
	for name := range in.Labels {
		p.names = append(p.names, name)
	}
	slices.Sort(p.names)
	p.key = p.key[:0]
	for _, name := range p.names {
		p.add(name)
		p.add(in.Labels[name])
	}
	if same, ok := p.labels[string(p.key)]; ok {
		in.Labels = same
		return
	}
	if p.labels == nil || len(p.labels) >= maxPool {
		p.labels = make(map[string]map[string]string)
	}
	p.labels[string(p.key)] = in.Labels
}

// add adds a text to the key, such that other texts make another key.
func (p *pool) add(s string) {
	n := len(s)
	p.key = append(p.key, byte(n), byte(n>>8), byte(n>>16))
	p.key = append(p.key, s...)
}
