package weft

import "strings"

// Protocol is what the port of an instance speaks, as it was declared. The zero
// value is not declared: a proxy finds out by the first bytes.
type Protocol string

const (
	HTTP  Protocol = "http"  // HTTP/1.1, and whatever a client upgrades it to
	HTTP2 Protocol = "http2" // with prior knowledge, in plain text: h2c
	GRPC  Protocol = "grpc"  // HTTP2, whose failures are in grpc-status
	TCP   Protocol = "tcp"   // bytes that nobody looks at; also of servers that speak first
	TLS   Protocol = "tls"   // encrypted by the application itself; only the SNI is looked at
)

// protocolWords are the words that users have: Kubernetes' appProtocol and the
// prefixes of Istio's port names.
var protocolWords = map[string]Protocol{
	"http": HTTP, "http1": HTTP, "http/1.1": HTTP, "ws": HTTP, "kubernetes.io/ws": HTTP,
	"http2": HTTP2, "h2c": HTTP2, "kubernetes.io/h2c": HTTP2,
	"grpc": GRPC, "grpc-web": GRPC,
	"https": TLS, "tls": TLS, "wss": TLS, "kubernetes.io/wss": TLS,
	"tcp": TCP, "mongo": TCP, "mysql": TCP, "redis": TCP, "postgres": TCP, "postgresql": TCP, "amqp": TCP, "kafka": TCP,
}

// ParseProtocol reads an appProtocol ("kubernetes.io/h2c") or the name of a port,
// which is a protocol, alone or before a "-" ("http-api"), in any case. "" is not
// declared, and no error.
func ParseProtocol(s string) (Protocol, error) {
	word := strings.ToLower(s)
	if word == "" {
		return "", nil
	}
	for {
		if p, ok := protocolWords[word]; ok {
			return p, nil
		}
		i := strings.LastIndexByte(word, '-')
		if i < 0 {
			return "", Errorf(Invalid, "parse protocol", s, "want http, http2, h2c, grpc, tls, https or tcp, or a name that begins with one and \"-\"")
		}
		word = word[:i]
	}
}

// DeclaredProtocol finds what an instance says of its port in places that users
// have: the labels (Consul's Meta) "protocol" and "appProtocol", a tag
// "protocol=…". Both are free text: a word that is no protocol declares nothing.
func DeclaredProtocol(labels map[string]string, tags []string) Protocol {
	words := []string{labels["protocol"], labels["appProtocol"]}
	for _, tag := range tags {
		if word, ok := strings.CutPrefix(tag, "protocol="); ok {
			words = append(words, word)
		}
	}
	for _, word := range words {
		if p, err := ParseProtocol(word); err == nil && p != "" {
			return p
		}
	}
	return ""
}

// Known reports whether p is one of the constants, or "".
func (p Protocol) Known() bool {
	switch p {
	case "", HTTP, HTTP2, GRPC, TCP, TLS:
		return true
	}
	return false
}

// IsHTTP reports whether requests of this protocol are routed one by one. What is
// not declared may be.
func (p Protocol) IsHTTP() bool { return p != TCP && p != TLS }

// PathMode is how the path of a request is normalised before anything looks at
// it: routing, authorization, and the next hop all see the same. The names are
// Istio's.
type PathMode uint8

const (
	PathBase                  PathMode = iota // dot segments, "\", escapes of unreserved characters
	PathNone                                  // as it came
	PathMergeSlashes                          // PathBase, and "//" is "/"
	PathDecodeAndMergeSlashes                 // "%2F" and "%5C" are decoded first, then PathMergeSlashes
)

var pathModeNames = [...]string{"BASE", "NONE", "MERGE_SLASHES", "DECODE_AND_MERGE_SLASHES"}

func (m PathMode) String() string { return pathModeNames[m] }

// MarshalText writes Istio's name.
func (m PathMode) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// ParsePathMode reads what String writes.
func ParsePathMode(s string) (PathMode, error) {
	for i, name := range pathModeNames {
		if s == name {
			return PathMode(i), nil
		}
	}
	return PathBase, Errorf(Invalid, "parse path normalisation", s, "want NONE, BASE, MERGE_SLASHES or DECODE_AND_MERGE_SLASHES")
}
