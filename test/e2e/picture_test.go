package e2e

import (
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

// The picture of a cascade: two panels over the same seconds, in each both runs.
const (
	pictureWidth, pictureHeight = 760, 560
	panelLeft, panelRight       = 70, 730
	latencyTop, latencyBottom   = 70, 280
	flightTop, flightBottom     = 330, 490
)

// pictureStyle is readable on white and on black: the colours are those that people
// tell apart who see few.
const pictureStyle = `
text { font: 12px system-ui, sans-serif; fill: #24292f }
.title { font-size: 14px; font-weight: 600 }
.small { font-size: 11px }
.axis { stroke: #57606a; fill: none }
.grid { stroke: #57606a; stroke-opacity: .2; fill: none }
.slow { fill: #57606a; fill-opacity: .12 }
.bare { stroke: #c0510b } .guarded { stroke: #0b69b7 }
text.bare { fill: #c0510b; stroke: none } text.guarded { fill: #0b69b7; stroke: none }
.line { fill: none; stroke-width: 2; stroke-linejoin: round }
.users { stroke-width: 1.5; stroke-dasharray: 4 3 }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3 }
.axis, .grid { stroke: #9198a1 } .slow { fill: #9198a1; fill-opacity: .2 }
.bare { stroke: #ff9a57 } .guarded { stroke: #6cb6ff }
text.bare { fill: #ff9a57 } text.guarded { fill: #6cb6ff }
}
`

// drawCascade draws both runs as an SVG document.
func drawCascade(bare, guarded run, rate int, made string) string {
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" height="%d" role="img">`+"\n",
		pictureWidth, pictureHeight, pictureWidth, pictureHeight)
	fmt.Fprintf(&b, "<title>A slow payment-service, without and with a ResiliencePolicy</title>\n<style>%s</style>\n", pictureStyle)
	fmt.Fprintf(&b, `<text class="title" x="%d" y="22">payment-service takes %.0f s for each answer, under %d orders a second</text>`+"\n",
		panelLeft, slowPayment.Seconds(), rate)
	key(&b, panelLeft, 44, "bare", "orders, no policy")
	key(&b, panelLeft+170, 44, "guarded", "orders, with it")
	key(&b, panelLeft+330, 44, "bare users", "users, no policy")
	key(&b, panelLeft+480, 44, "guarded users", "users, with it")

	latency := panel{top: latencyTop, bottom: latencyBottom, low: 0.001, high: 10, log: true}
	latency.frame(&b, "p99, by when it was sent", map[float64]string{0.001: "1 ms", 0.01: "10 ms", 0.1: "100 ms", 1: "1 s", 10: "10 s"})
	flight := panel{top: flightTop, bottom: flightBottom, high: ceiling(float64(inFlight(bare.orders, [2]time.Duration{0, runEnd + slowPayment})))}
	flight.frame(&b, "orders in flight", map[float64]string{0: "0", flight.high / 2: fmt.Sprint(int(flight.high / 2)), flight.high: fmt.Sprint(int(flight.high))})
	for _, r := range []struct {
		class string
		run   run
	}{{"bare", bare}, {"guarded", guarded}} {
		latency.line(&b, r.class+" users", 3*bucket, func(at time.Duration) float64 { return slowest(r.run.users, at, 3*bucket) })
		latency.line(&b, r.class, bucket, func(at time.Duration) float64 { return slowest(r.run.orders, at, bucket) })
		flight.line(&b, r.class, bucket, func(at time.Duration) float64 { return float64(inFlightAt(r.run.orders, at)) })
	}
	for second := time.Duration(0); second <= runEnd; second += 2 * time.Second {
		fmt.Fprintf(&b, `<text class="small" x="%.1f" y="%d" text-anchor="middle">%d</text>`+"\n", across(second), flightBottom+16, int(second.Seconds()))
	}
	fmt.Fprintf(&b, `<text class="small" x="%d" y="%d" text-anchor="middle">seconds since the run began; grey: payments are slow</text>`+"\n",
		(panelLeft+panelRight)/2, flightBottom+34)
	fmt.Fprintf(&b, `<text class="small" x="%d" y="%d">%s</text>`+"\n</svg>\n", panelLeft, pictureHeight-12, made)
	return b.String()
}

// madeHere tells when and on what a picture was made.
func madeHere(now time.Time) string {
	return fmt.Sprintf("Measured on %s, with %d cores for everything: client, gateway, sidecars, services and server.", now.UTC().Format(time.DateOnly), runtime.NumCPU())
}

func key(b *strings.Builder, x, y int, class, text string) {
	fmt.Fprintf(b, `<path class="line %s" d="M%d %dh24"/><text class="%s" x="%d" y="%d">%s</text>`+"\n", class, x, y-4, strings.Fields(class)[0], x+30, y, text)
}

// panel maps values to heights.
type panel struct {
	top, bottom float64
	low, high   float64
	log         bool
}

func across(at time.Duration) float64 {
	return panelLeft + (panelRight-panelLeft)*float64(at)/float64(runEnd)
}

func (p panel) up(v float64) float64 {
	v = min(max(v, p.low), p.high)
	share := (v - p.low) / (p.high - p.low)
	if p.log {
		share = math.Log(v/p.low) / math.Log(p.high/p.low)
	}
	return p.bottom - share*(p.bottom-p.top)
}

func (p panel) frame(b *strings.Builder, title string, ticks map[float64]string) {
	fmt.Fprintf(b, `<rect class="slow" x="%.1f" y="%.1f" width="%.1f" height="%.1f"/>`+"\n", across(slowFrom), p.top, across(slowUntil)-across(slowFrom), p.bottom-p.top)
	for _, v := range slices.Sorted(maps.Keys(ticks)) {
		fmt.Fprintf(b, `<path class="grid" d="M%d %.1fH%d"/><text class="small" x="%d" y="%.1f" text-anchor="end">%s</text>`+"\n",
			panelLeft, p.up(v), panelRight, panelLeft-8, p.up(v)+4, ticks[v])
	}
	fmt.Fprintf(b, `<path class="axis" d="M%d %.1fV%.1fH%d"/><text x="%d" y="%.1f">%s</text>`+"\n", panelLeft, p.top, p.bottom, panelRight, panelLeft+6, p.top+14, title)
}

// line draws a value every so often; where it is negative there is none.
func (p panel) line(b *strings.Builder, class string, every time.Duration, value func(time.Duration) float64) {
	fmt.Fprintf(b, `<path class="line %s" d="`, class)
	move := "M"
	for at := time.Duration(0); at < runEnd; at += every {
		if v := value(at); v >= 0 {
			fmt.Fprintf(b, "%s%.1f %.1f", move, across(at+every/2), p.up(v))
			move = "L"
		}
	}
	b.WriteString("\"/>\n")
}

// slowest is the p99 in seconds of what was sent in a bucket; -1 for an empty one.
func slowest(all []sent, from, length time.Duration) float64 {
	some := within(all, [2]time.Duration{from, from + length})
	if len(some) == 0 {
		return -1
	}
	return at(some, 0.99).Seconds()
}

// ceiling is a round number that is not below v.
func ceiling(v float64) float64 {
	v = max(v, 1)
	step := math.Pow(10, math.Floor(math.Log10(v)))
	return math.Ceil(v/step) * step
}

func TestPictureIsWellFormed(t *testing.T) {
	var r run
	for due := time.Duration(0); due < runEnd; due += 50 * time.Millisecond {
		r.orders = append(r.orders, sent{due: due, took: due})
		r.users = append(r.users, sent{due: due})
	}
	drawn := drawCascade(r, run{}, 20, madeHere(time.Now()))
	kept, err := os.ReadFile("../../docs/cascade.svg")
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"drawn": drawn, "docs/cascade.svg": string(kept)} {
		lines := 0
		d := xml.NewDecoder(strings.NewReader(text))
		for {
			token, err := d.Token()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if e, ok := token.(xml.StartElement); ok && e.Name.Local == "path" {
				lines++
			}
		}
		if lines < 10 || strings.Contains(text, "NaN") || strings.Contains(text, "Inf") || !strings.Contains(text, "prefers-color-scheme: dark") {
			t.Errorf("%s: %d paths", name, lines)
		}
	}
}

func TestCeiling(t *testing.T) {
	for v, want := range map[float64]float64{0: 1, 1: 1, 7.2: 8, 101: 200, 2512: 3000, 3000: 3000} {
		if got := ceiling(v); got != want {
			t.Errorf("%v: %v, want %v", v, got, want)
		}
	}
}
