package http2

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"

	"github.com/weftmesh/weft/wire/http1"
	x "golang.org/x/net/http2"
)

// eventText is how scripts write an event.
func eventText(e *Event) string {
	b := new(strings.Builder)
	if e.Stream == nil {
		switch e.Kind {
		case WindowOpened:
			return "window"
		case SettingsReceived:
			return "settings"
		case PongReceived:
			return "pong"
		case GoAwayReceived:
			return fmt.Sprintf("goaway %d %v", e.LastID, e.Code)
		case RequestRefused:
			return fmt.Sprintf("refused %v %s", e.Code, e.Reason)
		}
		return ""
	}
	id := e.Stream.ID
	switch e.Kind {
	case HeadReceived:
		fmt.Fprintf(b, "head %d", id)
		if e.New {
			b.WriteString(" new")
		}
		if e.TooLarge {
			b.WriteString(" large")
		}
		if e.Request != nil {
			requestText(b, e)
		} else {
			fmt.Fprintf(b, " %d %s", e.Response.Status, bodyText(e.Response.Framing, e.Response.Length))
			fieldsText(b, &e.Response.Head)
		}
	case DataReceived:
		fmt.Fprintf(b, "data %d %s", id, brief(e.Data))
	case TrailersReceived:
		fmt.Fprintf(b, "trailers %d", id)
		fieldsText(b, e.Trailers)
	case StreamReset:
		fmt.Fprintf(b, "reset %d %v", id, e.Code)
		if e.Local {
			fmt.Fprintf(b, " here %s", e.Reason)
		}
	case WindowOpened:
		fmt.Fprintf(b, "window %d", id)
	}
	if e.End {
		b.WriteString(" end")
	}
	return b.String()
}

func requestText(b *strings.Builder, e *Event) {
	r := e.Request
	form := map[http1.TargetForm]string{http1.Origin: "origin", http1.Authority: "authority", http1.Asterisk: "asterisk"}[r.Form]
	fmt.Fprintf(b, " %s %s %s %s", r.Method, r.Scheme, r.Authority, r.Path)
	if r.HasQuery {
		fmt.Fprintf(b, "?%s", r.Query)
	}
	fmt.Fprintf(b, " %s %s", form, bodyText(r.Framing, r.Length))
	if e.Protocol != nil {
		fmt.Fprintf(b, " protocol=%s", e.Protocol)
	}
	if r.ExpectContinue {
		b.WriteString(" continue")
	}
	fieldsText(b, &r.Head)
}

func bodyText(f http1.Framing, length int64) string {
	text := map[http1.Framing]string{http1.NoBody: "none", http1.FixedLength: "fixed", http1.Chunked: "body"}[f]
	if length >= 0 {
		text += "/" + strconv.FormatInt(length, 10)
	}
	return text
}

// fieldsText leaves fields out that are marked Drop.
func fieldsText(b *strings.Builder, h *http1.Head) {
	for i := range h.Fields {
		if !h.Fields[i].Drop {
			fmt.Fprintf(b, " %s=%s", h.Name(i), valueText(h.Value(i)))
		}
	}
}

// brief quotes bytes, and gives the number of long runs of x.
func brief(p []byte) string {
	if n := len(p); n > 20 && bytes.Count(p, []byte("x")) == n {
		return fmt.Sprintf("[x*%d]", n)
	}
	return strconv.Quote(string(p))
}

// valueText is brief without quotes.
func valueText(v []byte) string { return strings.Trim(brief(v), `"`) }

// frameText is how scripts write a frame that the Conn has queued.
func frameText(f x.Frame) string {
	b := new(strings.Builder)
	h := f.Header()
	switch f := f.(type) {
	case *x.SettingsFrame:
		b.WriteString("SETTINGS")
		if f.IsAck() {
			b.WriteString(" ACK")
		}
		_ = f.ForeachSetting(func(s x.Setting) error {
			fmt.Fprintf(b, " %d=%d", s.ID, s.Val)
			return nil
		})
	case *x.MetaHeadersFrame:
		fmt.Fprintf(b, "HEADERS %d", h.StreamID)
		if f.StreamEnded() {
			b.WriteString(" END_STREAM")
		}
		for _, field := range f.Fields {
			fmt.Fprintf(b, " %s=%s", field.Name, valueText([]byte(field.Value)))
		}
	case *x.DataFrame:
		fmt.Fprintf(b, "DATA %d", h.StreamID)
		if f.StreamEnded() {
			b.WriteString(" END_STREAM")
		}
		fmt.Fprintf(b, " %s", brief(f.Data()))
	case *x.RSTStreamFrame:
		fmt.Fprintf(b, "RST_STREAM %d %v", h.StreamID, Code(f.ErrCode))
	case *x.GoAwayFrame:
		fmt.Fprintf(b, "GOAWAY %d %v", f.LastStreamID, Code(f.ErrCode))
		if len(f.DebugData()) > 0 {
			fmt.Fprintf(b, " %s", f.DebugData())
		}
	case *x.PingFrame:
		fmt.Fprintf(b, "PING %x", f.Data)
		if f.IsAck() {
			b.WriteString(" ACK")
		}
	case *x.WindowUpdateFrame:
		fmt.Fprintf(b, "WINDOW_UPDATE %d %d", h.StreamID, f.Increment)
	default:
		fmt.Fprintf(b, "%v", f)
	}
	return b.String()
}
