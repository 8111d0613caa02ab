package http1

import "bytes"

// NormalizePath brings a path to the one form that routing, authorization and
// forwarding shall all see: dot segments are removed (RFC 3986 §5.2.4), "\" is "/",
// escapes of unreserved characters are decoded, other escapes have upper-case
// digits. "//" and "%2F" stay: they may be names. The query is not part of a path.
//
// It returns path itself when that has the form already, else dst[:0] with the
// result, which is never longer than path: a dst of that capacity never grows. dst
// and path must not share memory, so keep a dst of your own: the result may be path,
// and as the next dst it would overwrite a buffer that is read from.
//
// The error is an *Error with status 400: a path that does not begin with "/"
// (only "*" is allowed beside), climbs above the root, has a control byte, plain
// or escaped, a byte that a target cannot have, or a broken escape.
func NormalizePath(dst, path []byte) (out []byte, err error) {
	if plainPath(path) || len(path) == 1 && path[0] == '*' {
		return path, nil
	}
	if len(path) == 0 || path[0] != '/' && path[0] != '\\' {
		return nil, &requestErrors[badPath]
	}
	out, f := appendNormal(dst[:0], path)
	if f != ok {
		return nil, &requestErrors[f]
	}
	if bytes.Equal(out, path) {
		return path, nil
	}
	return out, nil
}

// plainPath tells that a path has surely nothing to normalise.
func plainPath(path []byte) bool {
	if len(path) == 0 || path[0] != '/' {
		return false
	}
	slash := false
	for _, c := range path {
		if !plainByte[c] || slash && c == '.' {
			return false
		}
		slash = c == '/'
	}
	return true
}

// plainByte are the bytes of a path that stand for themselves wherever they are,
// except "." behind "/".
var plainByte = func() (t [256]bool) {
	t = targetByte
	t['%'], t['\\'], t['?'] = false, false, false
	return t
}()

// appendNormal appends the normal form of a path that begins with a separator.
// Segments are written as they come and taken back when they turn out to be dots.
func appendNormal(out, path []byte) ([]byte, fault) {
	out = append(out, '/')
	segment := len(out) // where the present segment begins, behind its "/"
	for i := 1; i < len(path); i++ {
		c := path[i]
		switch {
		case plainByte[c] && c != '/':
			out = append(out, c)
		case c == '/' || c == '\\':
			var f fault
			if out, f = endSegment(out, segment, true); f != ok {
				return out, f
			}
			segment = len(out)
		case c == '%':
			var f fault
			if out, f = appendEscape(out, path[i:]); f != ok {
				return out, f
			}
			i += 2
		case c < 0x20 || c == 0x7f:
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

// appendEscape appends the normal form of the escape at the beginning of path.
func appendEscape(out, path []byte) ([]byte, fault) {
	if len(path) < 3 || unhex[path[1]] > 15 || unhex[path[2]] > 15 {
		return out, pathEscape
	}
	c := unhex[path[1]]<<4 | unhex[path[2]]
	switch {
	case c < 0x20 || c == 0x7f:
		return out, pathControl
	case unreserved[c]:
		return append(out, c), ok
	}
	const upper = "0123456789ABCDEF"
	return append(out, '%', upper[c>>4], upper[c&15]), ok
}
