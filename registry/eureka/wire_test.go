package eureka

import (
	"bytes"
	"compress/gzip"
	"encoding/xml"
	"io"
	"strings"
	"testing"

	"github.com/weftmesh/weft"
)

const amazonInstance = `{"instance":{"instanceId":"i-1","hostName":"ec2.example","app":"Order","ipAddr":"10.0.0.1",
	"appGroupName":"G","sid":"na","asgName":"g-1","status":"UP","overriddenStatus":"UNKNOWN","countryId":"2",
	"port":{"$":"8080","@enabled":"true"},"securePort":{"$":8443,"@enabled":"false"},
	"dataCenterInfo":{"@class":"com.netflix.appinfo.AmazonInfo","name":"Amazon","metadata":{"availability-zone":"us-east-1c","instance-id":"i-1"}},
	"leaseInfo":{"renewalIntervalInSecs":10,"durationInSecs":20,"evictionTimestamp":5},
	"metadata":{"n":5,"t":true,"x":null,"s":"<&\"\n€"},
	"homePageUrl":"http://h/","statusPageUrl":"http://h/info","healthCheckUrl":"http://h/health","secureHealthCheckUrl":"https://h/health",
	"vipAddress":"order,orders","secureVipAddress":"sorder","isCoordinatingDiscoveryServer":"false","lastDirtyTimestamp":"1700000000001",
	"actionType":"ADDED","somethingNew":{"a":[1]}}}`

// The shapes that Java's clients insist on, word by word.
func TestShapes(t *testing.T) {
	w := newWorld(t)
	at := number(1700000000000)
	w.post("ORDER", amazonInstance).want(204)
	w.registerHere("PLAIN", "p-1", `"lastDirtyTimestamp":"7"`)
	dates := func(s string) string { // the server's own clock is in them
		p := w.api.view.current()
		for _, a := range p.apps {
			r := a.rows[0].record()
			s = strings.ReplaceAll(s, string(appendInt(nil, int(r.LastUpdated))), string(appendInt(nil, int(at))))
		}
		return s
	}
	for _, c := range []struct {
		path   string
		header []string
		want   string
	}{
		{"/eureka/apps/ORDER", acceptJSON, `{"application":{"name":"ORDER","instance":[{"instanceId":"i-1","hostName":"ec2.example","app":"ORDER","ipAddr":"10.0.0.1","status":"UP","port":{"$":8080,"@enabled":"true"},"securePort":{"$":8443,"@enabled":"false"},"vipAddress":"order,orders","secureVipAddress":"sorder","asgName":"g-1","dataCenterInfo":{"@class":"com.netflix.appinfo.AmazonInfo","name":"Amazon","metadata":{"availability-zone":"us-east-1c","instance-id":"i-1"}},"appGroupName":"G","sid":"na","overriddenstatus":"UNKNOWN","countryId":2,"leaseInfo":{"renewalIntervalInSecs":10,"durationInSecs":20,"registrationTimestamp":1700000000000,"lastRenewalTimestamp":1700000000000,"evictionTimestamp":0,"serviceUpTimestamp":1700000000000},"metadata":{"n":"5","s":"<&\"\u000a€","t":"true","x":""},"homePageUrl":"http://h/","statusPageUrl":"http://h/info","healthCheckUrl":"http://h/health","secureHealthCheckUrl":"https://h/health","isCoordinatingDiscoveryServer":"false","lastDirtyTimestamp":"1700000000001","lastUpdatedTimestamp":"1700000000000","actionType":"ADDED"}]}}`},
		{"/eureka/v2/instances/p-1", acceptJSON, `{"instance":{"instanceId":"p-1","hostName":"host-1","app":"PLAIN","ipAddr":"10.0.0.1","status":"UP","port":{"$":8080,"@enabled":"true"},"securePort":{"$":0,"@enabled":"false"},"vipAddress":"plain","dataCenterInfo":{"@class":"com.netflix.appinfo.InstanceInfo$DefaultDataCenterInfo","name":"MyOwn"},"overriddenstatus":"UNKNOWN","countryId":1,"leaseInfo":{"renewalIntervalInSecs":30,"durationInSecs":90,"registrationTimestamp":1700000000000,"lastRenewalTimestamp":1700000000000,"evictionTimestamp":0,"serviceUpTimestamp":1700000000000},"metadata":{"@class":"java.util.Collections$EmptyMap"},"isCoordinatingDiscoveryServer":"false","lastDirtyTimestamp":"7","lastUpdatedTimestamp":"1700000000000","actionType":"ADDED"}}`},
		{"/eureka/vips/plain", append([]string{"X-Eureka-Accept", "compact"}, acceptJSON...), `{"applications":{"versions__delta":"1","apps__hashcode":"UP_1_","application":[{"name":"PLAIN","instance":[{"instanceId":"p-1","hostName":"host-1","app":"PLAIN","ipAddr":"10.0.0.1","status":"UP","port":{"$":8080,"@enabled":"true"},"securePort":{"$":0,"@enabled":"false"},"vipAddress":"plain","dataCenterInfo":{"@class":"com.netflix.appinfo.InstanceInfo$DefaultDataCenterInfo","name":"MyOwn"},"lastUpdatedTimestamp":"1700000000000","actionType":"ADDED"}]}]}}`},
		{"/eureka/svips/sorder", nil, `<applications><versions__delta>1</versions__delta><apps__hashcode>UP_1_</apps__hashcode><application><name>ORDER</name><instance><instanceId>i-1</instanceId><hostName>ec2.example</hostName><app>ORDER</app><ipAddr>10.0.0.1</ipAddr><status>UP</status><port enabled="true">8080</port><securePort enabled="false">8443</securePort><vipAddress>order,orders</vipAddress><secureVipAddress>sorder</secureVipAddress><asgName>g-1</asgName><dataCenterInfo class="com.netflix.appinfo.AmazonInfo"><name>Amazon</name><metadata><availability-zone>us-east-1c</availability-zone><instance-id>i-1</instance-id></metadata></dataCenterInfo><appGroupName>G</appGroupName><sid>na</sid><overriddenstatus>UNKNOWN</overriddenstatus><countryId>2</countryId><leaseInfo><renewalIntervalInSecs>10</renewalIntervalInSecs><durationInSecs>20</durationInSecs><registrationTimestamp>1700000000000</registrationTimestamp><lastRenewalTimestamp>1700000000000</lastRenewalTimestamp><evictionTimestamp>0</evictionTimestamp><serviceUpTimestamp>1700000000000</serviceUpTimestamp></leaseInfo><metadata><n>5</n><s>&lt;&amp;&#34;
€</s><t>true</t><x></x></metadata><homePageUrl>http://h/</homePageUrl><statusPageUrl>http://h/info</statusPageUrl><healthCheckUrl>http://h/health</healthCheckUrl><secureHealthCheckUrl>https://h/health</secureHealthCheckUrl><isCoordinatingDiscoveryServer>false</isCoordinatingDiscoveryServer><lastDirtyTimestamp>1700000000001</lastDirtyTimestamp><lastUpdatedTimestamp>1700000000000</lastUpdatedTimestamp><actionType>ADDED</actionType></instance></application></applications>`},
		{"/eureka/apps/plain/p-1", []string{"X-Eureka-Accept", "compact"}, `<instance><instanceId>p-1</instanceId><hostName>host-1</hostName><app>PLAIN</app><ipAddr>10.0.0.1</ipAddr><status>UP</status><port enabled="true">8080</port><securePort enabled="false">0</securePort><vipAddress>plain</vipAddress><dataCenterInfo class="com.netflix.appinfo.InstanceInfo$DefaultDataCenterInfo"><name>MyOwn</name></dataCenterInfo><lastUpdatedTimestamp>1700000000000</lastUpdatedTimestamp><actionType>ADDED</actionType></instance>`},
	} {
		a := w.send("GET", c.path, "", c.header...).want(200)
		if got := dates(a.body); got != c.want {
			t.Errorf("%s:\ngot  %s\nwant %s", c.path, got, c.want)
		}
	}
	zoned, _ := w.registry.Instance(weft.InstanceKey{Node: nodeName, ID: "i-1"})
	if zoned.Zone != "us-east-1c" {
		t.Errorf("zone %q, want Amazon's", zoned.Zone)
	}
}

// An empty catalogue is an empty list, not none.
func TestEmpty(t *testing.T) {
	w := newWorld(t)
	for _, path := range []string{"/eureka/apps", "/eureka/apps/delta"} {
		if got, want := w.send("GET", path, "", acceptJSON...).want(200).body, `{"applications":{"versions__delta":"1","apps__hashcode":"","application":[]}}`; got != want {
			t.Errorf("got %s", got)
		}
		if got, want := w.send("GET", path, "").want(200).body, `<applications><versions__delta>1</versions__delta><apps__hashcode></apps__hashcode></applications>`; got != want {
			t.Errorf("got %s", got)
		}
	}
	for _, path := range []string{"/eureka/apps/A", "/eureka/apps/A/a", "/eureka/instances/a", "/eureka/vips/a", "/eureka/svips/a"} {
		w.send("GET", path, "").want(404)
	}
}

func TestPathsAndMethods(t *testing.T) {
	w := newWorld(t)
	w.registerHere("A", "a/1:x")
	for _, c := range []struct {
		method, path string
		want         int
	}{
		{"GET", "/eureka/apps", 200}, {"GET", "/eureka/apps/", 200}, {"GET", "/eureka/v2/apps", 200}, {"GET", "/eureka/v2/apps/", 200},
		{"GET", "/eureka//apps//", 200}, {"GET", "/eureka/apps/A/a%2F1%3Ax", 200}, {"PUT", "/eureka/v2/apps/A/a%2F1:x/", 200},
		{"GET", "/eureka/apps?regions=us-east-1", 200}, {"HEAD", "/eureka/apps", 200}, {"GET", "/eureka/instances/a%2F1:x", 200},
		{"GET", "/eureka/status", 200}, {"GET", "/eureka/v2/serverinfo/statusoverrides", 200},
		{"GET", "/", 404}, {"GET", "/eureka", 404}, {"GET", "/eureka/v2/", 404}, {"GET", "/eureka/lastn", 404}, {"GET", "/v2/apps", 404},
		{"GET", "/eureka/apps/A/a/1:x", 404}, {"GET", "/eureka/apps/A/b/c/d/e", 404},
		{"POST", "/eureka/apps", 405}, {"PATCH", "/eureka/apps/A", 405}, {"DELETE", "/eureka/apps/A", 405},
		{"PUT", "/eureka/asg/g/status?value=DISABLED", 501},
	} {
		a := w.send(c.method, c.path, "")
		if a.status != c.want {
			t.Errorf("%s %s: %d, want %d: %s", c.method, c.path, a.status, c.want, a.body)
		}
		if c.want == 405 && a.header.Get("Allow") == "" {
			t.Errorf("%s %s: no Allow", c.method, c.path)
		}
		if c.method == "HEAD" && (a.body != "" || a.header.Get("Content-Length") == "0") {
			t.Errorf("HEAD: %q of length %s", a.body, a.header.Get("Content-Length"))
		}
	}
}

func TestRefusals(t *testing.T) {
	w := newWorld(t)
	const myOwnXML = `<dataCenterInfo class="x"><name>MyOwn</name></dataCenterInfo>`
	without := func(field string) string {
		b := body("A", "a-1")
		i := strings.Index(b, `"`+field+`"`)
		end := i + strings.Index(b[i:], ",") + 1
		return b[:i] + b[end:]
	}
	for _, c := range []struct {
		what, kind, body string
		status           int
		text             string
	}{
		{"no id", "application/json", strings.Replace(without("instanceId"), `"hostName":"host-1",`, "", 1), 400, "Missing instanceId"},
		{"no host", "application/json", without("hostName"), 400, "Missing hostname"},
		{"no address", "application/json", without("ipAddr"), 400, "Missing ip address"},
		{"no app", "application/json", without("app"), 400, "Missing appName"},
		{"other app", "application/json", body("B", "a-1"), 400, "Mismatched appName, expecting A but was B"},
		{"no data center", "application/json", `{"instance":{"instanceId":"a","hostName":"h","ipAddr":"1","app":"A"}}`, 400, "Missing dataCenterInfo"},
		{"nameless data center", "application/json", `{"instance":{"instanceId":"a","hostName":"h","ipAddr":"1","app":"A","dataCenterInfo":{}}}`, 400, "Missing dataCenterInfo Name"},
		{"no data center in XML", "application/xml", `<instance><hostName>h</hostName><ipAddr>1</ipAddr><app>a</app></instance>`, 400, "Missing dataCenterInfo"},
		{"bad port", "application/json", body("A", "a-1", `"securePort":{"$":70000}`), 400, "port"},
		{"endless lease", "application/json", body("A", "a-1", `"leaseInfo":{"durationInSecs":99999999999}`), 400, "leaseInfo"},
		{"empty", "application/json", " ", 400, "is empty"},
		{"bad JSON", "application/json", `{"instance":`, 400, "malformed JSON: at byte"},
		{"wrong type", "application/json", `{"instance":{"app":["A"]}}`, 400, "want string, not array"},
		{"no instance", "application/json", `{"application":{}}`, 400, `want {"instance"`},
		{"odd number", "application/json", body("A", "a-1", `"countryId":"x"`), 400, "is no integer"},
		{"odd truth", "application/json", body("A", "a-1", `"isCoordinatingDiscoveryServer":"maybe"`), 400, "neither true nor false"},
		{"bad XML", "application/xml", "<instance><app>A</instance>", 400, "malformed XML"},
		{"other XML", "application/xml", "<application/>", 400, "want <instance>"},
		{"two elements", "application/xml", "<instance/><instance/>", 400, "more than one element"},
		{"JSON said to be XML", "text/xml", body("A", "a-1"), 400, "malformed XML"},
		{"long id", "application/json", body("A", strings.Repeat("x", 300)), 400, "use at most"},
		{"too large", "application/json", body("A", "a-1", `"metadata":{"k":"`+strings.Repeat("x", maxBody)+`"}`), 413, "over 1048576 bytes"},
		{"too large a record", "application/json", body("A", "a-1", `"metadata":{"k":"`+strings.Repeat("x", maxBody/2)+`"}`), 413, "the limit is"},
	} {
		a := w.send("POST", "/eureka/apps/A", c.body, "Content-Type", c.kind)
		if a.status != c.status || !strings.Contains(a.body, c.text) {
			t.Errorf("%s: %d %q, want %d %q", c.what, a.status, a.body, c.status, c.text)
		}
	}
	w.send("POST", "/eureka/apps/A", "x", "Content-Encoding", "br").want(400)
	w.send("POST", "/eureka/apps/A", "x", "Content-Encoding", "gzip").want(400)
	w.send("POST", "/eureka/apps/A", packed(strings.Repeat(" ", maxBody+1)), "Content-Encoding", "gzip").want(413)
	if got := w.apps().statuses(); len(got) != 0 {
		t.Errorf("registered all the same: %v", got)
	}
	// And what must do.
	xmlBody := `<?xml version="1.0"?><instance><hostName>h</hostName><ipAddr>1.2.3.4</ipAddr><app>a</app>` + myOwnXML +
		`<port>8080</port><metadata><a.b>1</a.b></metadata><overriddenStatus>OUT_OF_SERVICE</overriddenStatus></instance>`
	w.send("POST", "/eureka/apps/A", xmlBody).want(204) // no Content-Type
	w.send("POST", "/eureka/v2/apps/a/", packed(body("a", "a-2")), "Content-Encoding", "gzip", "Content-Type", "application/json;charset=UTF-8").want(204)
	got := w.apps().statuses()
	if got["A/h"] != outOfService || got["A/a-2"] != up {
		t.Errorf("got %v", got)
	}
}

func packed(s string) string {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	io.WriteString(z, s)
	z.Close()
	return b.String()
}

func unpacked(t *testing.T, s string) string {
	t.Helper()
	z, err := gzip.NewReader(strings.NewReader(s))
	if err != nil {
		t.Fatal(err)
	}
	z.Multistream(false) // as Java's reader may
	b, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestNegotiation(t *testing.T) {
	w := newWorld(t)
	for _, app := range []string{"A", "B", "C"} {
		w.registerHere(app, "x", `"lastDirtyTimestamp":"1"`)
	}
	for _, path := range []string{"/eureka/apps", "/eureka/apps/delta", "/eureka/apps/A", "/eureka/vips/a"} {
		tags := make(map[string]bool)
		for _, accept := range []string{"", "application/xml", "application/json", "text/html, application/json;q=0.9"} {
			for _, compact := range []string{"full", "compact"} {
				header := []string{"Accept", accept, "X-Eureka-Accept", compact}
				plain := w.send("GET", path, "", header...).want(200)
				json := strings.Contains(accept, "json")
				if want := map[bool]string{true: "application/json", false: "application/xml"}[json]; plain.header.Get("Content-Type") != want {
					t.Errorf("%s for %q: %s", path, accept, plain.header.Get("Content-Type"))
				}
				if strings.HasPrefix(plain.body, "{") != json {
					t.Errorf("%s for %q: %.40s", path, accept, plain.body)
				}
				if strings.Contains(plain.body, "leaseInfo") == (compact == "compact") {
					t.Errorf("%s %s: %s", path, compact, plain.body)
				}
				small := w.send("GET", path, "", append(header, "Accept-Encoding", "deflate, gzip;q=0.5")...).want(200)
				if small.header.Get("Content-Encoding") != "gzip" || unpacked(t, small.body) != plain.body {
					t.Errorf("%s for %q packed is something else", path, accept)
				}
				tag := plain.header.Get("ETag")
				tags[tag], tags[small.header.Get("ETag")] = true, true
				again := w.send("GET", path, "", append(header, "If-None-Match", `"x", W/`+tag)...)
				if again.status != 304 || again.body != "" {
					t.Errorf("%s with its ETag: %d", path, again.status)
				}
			}
		}
		if len(tags) != 8 { // forms, packed or not
			t.Errorf("%s: %d ETags, want 8", path, len(tags))
		}
	}
	if a := w.send("GET", "/eureka/apps", "", "Accept-Encoding", "gzip;q=0"); a.header.Get("Content-Encoding") != "" {
		t.Error("gzip although it was refused")
	}
	before := w.send("GET", "/eureka/apps", "").header.Get("ETag")
	w.registerHere("A", "y")
	if after := w.send("GET", "/eureka/apps", "", "If-None-Match", before); after.status != 200 {
		t.Errorf("after a change: %d", after.status)
	}
}

// Prometheus reads XML with these types' shapes (its eureka service discovery).
func TestXMLAsPrometheusReadsIt(t *testing.T) {
	w := newWorld(t)
	w.post("ORDER", amazonInstance).want(204)
	var got struct {
		VersionsDelta int    `xml:"versions__delta"`
		Hash          string `xml:"apps__hashcode"`
		Apps          []struct {
			Name      string `xml:"name"`
			Instances []struct {
				HostName   string `xml:"hostName"`
				App        string `xml:"app"`
				IPAddr     string `xml:"ipAddr"`
				Status     string `xml:"status"`
				CountryID  int    `xml:"countryId"`
				InstanceID string `xml:"instanceId"`
				Port       struct {
					Port    int  `xml:",chardata"`
					Enabled bool `xml:"enabled,attr"`
				} `xml:"port"`
				DataCenter struct {
					Class string `xml:"class,attr"`
					Name  string `xml:"name"`
				} `xml:"dataCenterInfo"`
				Metadata struct {
					Items []struct {
						XMLName xml.Name
						Content string `xml:",innerxml"`
					} `xml:",any"`
				} `xml:"metadata"`
				Coordinating bool `xml:"isCoordinatingDiscoveryServer"`
			} `xml:"instance"`
		} `xml:"application"`
	}
	if err := xml.Unmarshal([]byte(w.send("GET", "/eureka/apps", "").body), &got); err != nil {
		t.Fatal(err)
	}
	in := got.Apps[0].Instances[0]
	if got.VersionsDelta != 1 || got.Hash != "UP_1_" || in.Port.Port != 8080 || !in.Port.Enabled || in.CountryID != 2 ||
		in.DataCenter.Name != "Amazon" || in.DataCenter.Class != amazonClass || len(in.Metadata.Items) != 4 {
		t.Errorf("got %+v", got)
	}
}
