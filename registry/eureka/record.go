package eureka

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"strconv"
	"strings"

	"github.com/weftmesh/weft"
)

// status of an instance in Eureka's words.
type status string

const (
	up           status = "UP"
	down         status = "DOWN"
	starting     status = "STARTING"
	outOfService status = "OUT_OF_SERVICE"
	unknown      status = "UNKNOWN"
)

// statuses in the order in which a hash code names them.
var statuses = [...]status{down, outOfService, starting, unknown, up}

// place in statuses.
func (s status) place() int {
	for i, v := range statuses {
		if s == v {
			return i
		}
	}
	return 3 // unknown
}

// known reads a status in any case; what is none is UNKNOWN, as for Eureka's server.
func (s status) known() status { return statuses[status(strings.ToUpper(string(s))).place()] }

// parseStatus reads a status that stands in a query.
func parseStatus(s string) (status, error) {
	st := status(strings.ToUpper(s))
	if st.known() != st {
		return unknown, weft.Errorf(weft.Invalid, "read value", s, "want UP, DOWN, STARTING, OUT_OF_SERVICE or UNKNOWN")
	}
	return st, nil
}

// record is an instance in Eureka's words: what a registration says, what is kept of
// it with the instance (as JSON), and what an answer tells.
type record struct {
	InstanceID           string      `json:"instanceId,omitempty" xml:"instanceId"`
	HostName             string      `json:"hostName,omitempty" xml:"hostName"`
	App                  string      `json:"app,omitempty" xml:"app"`
	AppGroupName         string      `json:"appGroupName,omitempty" xml:"appGroupName"`
	IPAddr               string      `json:"ipAddr,omitempty" xml:"ipAddr"`
	SID                  string      `json:"sid,omitempty" xml:"sid"`
	Status               status      `json:"status,omitempty" xml:"status"`
	Overridden           status      `json:"overriddenstatus,omitempty" xml:"overriddenstatus"`
	OverriddenToo        status      `json:"-" xml:"overriddenStatus"` // newer clients' spelling; XML knows case
	Port                 port        `json:"port,omitzero" xml:"port"`
	SecurePort           port        `json:"securePort,omitzero" xml:"securePort"`
	HomePageURL          string      `json:"homePageUrl,omitempty" xml:"homePageUrl"`
	StatusPageURL        string      `json:"statusPageUrl,omitempty" xml:"statusPageUrl"`
	HealthCheckURL       string      `json:"healthCheckUrl,omitempty" xml:"healthCheckUrl"`
	SecureHealthCheckURL string      `json:"secureHealthCheckUrl,omitempty" xml:"secureHealthCheckUrl"`
	VIPAddress           string      `json:"vipAddress,omitempty" xml:"vipAddress"`
	SecureVIPAddress     string      `json:"secureVipAddress,omitempty" xml:"secureVipAddress"`
	CountryID            number      `json:"countryId,omitempty" xml:"countryId"`
	DataCenter           *dataCenter `json:"dataCenterInfo,omitempty" xml:"dataCenterInfo"`
	Lease                lease       `json:"leaseInfo,omitzero" xml:"leaseInfo"`
	Coordinating         flag        `json:"isCoordinatingDiscoveryServer,omitempty" xml:"isCoordinatingDiscoveryServer"`
	Metadata             metadata    `json:"metadata,omitempty" xml:"metadata"`
	LastUpdated          number      `json:"lastUpdatedTimestamp,omitempty" xml:"lastUpdatedTimestamp"` // ms
	LastDirty            number      `json:"lastDirtyTimestamp,omitempty" xml:"lastDirtyTimestamp"`     // ms, by the client's clock
	ASGName              string      `json:"asgName,omitempty" xml:"asgName"`
}

// lease as the client wants it, and when what happened to it.
type lease struct {
	RenewalInterval number `json:"renewalIntervalInSecs,omitempty" xml:"renewalIntervalInSecs"`
	Duration        number `json:"durationInSecs,omitempty" xml:"durationInSecs"`
	Registration    number `json:"registrationTimestamp,omitempty" xml:"registrationTimestamp"` // ms
	LastRenewal     number `json:"lastRenewalTimestamp,omitempty" xml:"lastRenewalTimestamp"`   // ms
	ServiceUp       number `json:"serviceUpTimestamp,omitempty" xml:"serviceUpTimestamp"`       // ms
}

const (
	defaultRenewal  = 30 // seconds
	defaultDuration = 90 // seconds
)

// dataCenter is where an instance runs.
type dataCenter struct {
	Class    string   `json:"@class,omitempty" xml:"class,attr"` // of Java
	Name     string   `json:"name,omitempty" xml:"name"`         // "MyOwn", "Amazon"
	Metadata metadata `json:"metadata,omitempty" xml:"metadata"` // of Amazon
}

const (
	ownClass    = "com.netflix.appinfo.InstanceInfo$DefaultDataCenterInfo"
	amazonClass = "com.netflix.appinfo.AmazonInfo"
)

var myOwn = &dataCenter{Class: ownClass, Name: "MyOwn"}

// class is what a Java client must know to read it.
func (d *dataCenter) class() string {
	switch {
	case d.Class != "":
		return d.Class
	case d.Name == "Amazon":
		return amazonClass
	}
	return ownClass
}

// port with the word whether it is used: {"$":8080,"@enabled":"true"}.
type port struct {
	Number  number `json:"$" xml:",chardata"`
	Enabled *flag  `json:"@enabled,omitempty" xml:"enabled,attr"` // nil in a registration only
}

func newPort(n int, enabled bool) port {
	f := flag(enabled)
	return port{Number: number(n), Enabled: &f}
}

func (p port) on() bool { return p.Enabled != nil && bool(*p.Enabled) }

// IsZero makes the default of a port the absence of it, when it is kept.
func (p port) IsZero() bool { return p == port{} }

// UnmarshalJSON also reads a bare number.
func (p *port) UnmarshalJSON(b []byte) error {
	if len(b) > 0 && b[0] == '{' {
		type plain port
		return json.Unmarshal(b, (*plain)(p))
	}
	return p.Number.UnmarshalJSON(b)
}

// number is an integer that may come as a text.
type number int64

func (n *number) UnmarshalJSON(b []byte) error {
	s := unquote(b)
	if s == "" || s == "null" {
		return nil
	}
	v, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return fmt.Errorf("%s is no integer", b)
	}
	*n = number(v)
	return nil
}

// flag is a truth that may come as a text.
type flag bool

func (f *flag) UnmarshalJSON(b []byte) error {
	switch s := unquote(b); s {
	case "true", "false":
		*f = s == "true"
	case "", "null":
	default:
		return fmt.Errorf("%s is neither true nor false", b)
	}
	return nil
}

func unquote(b []byte) string { return string(bytes.Trim(b, `"`)) }

// metadata are names and values, the user's own.
type metadata map[string]string

// UnmarshalJSON takes numbers and other values as their text. The name of Java's
// class for an empty map is none of the user's.
func (m *metadata) UnmarshalJSON(b []byte) error {
	var raw map[string]json.RawMessage
	if err := json.Unmarshal(b, &raw); err != nil {
		return err
	}
	for k, v := range raw {
		if k == "@class" {
			continue
		}
		var text string
		if json.Unmarshal(v, &text) != nil {
			text = string(v)
		}
		m.set(k, text)
	}
	return nil
}

func (m *metadata) set(k, v string) {
	if *m == nil {
		*m = make(metadata)
	}
	(*m)[k] = v
}

// UnmarshalXML reads the elements by their names.
func (m *metadata) UnmarshalXML(d *xml.Decoder, start xml.StartElement) error {
	for {
		t, err := d.Token()
		if err != nil {
			return err
		}
		switch t := t.(type) {
		case xml.EndElement:
			return nil
		case xml.StartElement:
			var text string
			if err := d.DecodeElement(&text, &t); err != nil {
				return err
			}
			name := t.Name.Local
			if t.Name.Space != "" {
				name = t.Name.Space + ":" + name
			}
			m.set(fromXMLName(name), text)
		}
	}
}

// normalize brings a decoded registration into the one form.
func (r *record) normalize() {
	r.App = strings.ToUpper(r.App)
	if r.Status == "" {
		r.Status = up // as Eureka's server takes it
	}
	r.Status = r.Status.known()
	if r.Overridden == "" {
		r.Overridden = r.OverriddenToo
	}
	r.OverriddenToo = ""
	r.Overridden = r.Overridden.known()
	if r.Port.Enabled == nil {
		r.Port = newPort(int(r.Port.Number), r.Port.Number > 0)
	}
	if r.SecurePort.Enabled == nil {
		r.SecurePort = newPort(int(r.SecurePort.Number), false)
	}
	if r.CountryID == 0 {
		r.CountryID = 1
	}
	if r.Lease.RenewalInterval <= 0 {
		r.Lease.RenewalInterval = defaultRenewal
	}
	if r.Lease.Duration <= 0 {
		r.Lease.Duration = defaultDuration
	}
	if r.DataCenter != nil {
		d := *r.DataCenter
		if len(d.Metadata) == 0 {
			d.Metadata = nil
		}
		r.DataCenter = &d
	}
	if len(r.Metadata) == 0 {
		r.Metadata = nil
	}
}

// maxSeconds is the longest lease: what Eureka's clients can say, in a Java int.
const maxSeconds = 1<<31 - 1

// fault returns what is wrong with a registration for app, in the words of Eureka's
// server; "" is nothing.
func (r *record) fault(app string) string {
	switch {
	case r.InstanceID == "" && r.HostName == "":
		return "Missing instanceId"
	case r.HostName == "":
		return "Missing hostname"
	case r.IPAddr == "":
		return "Missing ip address"
	case r.App == "":
		return "Missing appName"
	case r.App != strings.ToUpper(app):
		return "Mismatched appName, expecting " + strings.ToUpper(app) + " but was " + r.App
	case r.DataCenter == nil:
		return "Missing dataCenterInfo"
	case r.DataCenter.Name == "":
		return "Missing dataCenterInfo Name"
	case r.Lease.Duration > maxSeconds || r.Lease.RenewalInterval > maxSeconds:
		return fmt.Sprintf("leaseInfo: more than %d seconds", maxSeconds)
	case r.Port.Number < 0 || r.Port.Number > 65535 || r.SecurePort.Number < 0 || r.SecurePort.Number > 65535:
		return "port, securePort: want 0 to 65535"
	}
	return ""
}
