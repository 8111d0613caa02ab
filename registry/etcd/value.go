package etcd

import (
	"encoding/json"
	"fmt"
	"net"
	"strconv"
	"strings"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/registry/mirror"
)

// naming is a value as gRPC's naming for etcd writes it.
type naming struct {
	Op       int // 0 is there, 1 is gone
	Addr     string
	Metadata json.RawMessage
}

// parse reads a key under the prefix. there is false when it says that the instance
// is gone.
func parse(prefix, key string, value []byte) (c mirror.Claim, there bool, err error) {
	c.Origin = "etcd key " + strconv.Quote(key)
	rest := strings.TrimPrefix(key, prefix)
	wrong := func(format string, args ...any) (mirror.Claim, bool, error) {
		return c, false, fmt.Errorf("%s: %s", c.Origin, fmt.Sprintf(format, args...))
	}
	service, _ := cutLast(rest)
	if service == "" {
		_, service = cutLast(strings.TrimSuffix(prefix, "/"))
	}
	service = strings.ReplaceAll(strings.Trim(service, "/"), "/", "-")
	if service == "" {
		return wrong("no service stands in it; want %sSERVICE/INSTANCE", prefix)
	}
	n := naming{Addr: strings.TrimSpace(string(value))}
	if strings.HasPrefix(n.Addr, "{") {
		n.Addr = ""
		if err := json.Unmarshal(value, &n); err != nil {
			return wrong("the value is no JSON: %v", err)
		}
	}
	if n.Op == 1 {
		return c, false, nil
	}
	host, port, ok := address(n.Addr)
	if !ok {
		return wrong(`the value has the address %q; want host:port, or {"Op":0,"Addr":"host:port"}`, shorten(n.Addr))
	}
	labels := metadata(n.Metadata)
	c.Instance = weft.Instance{
		ID: strings.Trim(rest, "/"), Service: weft.NewServiceName("", service), Address: host, Port: port,
		Labels: labels, Zone: labels["zone"], Protocol: weft.DeclaredProtocol(labels, nil),
	}
	return c, true, nil
}

// cutLast cuts at the last slash.
func cutLast(s string) (before, after string) {
	i := strings.LastIndexByte(s, '/')
	return s[:max(i, 0)], s[i+1:]
}

// address reads "host:port", also as a URL.
func address(s string) (host string, port int, ok bool) {
	if _, rest, found := strings.Cut(s, "://"); found {
		s, _, _ = strings.Cut(rest, "/")
	}
	host, text, err := net.SplitHostPort(s)
	if err != nil || host == "" {
		return "", 0, false
	}
	port, err = strconv.Atoi(text)
	return host, port, err == nil && port > 0 && port < 1<<16
}

// metadata takes what can be labels; the rest is for others.
func metadata(raw json.RawMessage) map[string]string {
	var all map[string]any
	if json.Unmarshal(raw, &all) != nil {
		return nil
	}
	var labels map[string]string
	for key, value := range all {
		var text string
		switch v := value.(type) {
		case string:
			text = v
		case bool, float64:
			text = fmt.Sprint(v)
		default:
			continue
		}
		if labels == nil {
			labels = make(map[string]string)
		}
		labels[key] = text
	}
	return labels
}

func shorten(s string) string {
	if len(s) > 60 {
		return strings.ToValidUTF8(s[:60], "") + "…"
	}
	return s
}
