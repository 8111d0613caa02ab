package zookeeper

import (
	"encoding/json"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/registry/mirror"
)

// record has the fields of every form of JSON that is known: Curator's, the
// serverset's and nerve's.
type record struct {
	// Curator
	Name    string
	Address string
	Port    json.RawMessage // a number; null with sslPort
	SSLPort int             `json:"sslPort"`
	Enabled *bool
	Payload json.RawMessage

	// serverset
	ServiceEndpoint     *endpoint
	AdditionalEndpoints map[string]endpoint
	Status              string
	Shard               *int

	// nerve
	Host string
}

type endpoint struct {
	Host string
	Port int
}

// parse reads a node under the base, by its path there ("web/7f3c") and its data.
// there is false for what is no instance, or one that says that it is not up; sure is
// false when that may as well be a folder: an error then means nothing.
func parse(path string, data []byte) (c mirror.Claim, there, sure bool, err error) {
	c.Origin = "znode " + strconv.Quote(path)
	folder, name := cutLast(path)
	if scheme, _, ok := strings.Cut(name, "%3A%2F%2F"); ok {
		if _, kind := cutLast(folder); kind != "providers" || scheme == "consumer" {
			return c, false, true, nil // who asks, and who is configured
		}
		there, err = dubbo(&c, folder, name)
		return c, there, true, err
	}
	var r record
	if len(data) == 0 || data[0] != '{' {
		return c, false, false, fmt.Errorf("%s: its data is no JSON", c.Origin)
	}
	if err := json.Unmarshal(data, &r); err != nil {
		return c, false, false, fmt.Errorf("%s: its data cannot be read: %w", c.Origin, err)
	}
	service := strings.ReplaceAll(folder, "/", "-")
	c.Instance = weft.Instance{ID: path}
	switch {
	case r.ServiceEndpoint != nil:
		if r.Status != "" && r.Status != "ALIVE" {
			return c, false, true, nil
		}
		r.serverset(&c.Instance)
	case r.Host != "":
		c.Address = r.Host
		c.Port, _ = strconv.Atoi(strings.Trim(string(r.Port), `"`))
		c.Labels = labels(data, "host", "port", "name")
	case r.Address != "":
		if r.Enabled != nil && !*r.Enabled {
			return c, false, true, nil
		}
		if r.Name != "" {
			service = r.Name
		}
		c.Address = r.Address
		if c.Port, _ = strconv.Atoi(string(r.Port)); c.Port == 0 {
			c.Port = r.SSLPort
		}
		c.Labels = payload(r.Payload)
	default:
		return c, false, false, fmt.Errorf("%s: its data is neither Curator's, nor a serverset's, nor nerve's", c.Origin)
	}
	if service == "" {
		return c, false, true, fmt.Errorf("%s: no service stands in it; give the path above the services", c.Origin)
	}
	if c.Address == "" || c.Port < 1 || c.Port > 65535 {
		return c, false, true, fmt.Errorf("%s: %s:%d is no address with a port", c.Origin, c.Address, c.Port)
	}
	c.Service = weft.NewServiceName("", service)
	c.Zone = c.Labels["zone"]
	c.Protocol = weft.DeclaredProtocol(c.Labels, nil)
	return c, true, true, nil
}

func cutLast(s string) (before, after string) {
	i := strings.LastIndexByte(s, '/')
	return s[:max(i, 0)], s[i+1:]
}

func (r *record) serverset(in *weft.Instance) {
	in.Address, in.Port = r.ServiceEndpoint.Host, r.ServiceEndpoint.Port
	if r.Shard != nil {
		in.Labels = map[string]string{"shard": strconv.Itoa(*r.Shard)}
	}
	for name, e := range r.AdditionalEndpoints {
		if in.TaggedAddresses == nil {
			in.TaggedAddresses = make(map[string]string)
		}
		in.TaggedAddresses[name] = net.JoinHostPort(e.Host, strconv.Itoa(e.Port))
	}
}

// payload takes labels from what an application put beside its address: Spring has
// "metadata" in it; others have fields of their own.
func payload(raw json.RawMessage) map[string]string {
	var spring struct{ Metadata json.RawMessage }
	if json.Unmarshal(raw, &spring) == nil && len(spring.Metadata) > 0 {
		return labels(spring.Metadata)
	}
	return labels(raw, "@class", "id", "name")
}

// labels takes what can be labels from an object.
func labels(raw json.RawMessage, but ...string) map[string]string {
	var all map[string]any
	if json.Unmarshal(raw, &all) != nil {
		return nil
	}
	for _, key := range but {
		delete(all, key)
	}
	var out map[string]string
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
		if out == nil {
			out = make(map[string]string)
		}
		out[key] = text
	}
	return out
}

// dubbo reads the name of a provider's node, which is its URL; the folder above is
// the interface's "providers".
func dubbo(c *mirror.Claim, folder, name string) (there bool, err error) {
	text, err := url.PathUnescape(name)
	if err != nil {
		return false, fmt.Errorf("%s: its name is no URL: %w", c.Origin, err)
	}
	u, err := url.Parse(text)
	if err != nil {
		return false, fmt.Errorf("%s: its name is no URL", c.Origin)
	}
	q := u.Query()
	if q.Get("disabled") == "true" || q.Get("enabled") == "false" {
		return false, nil
	}
	port, _ := strconv.Atoi(u.Port())
	above, _ := cutLast(folder)
	_, service := cutLast(above)
	if u.Hostname() == "" || port < 1 || port > 65535 || service == "" {
		return false, fmt.Errorf("%s: %q has no interface, host and port", c.Origin, u.Host)
	}
	c.Instance = weft.Instance{Service: weft.NewServiceName("", service), Address: u.Hostname(), Port: port, Labels: map[string]string{"dubbo": u.Scheme}}
	// The name itself is too long for an id, and changes with each start.
	c.ID = service + "/" + u.Scheme + "/" + u.Host
	for _, key := range []string{"version", "group", "application", "zone"} {
		if v := q.Get(key); v != "" {
			c.Labels[key] = v
			if key == "version" || key == "group" {
				c.ID += "/" + v
			}
		}
	}
	c.Zone = c.Labels["zone"]
	if w, err := strconv.Atoi(q.Get("weight")); err == nil && w > 0 && w < 1<<16 {
		c.Weights = weft.Weights{Passing: w, Warning: w}
	}
	if u.Scheme == "tri" || u.Scheme == "grpc" {
		c.Protocol = weft.GRPC
	}
	return true, nil
}
