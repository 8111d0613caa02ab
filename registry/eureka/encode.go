package eureka

import (
	"maps"
	"slices"
	"strconv"
)

// form is how an answer is written.
type form uint8

const (
	xmlFull form = iota
	xmlCompact
	jsonFull
	jsonCompact
	forms = 4
)

func (f form) json() bool    { return f >= jsonFull }
func (f form) compact() bool { return f == xmlCompact || f == jsonCompact }

func (f form) contentType() string {
	if f.json() {
		return "application/json"
	}
	return "application/xml"
}

// What a delta says happened to an instance. Full lists say ADDED.
const (
	added    = "ADDED"
	modified = "MODIFIED"
	deleted  = "DELETED"
)

// listHead begins a list of applications; their texts follow, with a comma between
// them in JSON, and then listTail.
func (f form) listHead(hash string) string {
	if f.json() {
		return `{"applications":{"versions__delta":"1","apps__hashcode":"` + hash + `","application":[`
	}
	return "<applications><versions__delta>1</versions__delta><apps__hashcode>" + hash + "</apps__hashcode>"
}

func (f form) listTail() string {
	if f.json() {
		return "]}}"
	}
	return "</applications>"
}

// appendApp appends an application with the rows, each with its action.
func (f form) appendApp(b []byte, name string, rows []*row, action func(i int) string) []byte {
	if f.json() {
		b = append(b, `{"name":`...)
		b = appendJSONText(b, name)
		b = append(b, `,"instance":[`...)
		for i, w := range rows {
			if i > 0 {
				b = append(b, ',')
			}
			r := w.record()
			b = f.appendJSON(b, &r, action(i))
		}
		return append(b, "]}"...)
	}
	b = append(b, "<application>"...)
	b = appendElement(b, "name", name)
	for i, w := range rows {
		r := w.record()
		b = f.appendXML(b, &r, action(i))
	}
	return append(b, "</application>"...)
}

// alwaysAdded is the action of a row in a full list.
func alwaysAdded(int) string { return added }

// appendInstance appends a record as an answer of its own.
func (f form) appendInstance(b []byte, r *record) []byte {
	if f.json() {
		b = f.appendJSON(append(b, `{"instance":`...), r, added)
		return append(b, '}')
	}
	return f.appendXML(b, r, added)
}

// appendJSON writes the shape that Java's clients read: times and some truths are
// texts, other numbers are numbers.
func (f form) appendJSON(b []byte, r *record, action string) []byte {
	b = append(b, '{')
	b = appendField(b, "instanceId", r.InstanceID)
	b = appendField(b, "hostName", r.HostName)
	b = appendField(b, "app", r.App)
	b = appendField(b, "ipAddr", r.IPAddr)
	b = appendField(b, "status", string(r.Status))
	b = appendJSONPort(b, "port", r.Port)
	b = appendJSONPort(b, "securePort", r.SecurePort)
	b = appendOptional(b, "vipAddress", r.VIPAddress)
	b = appendOptional(b, "secureVipAddress", r.SecureVIPAddress)
	b = appendOptional(b, "asgName", r.ASGName)
	b = append(b, `"dataCenterInfo":{`...)
	b = appendField(b, "@class", r.DataCenter.class())
	b = appendField(b, "name", r.DataCenter.Name)
	if len(r.DataCenter.Metadata) > 0 {
		b = appendJSONMap(append(b, `"metadata":`...), r.DataCenter.Metadata)
	} else {
		b = b[:len(b)-1]
	}
	b = append(b, "},"...)
	if !f.compact() {
		b = appendJSONRest(b, r)
	}
	b = appendField(b, "lastUpdatedTimestamp", strconv.FormatInt(int64(r.LastUpdated), 10))
	b = appendField(b, "actionType", action)
	b[len(b)-1] = '}'
	return b
}

// appendJSONRest is what the compact form leaves out.
func appendJSONRest(b []byte, r *record) []byte {
	b = appendOptional(b, "appGroupName", r.AppGroupName)
	b = appendOptional(b, "sid", r.SID)
	b = appendField(b, "overriddenstatus", string(r.Overridden))
	b = append(b, `"countryId":`...)
	b = strconv.AppendInt(b, int64(r.CountryID), 10)
	b = append(b, `,"leaseInfo":{`...)
	for i, n := range r.Lease.numbers() {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(append(append(b, '"'), n.name...), '"', ':')
		b = strconv.AppendInt(b, int64(n.value), 10)
	}
	b = append(b, `},"metadata":`...)
	if len(r.Metadata) == 0 {
		b = append(b, `{"@class":"`+emptyMap+`"}`...)
	} else {
		b = appendJSONMap(b, r.Metadata)
	}
	b = append(b, ',')
	b = appendOptional(b, "homePageUrl", r.HomePageURL)
	b = appendOptional(b, "statusPageUrl", r.StatusPageURL)
	b = appendOptional(b, "healthCheckUrl", r.HealthCheckURL)
	b = appendOptional(b, "secureHealthCheckUrl", r.SecureHealthCheckURL)
	b = appendField(b, "isCoordinatingDiscoveryServer", strconv.FormatBool(bool(r.Coordinating)))
	return appendField(b, "lastDirtyTimestamp", strconv.FormatInt(int64(r.LastDirty), 10))
}

// emptyMap is the class of Java that metadata have when there are none.
const emptyMap = "java.util.Collections$EmptyMap"

func appendField(b []byte, name, value string) []byte {
	b = append(append(append(b, '"'), name...), '"', ':')
	return append(appendJSONText(b, value), ',')
}

func appendOptional(b []byte, name, value string) []byte {
	if value == "" {
		return b
	}
	return appendField(b, name, value)
}

func appendJSONPort(b []byte, name string, p port) []byte {
	b = append(append(append(b, '"'), name...), `":{"$":`...)
	b = strconv.AppendInt(b, int64(p.Number), 10)
	b = append(b, `,"@enabled":"`...)
	b = strconv.AppendBool(b, p.on())
	return append(b, `"},`...)
}

func appendJSONMap(b []byte, m metadata) []byte {
	b = append(b, '{')
	for _, k := range slices.Sorted(maps.Keys(m)) {
		b = append(appendJSONText(b, k), ':')
		b = append(appendJSONText(b, m[k]), ',')
	}
	b[len(b)-1] = '}'
	return b
}

type namedNumber struct {
	name  string
	value number
}

func (l *lease) numbers() [6]namedNumber {
	return [...]namedNumber{
		{"renewalIntervalInSecs", l.RenewalInterval}, {"durationInSecs", l.Duration},
		{"registrationTimestamp", l.Registration}, {"lastRenewalTimestamp", l.LastRenewal},
		{"evictionTimestamp", 0}, {"serviceUpTimestamp", l.ServiceUp},
	}
}

func (f form) appendXML(b []byte, r *record, action string) []byte {
	b = append(b, "<instance>"...)
	b = appendElement(b, "instanceId", r.InstanceID)
	b = appendElement(b, "hostName", r.HostName)
	b = appendElement(b, "app", r.App)
	b = appendElement(b, "ipAddr", r.IPAddr)
	b = appendElement(b, "status", string(r.Status))
	b = appendXMLPort(b, "port", r.Port)
	b = appendXMLPort(b, "securePort", r.SecurePort)
	b = appendOptionalElement(b, "vipAddress", r.VIPAddress)
	b = appendOptionalElement(b, "secureVipAddress", r.SecureVIPAddress)
	b = appendOptionalElement(b, "asgName", r.ASGName)
	b = append(b, `<dataCenterInfo class="`...)
	b = appendXMLText(b, r.DataCenter.class())
	b = append(b, `">`...)
	b = appendElement(b, "name", r.DataCenter.Name)
	if len(r.DataCenter.Metadata) > 0 {
		b = appendXMLMap(b, r.DataCenter.Metadata)
	}
	b = append(b, "</dataCenterInfo>"...)
	if !f.compact() {
		b = appendXMLRest(b, r)
	}
	b = appendElement(b, "lastUpdatedTimestamp", strconv.FormatInt(int64(r.LastUpdated), 10))
	b = appendElement(b, "actionType", action)
	return append(b, "</instance>"...)
}

func appendXMLRest(b []byte, r *record) []byte {
	b = appendOptionalElement(b, "appGroupName", r.AppGroupName)
	b = appendOptionalElement(b, "sid", r.SID)
	b = appendElement(b, "overriddenstatus", string(r.Overridden))
	b = appendElement(b, "countryId", strconv.FormatInt(int64(r.CountryID), 10))
	b = append(b, "<leaseInfo>"...)
	for _, n := range r.Lease.numbers() {
		b = appendElement(b, n.name, strconv.FormatInt(int64(n.value), 10))
	}
	b = append(b, "</leaseInfo>"...)
	if len(r.Metadata) == 0 {
		b = append(b, `<metadata class="`+emptyMap+`"/>`...)
	} else {
		b = appendXMLMap(b, r.Metadata)
	}
	b = appendOptionalElement(b, "homePageUrl", r.HomePageURL)
	b = appendOptionalElement(b, "statusPageUrl", r.StatusPageURL)
	b = appendOptionalElement(b, "healthCheckUrl", r.HealthCheckURL)
	b = appendOptionalElement(b, "secureHealthCheckUrl", r.SecureHealthCheckURL)
	b = appendElement(b, "isCoordinatingDiscoveryServer", strconv.FormatBool(bool(r.Coordinating)))
	return appendElement(b, "lastDirtyTimestamp", strconv.FormatInt(int64(r.LastDirty), 10))
}

func appendElement(b []byte, name, text string) []byte {
	b = append(append(append(b, '<'), name...), '>')
	b = appendXMLText(b, text)
	return append(append(append(b, "</"...), name...), '>')
}

func appendOptionalElement(b []byte, name, text string) []byte {
	if text == "" {
		return b
	}
	return appendElement(b, name, text)
}

func appendXMLPort(b []byte, name string, p port) []byte {
	b = append(append(append(b, '<'), name...), ` enabled="`...)
	b = strconv.AppendBool(b, p.on())
	b = append(b, `">`...)
	b = strconv.AppendInt(b, int64(p.Number), 10)
	return append(append(append(b, "</"...), name...), '>')
}

func appendXMLMap(b []byte, m metadata) []byte {
	b = append(b, "<metadata>"...)
	for _, k := range slices.Sorted(maps.Keys(m)) {
		b = appendElement(b, toXMLName(k), m[k])
	}
	return append(b, "</metadata>"...)
}
