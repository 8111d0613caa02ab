package client

import "time"

// TraceQuery chooses traces: those with a span that fits all of it. Zero values
// ask nothing.
type TraceQuery struct {
	Service     string        // the span is of this service
	Since       time.Duration // the span began no longer ago
	MinDuration time.Duration // the span took at least so long
	Errors      bool          // the span failed
	Limit       int           // at most so many traces: 20 when 0, at most 1000
}

// TraceSummary is one line of the list of traces.
type TraceSummary struct {
	ID         string    `json:"id"`        // 32 hex digits
	Service    string    `json:"service"`   // of the root span
	Operation  string    `json:"operation"` // of the root span
	Start      time.Time `json:"start"`
	DurationMS float64   `json:"durationMs"` // from the first start to the last end
	Spans      int       `json:"spans"`
	Services   []string  `json:"services"`            // all that took part, sorted
	Error      bool      `json:"error"`               // a span failed
	Truncated  bool      `json:"truncated,omitempty"` // there are more spans than these
}

// Trace is one trace with its spans in depth-first order, children by start.
type Trace struct {
	TraceSummary
	Tree []Span `json:"tree"`
}

// Span is one piece of work in a trace.
type Span struct {
	ID         string            `json:"id"`               // 16 hex digits
	Parent     string            `json:"parent,omitempty"` // "" at the root
	Depth      int               `json:"depth"`            // below the root; 0 also when the parent is not known
	Orphan     bool              `json:"orphan,omitempty"` // the parent is not kept, or has not arrived yet
	Service    string            `json:"service"`
	Instance   string            `json:"instance,omitempty"` // service.instance.id
	Operation  string            `json:"operation"`
	Kind       string            `json:"kind"` // "server", "client", "internal", "producer", "consumer"
	Start      time.Time         `json:"start"`
	DurationMS float64           `json:"durationMs"`
	Error      bool              `json:"error,omitempty"`
	Message    string            `json:"message,omitempty"` // of an error
	Attributes map[string]string `json:"attributes,omitempty"`
}
