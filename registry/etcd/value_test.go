package etcd

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/weftmesh/weft"
)

func TestValues(t *testing.T) {
	for _, c := range []struct{ prefix, key, value, want string }{
		{"services/", "services/web/10.0.0.1:80", `{"Op":0,"Addr":"10.0.0.1:80","Metadata":null}`, "web web/10.0.0.1:80 10.0.0.1:80 map[]"},
		{"services/", "services/web/7", "10.0.0.1:80\n", "web web/7 10.0.0.1:80 map[]"},
		{"services/", "services/web/7", "http://10.0.0.1:80/path", "web web/7 10.0.0.1:80 map[]"},
		{"services/", "services/web/7", `{"Addr":"[fd00::1]:80","Metadata":{"version":"v1","canary":true,"weight":2.5,"deep":{"x":1}}}`,
			"web web/7 fd00::1:80 map[canary:true version:v1 weight:2.5]"},
		{"services/", "services/shop/web/7", "h:1", "shop-web shop/web/7 h:1 map[]"},
		{"services/web/", "services/web/7", "h:1", "web 7 h:1 map[]"},
		{"", "/micro/web/7", "h:1", "micro-web micro/web/7 h:1 map[]"},
		{"services/", "services/web/7", `{"Op":1,"Addr":"h:1"}`, "gone"},
		{"services/", "services/web/7", `{"Op":0`, `etcd key "services/web/7": the value is no JSON: unexpected end of JSON input`},
		{"services/", "services/web/7", `{"Op":0}`, `etcd key "services/web/7": the value has the address ""; want host:port`},
		{"services/", "services/web/7", "h:0", `has the address "h:0"; want host:port`},
		{"services/", "services/web/7", ":80", `has the address ":80"; want host:port`},
		{"", "web", "h:1", `etcd key "web": no service stands in it; want SERVICE/INSTANCE`},
	} {
		claim, there, err := parse(c.prefix, c.key, []byte(c.value))
		got := fmt.Sprintf("%s %s %s:%d %v", claim.Service.Name, claim.ID, claim.Address, claim.Port, claim.Labels)
		if err != nil {
			got = err.Error()
		} else if !there {
			got = "gone"
		}
		if got != c.want && (err == nil || !strings.Contains(got, c.want)) {
			t.Errorf("%s = %s:\n got %s\nwant %s", c.key, c.value, got, c.want)
		}
	}
}

func FuzzValue(f *testing.F) {
	f.Add("services/web/a", []byte(`{"Op":0,"Addr":"10.0.0.1:80","Metadata":{"version":"v1"}}`))
	f.Add("services/web/a", []byte("10.0.0.1:80"))
	f.Add("services//", []byte("[::1]:80"))
	f.Fuzz(func(t *testing.T, key string, value []byte) {
		claim, there, err := parse("services/", "services/"+key, value)
		if err == nil && there && (claim.Port < 1 || claim.Port > 65535 || claim.Address == "" || claim.Service.Name == "") {
			t.Errorf("%q = %q: %+v", key, value, claim)
		}
	})
}

func TestAddresses(t *testing.T) {
	dir := t.TempDir()
	secret := filepath.Join(dir, "secret")
	if err := os.WriteFile(secret, []byte("s3cret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for address, want := range map[string]string{
		"http://10.0.0.1:2379,10.0.0.2/services/":                 "[10.0.0.1:2379 10.0.0.2:2379] services   false ",
		"http://h//micro/registry":                                "[h:2379] /micro/registry   false ",
		"https://root:a%40b@[fd00::1]:99":                         "[[fd00::1]:99]  root a@b true ",
		"http://root@h/services?node=old&password-file=" + secret: "[h:2379] services root s3cret false old",
		"h:2379":                         `read address h:2379: want scheme://host:port/path with one of the schemes http, https`,
		"http://u:p@h:x:y":               `read address http://u:…@h:x:y: "[h:x:y]:2379" is not host:port`,
		"http:///services":               `":2379" is not host:port`,
		"http://h/?nod=x":                `there is no option "nod"; there are node, ca, cert, key, password-file`,
		"http://h/?ca=x":                 "ca, cert and key are for https",
		"https://h/?ca=" + dir + "/none": "no such file",
		"https://h/?ca=" + secret:        "has no certificate in PEM",
		"http://h/?password-file=" + filepath.Join(dir, "not-there"): "no such file",
	} {
		c, err := Parse(address)
		got := fmt.Sprint(c.Endpoints, " ", c.Prefix, " ", c.Username, " ", c.Password, " ", c.TLS != nil, " ", c.Node)
		if err != nil {
			got = err.Error()
		}
		if got != want && (err == nil || weft.KindOf(err) != weft.Invalid || !strings.Contains(got, want)) {
			t.Errorf("%s:\n got %s\nwant %s", address, got, want)
		}
	}
}
