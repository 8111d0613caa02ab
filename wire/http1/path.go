package http1

import "bytes"

// PathMode is how far a path is normalised. The further modes are for servers that
// see fewer differences between paths than RFC 3986 does: what a proxy tells apart
// and its server does not, a policy of the proxy can be talked around with.
type PathMode uint8

const (
	// PathBase is what RFC 3986 says and no server may tell apart: dot segments are
	// removed (§5.2.4), "\" is "/", escapes of unreserved characters are decoded,
	// other escapes have upper-case digits. "//" and "%2F" stay: they may be names.
	PathBase PathMode = iota
	// PathNone leaves the path as it came.
	PathNone
	// PathMergeSlashes makes one "/" of several, after PathBase: in "/a//../b" the
	// dots remove the empty segment, not a.
	PathMergeSlashes
	// PathDecodeAndMergeSlashes decodes "%2F" and "%5C" before PathMergeSlashes.
	PathDecodeAndMergeSlashes
)

// NormalizePath is PathBase.Normalize.
func NormalizePath(dst, path []byte) (out []byte, err error) {
	return PathBase.Normalize(dst, path)
}

// Normalize brings a path to the one form that routing, authorization and
// forwarding shall all see. The query is not part of a path.
//
// It returns path itself when that has the form already, else dst[:0] with the
// result, which is never longer than path: a dst of that capacity never grows. dst
// and path must not share memory, so keep a dst of your own: the result may be path,
// and as the next dst it would overwrite a buffer that is read from.
//
// The error is an *Error with status 400: a path that does not begin with "/"
// (only "*" is allowed beside), has a control byte, plain or escaped, or a byte
// that a target cannot have; but for PathNone also one that climbs above the root,
// or has a broken escape.
func (m PathMode) Normalize(dst, path []byte) (out []byte, err error) {
	merge := m == PathMergeSlashes || m == PathDecodeAndMergeSlashes
	if plainPath(path, merge) || len(path) == 1 && path[0] == '*' {
		return path, nil
	}
	if len(path) == 0 || path[0] != '/' && (path[0] != '\\' || m == PathNone) {
		return nil, &requestErrors[badPath]
	}
	if m == PathNone {
		if f := checkRawPath(path); f != ok {
			return nil, &requestErrors[f]
		}
		return path, nil
	}
	out, f := appendNormal(dst[:0], path, m == PathDecodeAndMergeSlashes)
	if f != ok {
		return nil, &requestErrors[f]
	}
	if merge {
		out = mergeSlashes(out)
	}
	if bytes.Equal(out, path) {
		return path, nil
	}
	return out, nil
}

// plainPath tells that a path has surely nothing to normalise.
func plainPath(path []byte, merge bool) bool {
	if len(path) == 0 || path[0] != '/' {
		return false
	}
	slash := false
	for _, c := range path {
		if !plainByte[c] || slash && (c == '.' || merge && c == '/') {
			return false
		}
		slash = c == '/'
	}
	return true
}

// checkRawPath refuses what no path may have, whatever is done with it.
func checkRawPath(path []byte) fault {
	for i, c := range path {
		switch {
		case plainByte[c], c == '\\':
		case c == '%':
			if _, f := escaped(path[i:]); f == pathControl {
				return f
			}
		case control(c):
			return pathControl
		default:
			return badPath
		}
	}
	return ok
}

// mergeSlashes makes one "/" of several, in place.
func mergeSlashes(path []byte) []byte {
	out := path[:0]
	for i, c := range path {
		if c != '/' || i == 0 || path[i-1] != '/' {
			out = append(out, c)
		}
	}
	return out
}

func control(c byte) bool { return c < 0x20 || c == 0x7f }

// plainByte are the bytes of a path that stand for themselves wherever they are,
// except "." behind "/".
var plainByte = func() (t [256]bool) {
	t = targetByte
	t['%'], t['\\'], t['?'] = false, false, false
	return t
}()

// appendNormal appends the normal form of a path that begins with a separator.
// Segments are written as they come and taken back when they turn out to be dots.
// With decode, escaped separators are separators.
func appendNormal(out, path []byte, decode bool) ([]byte, fault) {
	out = append(out, '/')
	segment := len(out) // where the present segment begins, behind its "/"
	for i := 1; i < len(path); i++ {
		c := path[i]
		if plainByte[c] && c != '/' {
			out = append(out, c)
			continue
		}
		if c == '%' {
			v, f := escaped(path[i:])
			if f != ok {
				return out, f
			}
			i += 2
			if !decode || v != '/' && v != '\\' {
				out = appendEscape(out, v)
				continue
			}
			c = '/'
		}
		switch {
		case c == '/' || c == '\\':
			var f fault
			if out, f = endSegment(out, segment, true); f != ok {
				return out, f
			}
			segment = len(out)
		case control(c):
			return out, pathControl
		default:
			return out, badPath
		}
	}
	return endSegment(out, segment, false)
}

// endSegment removes the segment that ends out when it is "." or ".."; the latter
// takes the segment before it along. Other segments get their "/" when one
// follows.
func endSegment(out []byte, segment int, slash bool) ([]byte, fault) {
	switch string(out[segment:]) {
	case ".":
		return out[:segment], ok
	case "..":
		if segment == 1 {
			return out, pathAboveRoot
		}
		parent := bytes.LastIndexByte(out[:segment-1], '/') + 1
		return out[:parent], ok
	}
	if slash {
		out = append(out, '/')
	}
	return out, ok
}

// escaped returns the byte that the escape at the beginning of path stands for.
func escaped(path []byte) (c byte, f fault) {
	if len(path) < 3 || unhex[path[1]] > 15 || unhex[path[2]] > 15 {
		return 0, pathEscape
	}
	if c = unhex[path[1]]<<4 | unhex[path[2]]; control(c) {
		return 0, pathControl
	}
	return c, ok
}

// appendEscape appends the normal form of an escaped byte.
func appendEscape(out []byte, c byte) []byte {
	if unreserved[c] {
		return append(out, c)
	}
	const upper = "0123456789ABCDEF"
	return append(out, '%', upper[c>>4], upper[c&15])
}
