package client

import (
	"time"
)

// TraceQuery chooses traces. Zero values ask nothing.
type TraceQuery struct {
	Service     string        // some span is of this service
	Since       time.Time     // began at or after
	MinDuration time.Duration // took at least so long
	Errors      bool          // only traces with a failed span
	Limit       int           // at most so many; the server's own limit is 1000, its default 20
}

// TraceSummary is one line of the list of traces.
type TraceSummary struct {
	ID         string    `json:"id"`        // 32 hex digits
	Service    string    `json:"service"`   // of the first span
	Operation  string    `json:"operation"` // of the first span
	Start      time.Time `json:"start"`
	DurationMS float64   `json:"durationMs"` // from the first span's start to the last one's end
	Spans      int       `json:"spans"`
	Errors     int       `json:"errors"`   // failed spans
	Services   []string  `json:"services"` // sorted
}

// Trace is all spans of one trace that the server has, sorted by start.
type Trace struct {
	ID    string `json:"id"`
	Spans []Span `json:"spans"`
}

// Span is one piece of work in a trace.
type Span struct {
	ID         string            `json:"id"`               // 16 hex digits
	Parent     string            `json:"parent,omitempty"` // "" at the root
	Service    string            `json:"service"`
	Operation  string            `json:"operation"`
	Kind       string            `json:"kind,omitempty"` // "server", "client", "internal", "producer", "consumer"
	Start      time.Time         `json:"start"`
	DurationMS float64           `json:"durationMs"`
	Error      bool              `json:"error,omitempty"`
	Message    string            `json:"message,omitempty"` // of an error
	Attributes map[string]string `json:"attributes,omitempty"`
}
