package weft

import "testing"

func TestParseProtocol(t *testing.T) {
	for in, want := range map[string]Protocol{
		"": "", "http": HTTP, "HTTP": HTTP, "http-api": HTTP, "http2": HTTP2, "http2-web-1": HTTP2, "h2c": HTTP2,
		"kubernetes.io/h2c": HTTP2, "kubernetes.io/ws": HTTP, "kubernetes.io/wss": TLS, "grpc": GRPC, "grpc-orders": GRPC,
		"grpc-web": GRPC, "grpc-web-ui": GRPC, "https": TLS, "https-admin": TLS, "tls": TLS, "tcp": TCP, "tcp-db": TCP,
		"mongo": TCP, "mysql-main": TCP, "redis": TCP, "postgres": TCP,
	} {
		if got, err := ParseProtocol(in); err != nil || got != want {
			t.Errorf("%q: %q, %v; want %q", in, got, err, want)
		}
	}
	for _, bad := range []string{"udp", "udp-dns", "httpx", "web", "-http", "http_api", "example.com/own"} {
		if got, err := ParseProtocol(bad); KindOf(err) != Invalid {
			t.Errorf("%q should be refused, got %q, %v", bad, got, err)
		}
	}
}

func TestParsePathMode(t *testing.T) {
	for _, m := range []PathMode{PathBase, PathNone, PathMergeSlashes, PathDecodeAndMergeSlashes} {
		if got, err := ParsePathMode(m.String()); err != nil || got != m {
			t.Errorf("%s reads back as %s, %v", m, got, err)
		}
	}
	if _, err := ParsePathMode("base"); KindOf(err) != Invalid {
		t.Errorf("another name: %v", err)
	}
}

func TestDeclaredProtocol(t *testing.T) {
	for _, tc := range []struct {
		labels map[string]string
		tags   []string
		want   Protocol
	}{
		{nil, nil, ""},
		{map[string]string{"protocol": "grpc"}, []string{"protocol=tcp"}, GRPC},
		{map[string]string{"appProtocol": "kubernetes.io/h2c"}, nil, HTTP2},
		{map[string]string{"protocol": "smoke", "appProtocol": "tcp"}, nil, TCP},
		{map[string]string{"version": "http"}, []string{"http", "protocol=redis"}, TCP},
	} {
		if got := DeclaredProtocol(tc.labels, tc.tags); got != tc.want {
			t.Errorf("%v %v: %q, want %q", tc.labels, tc.tags, got, tc.want)
		}
	}
}
