package resource

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/weftmesh/weft"
	"google.golang.org/protobuf/types/known/durationpb"
	networking "istio.io/api/networking/v1alpha3"
)

// What the checks of several kinds share. A check looks at the meaning of a
// spec whose form is right, and compiles what can only be checked by compiling.

// duration checks a time that may be absent; 0 is allowed where it means "none".
func (r *report) duration(path string, d *durationpb.Duration, zero bool) {
	if d == nil {
		return
	}
	switch v := d.AsDuration(); {
	case v < 0:
		r.errorf(path, "", "%s is negative", v)
	case v == 0 && !zero:
		r.errorf(path, "leave it out for the default", "0 is no time to wait")
	case v > 0 && v < time.Millisecond:
		r.errorf(path, "write at least 1ms", "%s is too short", v)
	}
}

func (r *report) percent(path string, v int32) {
	if v < 0 || v > 100 {
		r.errorf(path, "write 0 to 100", "%d is no percentage", v)
	}
}

func (r *report) notNegative(path string, v int32) {
	if v < 0 {
		r.errorf(path, "leave it out for no limit", "%d is negative", v)
	}
}

// A host's labels; Kubernetes allows no "_", DNS in practice does.
var hostname = regexp.MustCompile(`^[a-z0-9_]([-_a-z0-9]*[a-z0-9_])?(\.[a-z0-9_]([-_a-z0-9]*[a-z0-9_])?)*$`)

// host checks a host name, which may be "*" or begin with "*.".
func (r *report) host(path, host string) {
	name := strings.ToLower(strings.TrimPrefix(host, "*."))
	if host == "*" || len(host) <= 253 && hostname.MatchString(name) {
		return
	}
	mend := "write a name such as order-service, api.example.com or *.example.com"
	if before, port, ok := strings.Cut(name, ":"); ok && hostname.MatchString(before) && port != "" {
		mend = "leave the port out: write " + before
	}
	r.errorf(path, mend, "%q is no host name", host)
}

// exportTo knows "everywhere" and "own namespace".
func (r *report) exportTo(list []string) {
	for i, v := range list {
		if v != "*" && v != "." {
			r.unsupported(fmt.Sprintf("spec.exportTo[%d]", i), "write \"*\" or \".\"", "exportTo %q", v)
		}
	}
}

// private reports whether exportTo keeps a resource in its namespace.
func private(exportTo []string) bool {
	for _, v := range exportTo {
		if v == "." {
			return true
		}
	}
	return false
}

// regex checks an expression alone: weft.NewStringMatch wraps it into a group,
// where "a)(b" would pass.
func (r *report) regex(path, value string) {
	if _, err := regexp.Compile(value); err != nil {
		r.errorf(path, "the syntax is RE2's, and the whole value must match", "%v", err)
		return
	}
	if _, err := weft.NewStringMatch(weft.MatchRegex, value); err != nil {
		r.errorf(path, "", "%v", errors.Unwrap(err))
	}
}

// valueMatch checks the match of a header or a query parameter, whose regex "*"
// asks for presence.
func (r *report) valueMatch(path string, m *networking.StringMatch) {
	if re := m.GetRegex(); re != "" && re != "*" {
		r.regex(path+".regex", re)
	}
}

// A field name by RFC 9110 §5.1.
var token = regexp.MustCompile("^[-!#$%&'*+.^_`|~0-9A-Za-z]+$")

func (r *report) headerName(path, name string) bool {
	if !token.MatchString(name) {
		r.errorf(path, "", "%q is no name of a header", name)
		return false
	}
	return true
}

// line refuses what would end a line of a head too early.
func (r *report) line(path, value string) {
	if strings.ContainsAny(value, "\r\n\x00") {
		r.errorf(path, "", "a line break cannot be sent in a header")
	}
}

// selector checks the labels by which a policy is given to workloads.
func (r *report) selector(labels map[string]string) {
	for k, v := range labels {
		path := "spec.selector.matchLabels[" + k + "]"
		if k == "" {
			r.errorf(path, "", "a label needs a name")
		}
		if strings.Contains(k+v, "*") {
			r.errorf(path, "labels are compared whole", "%q has a wildcard", k+": "+v)
		}
	}
}

func (r *report) port(path, value string) {
	if n, err := strconv.ParseUint(value, 10, 16); err != nil || n == 0 {
		r.errorf(path, "write a number from 1 to 65535", "%q is no port", value)
	}
}
