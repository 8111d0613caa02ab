package clients

import (
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/weftmesh/weft/test/world"
)

// curl runs it, and returns what it wrote: the head and the body.
func curl(t *testing.T, args ...string) (head, body string) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), program(t, "curl"), append([]string{"-sS", "-i", "--max-time", "20"}, args...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("curl %q: %v\n%s", args, err, out)
	}
	head, body, _ = strings.Cut(strings.ReplaceAll(string(out), "\r\n", "\n"), "\n\n")
	if strings.HasPrefix(head, "HTTP/1.1 100") {
		head, body, _ = strings.Cut(body, "\n\n")
	}
	return head, body
}

// What scripts, probes and load balancers send to Consul, and what they look for in
// the answer.
func TestCurl(t *testing.T) {
	s := start(t)
	s.passes("web", "web-1", "10.0.0.1", 8081, "blue")
	for _, test := range []struct {
		args []string // PATH is the last one
		want []string // in the head or body
		not  []string
	}{
		{[]string{"/v1/catalog/services?pretty"}, []string{"200 OK", "application/json", "\n    \"web\": [\n        \"blue\"\n    ]"}, nil},
		{[]string{"/v1/catalog/services?pretty=true&dc=dc1"}, []string{"200 OK", "\n    \"web\""}, nil},
		{[]string{"/v1/catalog/services?dc=elsewhere"}, []string{"500 Internal", "No path to datacenter"}, nil},
		{[]string{"/v1/health/service/web?dc=dc1&passing"}, []string{"200 OK", `"ID":"web-1"`, "X-Consul-Index: "}, nil},
		{[]string{"/v1/health/service/web?passing=false&stale"}, []string{"200 OK", `"ID":"web-1"`}, nil},
		{[]string{"/v1/health/service/web?consistent"}, []string{"200 OK", `"ID":"web-1"`, "X-Consul-Knownleader: true", "X-Consul-Lastcontact: 0"}, nil},
		{[]string{"/v1/health/service/web?stale&consistent"}, []string{"400 Bad"}, nil},
		{[]string{"/v1/health/service/web?index=0&wait=10s"}, []string{"200 OK", `"ID":"web-1"`}, nil},
		{[]string{"/v1/health/service/web?index=0&wait=0"}, []string{"200 OK"}, nil},
		{[]string{"/v1/health/service/web?index="}, []string{"200 OK"}, nil},
		{[]string{"/v1/health/service/web?index=abc"}, []string{"400 Bad"}, nil},
		{[]string{"/v1/health/service/web?index=1&wait=abc"}, []string{"400 Bad"}, nil},
		{[]string{"-G", "--data-urlencode", `filter=Service.Meta.version == "2" and "blue" in Service.Tags`, "/v1/health/service/web"}, []string{"200 OK", `"ID":"web-1"`}, nil},
		{[]string{"-G", "--data-urlencode", `filter=Checks.Status == critical`, "/v1/health/service/web"}, []string{"200 OK", "[]"}, []string{"web-1"}},
		{[]string{"-G", "--data-urlencode", `filter=Service ==`, "/v1/health/service/web"}, []string{"400 Bad", "Failed to create boolean expression evaluator"}, nil},
		{[]string{"-H", "X-Consul-Token: 00000000-0000-0000-0000-000000000002", "/v1/catalog/services"}, []string{"200 OK", "web"}, nil},
		{[]string{"-H", "Authorization: Bearer some-token", "/v1/catalog/services"}, []string{"200 OK", "web"}, nil},
		{[]string{"/v1/catalog/services?token=some-token&ns=default&partition=default"}, []string{"200 OK", "web"}, nil},
		{[]string{"--compressed", "/v1/health/service/web"}, []string{"200 OK", `"ID":"web-1"`}, nil},
		{[]string{"-H", "Accept-Encoding: br, zstd", "/v1/health/service/web"}, []string{"200 OK", `"ID":"web-1"`}, nil},
		{[]string{"-I", "/v1/status/leader"}, []string{"200 OK", "X-Consul-Index"}, []string{"127.0.0.1:"}},
		{[]string{"/v1/status/leader"}, []string{"200 OK", `"127.0.0.1:`}, nil},
		{[]string{"-H", "Cache-Control: max-age=30", "/v1/health/service/web?cached"}, []string{"200 OK", `"ID":"web-1"`}, nil},
		{[]string{"-H", "Connection: close", "--http1.0", "/v1/catalog/services"}, []string{"200 OK", "web"}, nil},
		{[]string{"-H", "Expect: 100-continue", "-X", "PUT", "-d", "value", "/v1/kv/expected"}, []string{"200 OK", "true"}, nil},
		{[]string{"-X", "PUT", "-H", "Transfer-Encoding: chunked", "-d", "value", "/v1/kv/chunked"}, []string{"200 OK", "true"}, nil},
		{[]string{"-X", "PUT", "-d", "", "/v1/kv/empty"}, []string{"200 OK", "true"}, nil},
		{[]string{"-X", "PUT", "-d", "x", "/v1/kv/folder//twice/"}, []string{"200 OK", "true"}, nil},
		{[]string{"--path-as-is", "/v1/kv/folder//twice/?raw"}, []string{"200 OK", "\n\nx"}, nil},
		{[]string{"/v1/kv/folder%2F%2Ftwice%2F?raw"}, []string{"200 OK", "\n\nx"}, nil},
		{[]string{"/v1/kv/?recurse"}, []string{"200 OK", `"Key":"chunked"`}, nil},
		{[]string{"-L", "/v1/kv?keys"}, []string{"200 OK", `"chunked"`}, nil},
		{[]string{"/v1/kv/?keys&separator=/"}, []string{"200 OK", `"folder/"`}, []string{"twice"}},
		{[]string{"/v1/kv/absent"}, []string{"404 Not Found", "X-Consul-Index: "}, nil},
		{[]string{"/v1/kv/chunked?raw"}, []string{"200 OK", "\n\nvalue"}, nil},
		{[]string{"-X", "DELETE", "/v1/kv/folder?recurse=true"}, []string{"200 OK", "true"}, nil},
		{[]string{"-X", "POST", "/v1/catalog/services"}, []string{"405 Method Not Allowed", "Allow: "}, nil},
		{[]string{"-X", "OPTIONS", "/v1/catalog/services"}, []string{"HTTP/1.1 20", "Allow: "}, nil},
		{[]string{"-X", "PUT", "-d", "{bad", "/v1/agent/service/register"}, []string{"400 Bad"}, nil},
		{[]string{"-X", "PUT", "-d", "{}", "/v1/agent/service/register"}, []string{"400 Bad", "Missing service name"}, nil},
		{[]string{"-X", "PUT", "/v1/agent/service/deregister/absent"}, []string{"404 Not Found", "absent"}, nil},
		{[]string{"-X", "PUT", "/v1/agent/check/pass/absent"}, []string{"404 Not Found", "absent"}, nil},
		{[]string{"/v1/agent/health/service/name/web?format=text"}, []string{"200 OK", "\n\npassing"}, nil},
		{[]string{"/v1/agent/health/service/id/absent?format=text"}, []string{"404 Not Found"}, nil},
		{[]string{"-X", "PUT", "/v1/session/create"}, []string{"200 OK", `{"ID":"`}, nil},
		{[]string{"-X", "PUT", "/v1/session/renew/00000000-0000-0000-0000-000000000000"}, []string{"404 Not Found"}, nil},
		{[]string{"/v1/agent/metrics?format=prometheus"}, []string{"200 OK", "# TYPE"}, nil},
		{[]string{"/v1/no/such/endpoint"}, []string{"404 Not Found"}, nil},
	} {
		t.Run(strings.Join(test.args, " "), func(t *testing.T) {
			last := len(test.args) - 1
			args := append(append([]string{}, test.args[:last]...), "http://"+s.Consul+test.args[last])
			head, body := curl(t, args...)
			text := head + "\n\n" + body
			for _, part := range test.want {
				if !strings.Contains(text, part) {
					t.Errorf("%q is missing", part)
				}
			}
			for _, part := range test.not {
				if strings.Contains(text, part) {
					t.Errorf("%q is there", part)
				}
			}
			if t.Failed() {
				t.Logf("%s", text)
			}
		})
	}
}

// A blocked curl comes back with the change, one without a change when its wait ends.
func TestCurlBlocks(t *testing.T) {
	s := start(t)
	s.passes("web", "web-1", "10.0.0.1", 8081)
	url := "http://" + s.Consul + "/v1/health/service/web"
	head, _ := curl(t, url)
	_, rest, _ := strings.Cut(head, "X-Consul-Index: ")
	index, _, _ := strings.Cut(rest, "\n")
	begin := time.Now()
	curl(t, url+"?index="+index+"&wait=1s")
	if d := time.Since(begin); d < 900*time.Millisecond || d > 3*time.Second {
		t.Errorf("a wait of a second took %s", d)
	}
	returned := make(chan string, 1)
	go func() {
		out, err := exec.CommandContext(t.Context(), "curl", "-sS", "--max-time", "20", url+"?passing&wait=15s&index="+index).CombinedOutput()
		if err != nil {
			t.Error(err)
		}
		returned <- string(out)
	}()
	select {
	case early := <-returned:
		t.Fatalf("it returned before there was a change: %s", early)
	case <-time.After(300 * time.Millisecond):
	}
	must(t, s.api.Agent().FailTTL("service:web-1", ""))
	select {
	case body := <-returned:
		if strings.TrimSpace(body) != "[]" {
			t.Errorf("it has %s", body)
		}
	case <-time.After(soon):
		t.Error("it did not return with the change")
	}
	// An index of the future, as after a restore, is answered at once or after the wait,
	// but not with an error.
	begin = time.Now()
	if head, _ := curl(t, url+"?index=99999999&wait=500ms"); !strings.Contains(head, "200 OK") || time.Since(begin) > 3*time.Second {
		t.Errorf("an index of the future: %s after %s", head, time.Since(begin))
	}
	world.Eventually(t, soon, "the API", world.Answers("http://"+s.Consul+"/v1/status/leader"))
}
