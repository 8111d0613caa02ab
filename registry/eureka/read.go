package eureka

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"hash/crc64"
	"net/http"
	"strconv"
	"strings"
	"sync"

	"github.com/weftmesh/weft"
)

// answer is a body, which is compressed when somebody asks for it so.
type answer struct {
	plain []byte
	etag  uint64

	once   sync.Once
	packed []byte
}

func newAnswer(b []byte) *answer { return &answer{plain: b, etag: crc64.Checksum(b, crc64Table)} }

func (a *answer) gzip() []byte {
	a.once.Do(func() {
		var b bytes.Buffer
		z, _ := gzip.NewWriterLevel(&b, gzip.BestSpeed) // fails for unknown levels only
		z.Write(a.plain)                                // a bytes.Buffer takes everything
		z.Close()
		a.packed = b.Bytes()
	})
	return a.packed
}

// form is the one that the request wants.
func (c *call) form() form {
	compact := c.r.Header.Get("X-Eureka-Accept") == "compact"
	switch json := strings.Contains(strings.Join(c.r.Header.Values("Accept"), ","), "json"); {
	case json && compact:
		return jsonCompact
	case json:
		return jsonFull
	case compact:
		return xmlCompact
	}
	return xmlFull
}

// takesGzip reads Accept-Encoding (RFC 9110 §12.5.3).
func (c *call) takesGzip() bool {
	for item := range strings.SplitSeq(strings.Join(c.r.Header.Values("Accept-Encoding"), ","), ",") {
		name, params, _ := strings.Cut(item, ";")
		name = strings.ToLower(strings.TrimSpace(name))
		if name != "gzip" && name != "x-gzip" && name != "*" {
			continue
		}
		q, ok := strings.CutPrefix(strings.ReplaceAll(params, " ", ""), "q=")
		weight, err := strconv.ParseFloat(q, 64)
		return !ok || err == nil && weight > 0
	}
	return false
}

// answered sets the headers of an answer, and answers 304 when the client has it.
func (c *call) answered(f form, etag uint64, packed bool, size int) bool {
	h := c.w.Header()
	h.Set("Vary", "Accept, Accept-Encoding, X-Eureka-Accept")
	h.Set("Cache-Control", "no-cache") // a cache must ask every time
	tag := fmt.Sprintf("%016x-%d", etag, f)
	if packed {
		tag += "z"
	}
	tag = `"` + tag + `"`
	h.Set("ETag", tag)
	for item := range strings.SplitSeq(c.r.Header.Get("If-None-Match"), ",") {
		item = strings.TrimPrefix(strings.TrimSpace(item), "W/")
		if item == tag || item == "*" {
			c.w.WriteHeader(http.StatusNotModified)
			return true
		}
	}
	h.Set("Content-Type", f.contentType())
	h.Set("Content-Length", strconv.Itoa(size))
	if packed {
		h.Set("Content-Encoding", "gzip")
	}
	return c.r.Method == http.MethodHead
}

// give answers with a body. A client that is gone is no failure of ours.
func (c *call) give(f form, a *answer) error {
	body, packed := a.plain, c.takesGzip()
	if packed {
		body = a.gzip()
	}
	if !c.answered(f, a.etag, packed, len(body)) {
		_, _ = c.w.Write(body)
	}
	return nil
}

// getApps: GET /apps. Other regions than this one are not known.
func (a *API) getApps(c *call) error {
	p, f := a.view.current(), c.form()
	s := p.stream(f)
	tellPreserved(c.w, p.preserved())
	packed := c.takesGzip()
	size := s.size
	if packed {
		size = s.packed
	}
	if c.answered(f, s.etag, packed, size) {
		return nil
	}
	write := s.writePlain
	if packed {
		write = s.writePacked
	}
	_ = write(c.w) // a client that is gone is no failure of ours
	return nil
}

// getDelta: GET /apps/delta
func (a *API) getDelta(c *call) error {
	f := c.form()
	d := a.view.delta(f)
	if d == nil {
		return weft.Errorf(weft.Denied, "read", "the delta", "too much was deregistered in the last %s; fetch the full list", retention)
	}
	tellPreserved(c.w, a.view.current().preserved())
	return c.give(f, d)
}

// getApp: GET /apps/{app}
func (a *API) getApp(c *call) error {
	name := strings.ToUpper(c.args[0])
	found := a.view.current().app(name)
	if found == nil || len(found.rows) == 0 {
		return weft.Errorf(weft.NotFound, "find", "application "+name, "it has no instances")
	}
	f := c.form()
	tellPreserved(c.w, found.ifPreserved())
	b := f.appendApp(nil, found.name, found.rows, alwaysAdded)
	if f.json() {
		b = append(append([]byte(`{"application":`), b...), '}')
	}
	return c.give(f, newAnswer(b))
}

// getInstance: GET /apps/{app}/{id}
func (a *API) getInstance(c *call) error {
	found := a.view.current().app(strings.ToUpper(c.args[0]))
	w := found.row(c.args[1])
	if w == nil {
		return noInstance(c.args[0], c.args[1])
	}
	return c.giveRow(found, w)
}

// getInstanceByID: GET /instances/{id}
func (a *API) getInstanceByID(c *call) error {
	for _, app := range a.view.current().apps {
		if w := app.row(c.args[0]); w != nil {
			return c.giveRow(app, w)
		}
	}
	return weft.Errorf(weft.NotFound, "find", "instance "+c.args[0], "no application has it")
}

func (c *call) giveRow(of *app, w *row) error {
	if w.lapsed || of.keeps(w.in.Key()) {
		tellPreserved(c.w, of.ifPreserved())
	}
	f, r := c.form(), w.record()
	return c.give(f, newAnswer(f.appendInstance(nil, &r)))
}

func noInstance(app, id string) error {
	return weft.Errorf(weft.NotFound, "find", "instance "+strings.ToUpper(app)+"/"+id, "it is not registered")
}

// getVIP: GET /vips/{address}
func (a *API) getVIP(c *call) error { return a.giveVIP(c, false) }

// getSecureVIP: GET /svips/{address}
func (a *API) getSecureVIP(c *call) error { return a.giveVIP(c, true) }

func (a *API) giveVIP(c *call, secure bool) error {
	f := c.form()
	var b []byte
	var n counts
	var preserved []*app
	for _, app := range a.view.current().apps {
		var rows []*row
		for _, w := range app.rows {
			if w.hasVIP(c.args[0], secure) {
				rows = append(rows, w)
				n[w.status.place()]++
			}
		}
		if len(rows) == 0 {
			continue
		}
		if f.json() && len(b) > 0 {
			b = append(b, ',')
		}
		preserved = append(preserved, app.ifPreserved()...)
		b = f.appendApp(b, app.name, rows, alwaysAdded)
	}
	if b == nil {
		return weft.Errorf(weft.NotFound, "find", "VIP address "+c.args[0], "no instance has it")
	}
	tellPreserved(c.w, preserved)
	return c.give(f, newAnswer([]byte(f.listHead(n.hash())+string(b)+f.listTail())))
}

// tellPreserved names applications that show instances as healthy that are not, in a
// header that a person finds who looks at an answer.
func tellPreserved(w http.ResponseWriter, apps []*app) {
	const most = 8
	for i, a := range apps {
		if i == most {
			w.Header().Add("X-Weft-Preserved", fmt.Sprintf("%d more; see /eureka/status", len(apps)-most))
			return
		}
		w.Header().Add("X-Weft-Preserved", headerSafe(a.name+": "+strings.Join(a.reasons(), "; ")))
	}
}

// headerSafe leaves what a header's value can hold.
func headerSafe(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, s)
}
