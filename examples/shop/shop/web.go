package shop

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"go.opentelemetry.io/otel/trace"
)

// access names who serves, keeps bodies small, and logs each request at debug.
func (s *service) access(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		began := time.Now()
		w.Header().Set("X-Served-By", s.servedBy)
		r.Body = http.MaxBytesReader(w, r.Body, maxBody)
		noted := &notedWriter{ResponseWriter: w, code: http.StatusOK}
		next.ServeHTTP(noted, r)
		s.log.Debug("request", "method", r.Method, "path", r.URL.Path, "status", noted.code, "duration", time.Since(began),
			"served_by", s.servedBy, "trace_id", trace.SpanContextFromContext(r.Context()).TraceID())
	})
}

// notedWriter notes the status.
type notedWriter struct {
	http.ResponseWriter
	code int
}

func (w *notedWriter) WriteHeader(code int) {
	w.code = code
	w.ResponseWriter.WriteHeader(code)
}

// answer writes v as JSON.
func (s *service) answer(w http.ResponseWriter, code int, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		s.log.Error("answer not encoded", "error", err)
		code, body = http.StatusInternalServerError, []byte(`{"error":"the answer cannot be encoded"}`)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_, _ = w.Write(append(body, '\n')) // a caller that has gone needs no answer
}

// refuse answers an error with its reason.
func (s *service) refuse(w http.ResponseWriter, code int, format string, args ...any) {
	s.answer(w, code, map[string]string{"error": fmt.Sprintf(format, args...)})
}

// read decodes a JSON body into v, which keeps its defaults for what is absent;
// an empty body is all defaults. It answers and returns false when it cannot.
func (s *service) read(w http.ResponseWriter, r *http.Request, v any) bool {
	err := json.NewDecoder(r.Body).Decode(v)
	var large *http.MaxBytesError
	switch {
	case err == nil, errors.Is(err, io.EOF):
		return true
	case errors.As(err, &large):
		s.refuse(w, http.StatusRequestEntityTooLarge, "the body is larger than %d bytes", maxBody)
	default:
		s.refuse(w, http.StatusBadRequest, "the body is not the JSON that is wanted: %v", err)
	}
	return false
}

// limit reads ?limit=, from 1 to 100. It answers and returns false when it is
// something else.
func (s *service) limit(w http.ResponseWriter, r *http.Request, byDefault int) (int, bool) {
	text := r.URL.Query().Get("limit")
	if text == "" {
		return byDefault, true
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 || n > 100 {
		s.refuse(w, http.StatusBadRequest, "limit is %q: it must be a number from 1 to 100", text)
		return 0, false
	}
	return n, true
}

// call gets a JSON document from another service, and decodes it into v.
func (s *service) call(ctx context.Context, service, path string, v any) error {
	base := s.upstreams[service]
	if base == "" {
		base = "http://" + service
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, base+path, nil)
	if err != nil {
		return fmt.Errorf("%s: %w", service, err)
	}
	resp, err := s.web.Do(req)
	if err != nil {
		var u *url.Error
		if errors.As(err, &u) {
			err = u.Err // without the URL, which is the service again
		}
		return fmt.Errorf("%s: %w", service, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxBody))
	switch {
	case err != nil:
		return fmt.Errorf("%s: %w", service, err)
	case resp.StatusCode != http.StatusOK:
		return fmt.Errorf("%s: %s: %.200s", service, resp.Status, strings.TrimSpace(string(body)))
	}
	if err := json.Unmarshal(body, v); err != nil {
		return fmt.Errorf("%s: its answer is not the JSON that is wanted: %w", service, err)
	}
	return nil
}
