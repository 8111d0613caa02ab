package resource

import (
	"fmt"
	"strings"

	"github.com/weftmesh/weft"
)

// report collects the problems of one resource, and knows the line of each of
// its fields.
type report struct {
	source   weft.SourceRef
	lines    fieldLines
	problems weft.Problems
}

func (r *report) errorf(path, mend, format string, args ...any) {
	r.add(weft.Problem{Message: fmt.Sprintf(format, args...), Mend: mend}, path)
}

func (r *report) warnf(path, mend, format string, args ...any) {
	r.add(weft.Problem{Warning: true, Message: fmt.Sprintf(format, args...), Mend: mend}, path)
}

func (r *report) unsupported(path, mend, format string, args ...any) {
	r.errorf(path, mend, format+" is not supported by this version", args...)
}

func (r *report) add(p weft.Problem, path string) {
	p.Source = r.lines.at(r.source, path)
	r.problems = append(r.problems, p)
}

// fieldLines is the line of each field by its path, "spec.http[0]". A field that
// is not there is taken to be on the line of what encloses it.
type fieldLines map[string]int

// at is source, pointed at a field.
func (l fieldLines) at(source weft.SourceRef, path string) weft.SourceRef {
	source.Field = path
	if line := l.line(path); line > 0 {
		source.Line = line
	}
	return source
}

// line returns 0 when not even an enclosing field is known.
func (l fieldLines) line(path string) int {
	for path != "" {
		if line, ok := l[path]; ok {
			return line
		}
		path = enclosing(path)
	}
	return 0
}

// lasting returns the lines that later answers need: of the elements of lists, of
// the fields of spec, and of some that lie deeper, where they differ from what
// encloses them.
func (l fieldLines) lasting() fieldLines {
	kept := func(path string) bool {
		return path == pathAnnotationField || path == "spec.fallback.service" || strings.HasPrefix(path, "spec") && (strings.HasSuffix(path, "]") || strings.Count(path, ".") < 2)
	}
	out := fieldLines{}
	for path, line := range l {
		if !kept(path) {
			continue
		}
		around := enclosing(path)
		for around != "" && !kept(around) {
			around = enclosing(around)
		}
		if around == "" || l[around] != line {
			out[path] = line
		}
	}
	return out
}

// enclosing is "spec.http" of "spec.http[0]", and "" of "spec".
func enclosing(path string) string {
	return path[:max(strings.LastIndexAny(path, ".["), 0)]
}

// anyOf is "a, b or c".
func anyOf(words []string) string {
	if len(words) < 2 {
		return strings.Join(words, "")
	}
	last := len(words) - 1
	return strings.Join(words[:last], ", ") + " or " + words[last]
}

// mendName helps somebody who wrote a name that is not known.
func mendName(name string, known []string) string {
	if best := nearest(name, known); best != "" {
		return fmt.Sprintf("did you mean %q?", best)
	}
	return "known are " + strings.Join(known, ", ")
}

// nearest returns the known name at an edit distance of at most a third of its
// length, or "".
func nearest(name string, known []string) string {
	best, least := "", 0
	for _, k := range known {
		limit := max(len(k)/3, 1)
		if len(name) > len(k)+limit || len(k) > len(name)+limit {
			continue
		}
		d := distance(strings.ToLower(name), strings.ToLower(k))
		if d <= limit && (best == "" || d < least) {
			best, least = k, d
		}
	}
	return best
}

// distance counts insertions, deletions, replacements and swaps of neighbours.
func distance(a, b string) int {
	var before []int // the row above last
	last := make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row := make([]int, len(b)+1)
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(last[j]+1, row[j-1]+1, last[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, last = last, row
	}
	return last[len(b)]
}
