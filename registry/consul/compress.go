package consul

import (
	"compress/gzip"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// minCompressed is the size from which an answer is compressed for those who take
// it so. Clients ask for it always; below this it costs more time than it saves.
const minCompressed = 64 << 10

var compressors = sync.Pool{New: func() any {
	z, err := gzip.NewWriterLevel(nil, gzip.BestSpeed)
	if err != nil {
		panic("consul: gzip has no best speed: " + err.Error())
	}
	return z
}}

// accepted says whether a request takes gzip.
func accepted(r *http.Request) bool {
	return slices.ContainsFunc(r.Header["Accept-Encoding"], acceptsGzip)
}

// acceptsGzip reads a value of Accept-Encoding.
func acceptsGzip(header string) bool {
	if header == "gzip" { // as most clients send it
		return true
	}
	for coding := range strings.SplitSeq(header, ",") {
		name, quality, _ := strings.Cut(strings.TrimSpace(coding), ";")
		if strings.EqualFold(strings.TrimSpace(name), "gzip") && strings.ReplaceAll(quality, " ", "") != "q=0" {
			return true
		}
	}
	return false
}

// writeAnswer is writeJSON, compressed where that pays.
func (q *query) writeAnswer(w http.ResponseWriter, status int, body []byte) {
	if len(body) < minCompressed || !accepted(q.request) {
		writeJSON(w, status, body)
		return
	}
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Content-Encoding", "gzip")
	h.Add("Vary", "Accept-Encoding")
	w.WriteHeader(status)
	z := compressors.Get().(*gzip.Writer)
	z.Reset(w)
	z.Write(body) // an error here means that the client has gone
	z.Close()
	z.Reset(nil)
	compressors.Put(z)
}

func writeJSON(w http.ResponseWriter, status int, body []byte) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	w.Write(body) // an error here means that the client has gone
}
