package dns

import (
	"context"
	"log/slog"
)

// failures is a logger that tells the first line of what it gets.
func failures(out chan<- string) *slog.Logger { return slog.New(failureHandler{out}) }

type failureHandler struct{ out chan<- string }

func (h failureHandler) Enabled(context.Context, slog.Level) bool { return true }
func (h failureHandler) WithAttrs([]slog.Attr) slog.Handler       { return h }
func (h failureHandler) WithGroup(string) slog.Handler            { return h }
func (h failureHandler) Handle(_ context.Context, r slog.Record) error {
	text := r.Message
	r.Attrs(func(a slog.Attr) bool { text += " " + a.String(); return true })
	select {
	case h.out <- text:
	default:
	}
	return nil
}
