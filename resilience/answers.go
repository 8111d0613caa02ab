package resilience

import (
	"bytes"
	"container/list"
	"crypto/sha256"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// lastAnswers are the last good answers to GET and HEAD requests. It is no cache:
// nothing is answered from it while the service answers. The zero value is empty.
type lastAnswers struct {
	mu      sync.Mutex
	answers map[answerKey]*list.Element
	order   list.List // of *lastAnswer, the one used last in front
}

// answerKey stands for a request. Who asks is part of it, so that nobody gets
// somebody else's answer.
type answerKey [sha256.Size]byte

// lastAnswer is immutable.
type lastAnswer struct {
	key    answerKey
	at     time.Time
	status int
	header http.Header
	body   []byte
}

// varied are the request's headers that an answer may depend on. An answer whose
// Vary names another one is not kept.
var varied = [...]string{"Authorization", "Cookie", "Accept", "Accept-Language", "Accept-Encoding", "Origin"}

// keyOf a request. ok is false when answers to it are not kept.
func keyOf(req *http.Request) (key answerKey, ok bool) {
	if m := methodOf(req); m != http.MethodGet && m != http.MethodHead || req.Body != nil && req.Body != http.NoBody || req.Header.Get("Range") != "" {
		return key, false
	}
	h := sha256.New()
	for _, part := range []string{methodOf(req), req.Host, req.URL.String()} {
		writePart(h, part)
	}
	for _, name := range varied {
		writePart(h, strings.Join(req.Header.Values(name), "\n"))
	}
	h.Sum(key[:0])
	return key, true
}

// keepable reports whether a response may be given again to who asked for it.
func keepable(resp *http.Response) bool {
	switch resp.StatusCode {
	case 200, 203, 204, 404, 410:
	default:
		return false
	}
	return len(resp.Header.Values("Set-Cookie")) == 0 &&
		!slices.ContainsFunc(items(resp.Header, "Cache-Control"), func(item string) bool { return strings.EqualFold(item, "no-store") }) &&
		!slices.ContainsFunc(items(resp.Header, "Vary"), func(item string) bool {
			return !slices.ContainsFunc(varied[:], func(name string) bool { return strings.EqualFold(item, name) })
		})
}

// items of a header that is a list.
func items(header http.Header, name string) []string {
	var all []string
	for _, line := range header.Values(name) {
		for item := range strings.SplitSeq(line, ",") {
			if item = strings.TrimSpace(item); item != "" {
				all = append(all, item)
			}
		}
	}
	return all
}

// keep returns resp, whose body is remembered while it is read if the spec says so.
func (l *lastAnswers) keep(req *http.Request, resp *http.Response, spec *CachedSpec) *http.Response {
	if spec == nil || !keepable(resp) {
		return resp
	}
	key, ok := keyOf(req)
	full := spec.withDefaults()
	if !ok || resp.ContentLength > int64(full.MaxBodyBytes) && req.Method != http.MethodHead {
		return resp
	}
	answer := &lastAnswer{key: key, at: time.Now(), status: resp.StatusCode, header: resp.Header.Clone()}
	if resp.Body == http.NoBody {
		l.put(answer, full.MaxEntries)
		return resp
	}
	resp.Body = &keptBody{ReadCloser: resp.Body, answers: l, answer: answer, spec: full}
	return resp
}

// keptBody copies what is read, and keeps it when that was all of it.
type keptBody struct {
	io.ReadCloser
	answers *lastAnswers
	answer  *lastAnswer // nil: it is too much, or kept
	spec    CachedSpec
}

func (b *keptBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if b.answer == nil {
		return n, err
	}
	switch {
	case len(b.answer.body)+n > b.spec.MaxBodyBytes, err != nil && err != io.EOF:
		b.answer = nil
	default:
		b.answer.body = append(b.answer.body, p[:n]...)
		if err == io.EOF {
			b.answers.put(b.answer, b.spec.MaxEntries)
			b.answer = nil
		}
	}
	return n, err
}

func (l *lastAnswers) put(a *lastAnswer, most int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.answers == nil {
		l.answers = map[answerKey]*list.Element{}
	}
	if old := l.answers[a.key]; old != nil {
		l.forget(old)
	}
	for l.order.Len() >= most {
		l.forget(l.order.Back())
	}
	l.answers[a.key] = l.order.PushFront(a)
}

func (l *lastAnswers) forget(el *list.Element) {
	l.order.Remove(el)
	delete(l.answers, el.Value.(*lastAnswer).key)
}

// find returns the last good answer to a request, nil if there is none or it is too
// old.
func (l *lastAnswers) find(req *http.Request, spec *CachedSpec) *http.Response {
	if spec == nil {
		return nil
	}
	key, ok := keyOf(req)
	if !ok {
		return nil
	}
	l.mu.Lock()
	el := l.answers[key]
	if el == nil {
		l.mu.Unlock()
		return nil
	}
	a := el.Value.(*lastAnswer)
	age := time.Since(a.at)
	if age > spec.withDefaults().MaxAge {
		l.forget(el)
		l.mu.Unlock()
		return nil
	}
	l.order.MoveToFront(el)
	l.mu.Unlock()
	header := a.header.Clone()
	header.Set("Age", strconv.Itoa(int(age/time.Second)))
	header.Set(fallbackHeader, "cached")
	resp := madeAnswer(req, a.status, header, nil)
	if len(a.body) > 0 {
		resp.Body = io.NopCloser(bytes.NewReader(a.body))
	}
	resp.ContentLength = int64(len(a.body))
	return resp
}
