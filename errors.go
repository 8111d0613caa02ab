package weft

import (
	"errors"
	"fmt"
	"strings"
)

// Kind says what sort of failure an Error is, so that each door can answer it in
// its own way (an HTTP status, a gRPC code, an exit code).
type Kind uint8

const (
	Internal    Kind = iota // our fault, or not classified
	Invalid                 // the input is wrong
	NotFound                // the thing does not exist
	Conflict                // somebody else changed or holds the thing
	Denied                  // not allowed
	Unavailable             // may work later
	TooLarge                // the input is over a limit
)

// Error names the operation, the thing and the cause. Return it; answer or log
// it once, where somebody can act on it.
type Error struct {
	Kind  Kind
	Op    string // "register", "apply"
	Thing string // "instance order-service/a", "VirtualService default/order-service"
	Err   error
}

func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.Op)
	if e.Thing != "" {
		b.WriteString(" ")
		b.WriteString(e.Thing)
	}
	if e.Err != nil {
		b.WriteString(": ")
		b.WriteString(e.Err.Error())
	}
	return b.String()
}

func (e *Error) Unwrap() error { return e.Err }

// KindOf returns the kind of the first Error in err's chain, else Internal.
func KindOf(err error) Kind {
	var e *Error
	if errors.As(err, &e) {
		return e.Kind
	}
	return Internal
}

// Errorf builds an Error whose cause is a formatted text.
func Errorf(kind Kind, op, thing, format string, args ...any) error {
	return &Error{Kind: kind, Op: op, Thing: thing, Err: fmt.Errorf(format, args...)}
}

// SourceRef says where something was written, so that every answer can name it.
type SourceRef struct {
	Kind      string `json:"kind,omitempty"`
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name,omitempty"`
	File      string `json:"file,omitempty"`
	Line      int    `json:"line,omitempty"`  // from 1; 0 is unknown
	Field     string `json:"field,omitempty"` // "spec.http[0]"
}

// String is "VirtualService default/order-service (canary.yaml:8)".
func (s SourceRef) String() string {
	if s.Kind == "" {
		return "built in"
	}
	out := s.Kind + " " + s.Namespace + "/" + s.Name
	if s.File != "" {
		out += " (" + s.Position() + ")"
	}
	return out
}

// Position is "canary.yaml:8", or "" when the source has no file.
func (s SourceRef) Position() string {
	if s.File == "" {
		return ""
	}
	if s.Line == 0 {
		return s.File
	}
	return fmt.Sprintf("%s:%d", s.File, s.Line)
}

// Problem is one thing that is wrong with what a user wrote: where, what, and
// how to mend it.
type Problem struct {
	Warning bool      `json:"warning,omitempty"` // accepted all the same
	Source  SourceRef `json:"source"`
	Message string    `json:"message"`        // "unknown field \"wieght\""
	Mend    string    `json:"mend,omitempty"` // "did you mean \"weight\"?"
}

// String is "canary.yaml:12: spec.http[0].route[1].wieght: unknown field …; did you mean …".
func (p Problem) String() string {
	var b strings.Builder
	if pos := p.Source.Position(); pos != "" {
		b.WriteString(pos + ": ")
	}
	if p.Warning {
		b.WriteString("warning: ")
	}
	if p.Source.Kind != "" {
		b.WriteString(p.Source.Kind + " " + p.Source.Namespace + "/" + p.Source.Name + ": ")
	}
	if p.Source.Field != "" {
		b.WriteString(p.Source.Field + ": ")
	}
	b.WriteString(p.Message)
	if p.Mend != "" {
		b.WriteString("; " + p.Mend)
	}
	return b.String()
}

// Problems is every problem of one input at once.
type Problems []Problem

func (ps Problems) Error() string {
	lines := make([]string, len(ps))
	for i, p := range ps {
		lines[i] = p.String()
	}
	return strings.Join(lines, "\n")
}

// Errors returns the problems that are not mere warnings.
func (ps Problems) Errors() Problems {
	var out Problems
	for _, p := range ps {
		if !p.Warning {
			out = append(out, p)
		}
	}
	return out
}
