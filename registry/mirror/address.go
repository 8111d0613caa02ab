package mirror

import (
	"maps"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strings"

	"github.com/weftmesh/weft"
)

// Address is where a source is, as a flag says it:
//
//	scheme://[user:password@]host[:port][,host[:port]…][/path][?option=value]
type Address struct {
	Scheme, User, Password string
	Hosts                  []string // host:port
	Path                   string   // what follows the first slash, without one at its end
	Options                url.Values
}

// ParseAddress reads an address. schemes are those that there are, each with its
// default port; the options that are not in known are refused.
func ParseAddress(s string, schemes map[string]string, known ...string) (a Address, err error) {
	wrong := func(format string, args ...any) (Address, error) {
		return Address{}, weft.Errorf(weft.Invalid, "read", "address "+hidePassword(s), format, args...)
	}
	scheme, rest, ok := strings.Cut(s, "://")
	port, listed := schemes[scheme]
	if !ok || !listed {
		return wrong("want scheme://host:port/path with one of the schemes %s", strings.Join(slices.Sorted(maps.Keys(schemes)), ", "))
	}
	a.Scheme = scheme
	rest, query, _ := strings.Cut(rest, "?")
	if a.Options, err = url.ParseQuery(query); err != nil {
		return wrong("the options behind \"?\" are malformed")
	}
	for name := range a.Options {
		if !slices.Contains(known, name) {
			return wrong("there is no option %q; there are %s", name, strings.Join(known, ", "))
		}
	}
	authority, path, _ := strings.Cut(rest, "/")
	if path, err = url.PathUnescape(path); err != nil {
		return wrong("the path is malformed")
	}
	a.Path = strings.TrimRight(path, "/")
	if at := strings.LastIndexByte(authority, '@'); at >= 0 {
		user, password, _ := strings.Cut(authority[:at], ":")
		var errs [2]error
		a.User, errs[0] = url.PathUnescape(user)
		a.Password, errs[1] = url.PathUnescape(password)
		if errs[0] != nil || errs[1] != nil {
			return wrong("user or password is malformed; write special characters as %%XX")
		}
		authority = authority[at+1:]
	}
	for _, host := range strings.Split(authority, ",") {
		if _, _, err := net.SplitHostPort(host); err != nil {
			host = net.JoinHostPort(strings.Trim(host, "[]"), port)
		}
		name, number, err := net.SplitHostPort(host)
		if _, notIP := netip.ParseAddr(name); err != nil || name == "" || number == "" || strings.Contains(name, ":") && notIP != nil {
			return wrong("%q is not host:port", host)
		}
		a.Hosts = append(a.Hosts, host)
	}
	return a, nil
}

// hidePassword makes an address fit for messages.
func hidePassword(s string) string {
	scheme, rest, ok := strings.Cut(s, "://")
	at := strings.LastIndexByte(rest, '@')
	if !ok || at < 0 {
		return s
	}
	user, _, _ := strings.Cut(rest[:at], ":")
	return scheme + "://" + user + ":…@" + rest[at+1:]
}

// String is the address without its password and options.
func (a Address) String() string {
	s := strings.Join(a.Hosts, ",")
	if a.Path != "" {
		s += "/" + a.Path
	}
	return s
}
