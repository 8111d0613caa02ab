package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/client"
)

// acceptance is where users' own configuration lies, as it stands.
const acceptance = "testdata/acceptance"

// TestDemo walks the main job on one running demo.
func TestDemo(t *testing.T) {
	d := startDemo(t)
	t.Run("request path", d.requestPath)
	t.Run("who may talk to whom", d.authorization)
	t.Run("explain", d.explain)
	t.Run("trace", d.trace)
	t.Run("metrics", d.metrics)
	t.Run("mTLS ports refuse plain text", d.plainRefused)
	t.Run("consul registration", d.consulRegistration)
	t.Run("canary", d.canary)
	t.Run("bad resources", d.badResources)
	t.Run("a misbehaving instance is ejected", d.misbehave)
	t.Run("kill the only instance of the canary under load", d.killCanary)
	t.Run("kill an instance under load", d.killInstance)
	t.Run("kill the server under load", d.killServer)
}

func (d *demo) requestPath(t *testing.T) {
	code, body := d.get("/api/orders/1")
	var order struct {
		ID        string
		Version   string
		User      map[string]any
		Inventory map[string]any
	}
	if err := json.Unmarshal([]byte(body), &order); code != 200 || err != nil {
		t.Fatalf("%d %s: %v", code, body, err)
	}
	if order.ID != "1" || order.User["name"] == nil || order.Inventory["sku"] == nil {
		t.Errorf("the answer does not hold order, user and inventory: %s", body)
	}
}

func (d *demo) authorization(t *testing.T) {
	if code, body := d.get("/api/inventory/42"); code != 403 {
		t.Errorf("the gateway is not order-service: want 403, got %d %s", code, body)
	}
	logs, _ := filepath.Glob(filepath.Join(d.data, "logs", "*inventory*.log"))
	eventually(t, 5*time.Second, "the access log to name the policy", func() error {
		for _, name := range logs {
			if b, _ := os.ReadFile(name); strings.Contains(string(b), "inventory-policy") && strings.Contains(string(b), `"status":403`) {
				return nil
			}
		}
		return fmt.Errorf("not in %v", logs)
	})
	denied := d.must("explain", "--from", "user-service", "GET", "http://inventory-service/api/inventory/42")
	if !strings.Contains(denied, "inventory-policy") || !strings.Contains(strings.ToLower(denied), "denied") {
		t.Errorf("explain does not name the policy that denies:\n%s", denied)
	}
	allowed := d.must("explain", "--from", "order-service", "GET", "http://inventory-service/api/inventory/42")
	if strings.Contains(strings.ToLower(allowed), "denied") {
		t.Errorf("order-service may GET:\n%s", allowed)
	}
}

func (d *demo) explain(t *testing.T) {
	out := d.must("explain", "GET", "http://order-service/api/orders/1")
	for _, want := range []string{"VirtualService default/order-service", "order-service.yaml:", "95", "5"} {
		if !strings.Contains(out, want) {
			t.Errorf("explain lacks %q:\n%s", want, out)
		}
	}
}

func (d *demo) trace(t *testing.T) {
	id := "4bf92f3577b34da6a3ce929d0e0e4736"
	req, _ := http.NewRequest("GET", "http://"+d.gateway+"/api/orders/7", nil)
	req.Header.Set("traceparent", "00-"+id+"-00f067aa0ba902b7-01")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	// gateway, order inbound, order's own spans, outbound and inbound twice, and
	// the called services' own spans
	eventually(t, 15*time.Second, "the whole trace", func() error {
		whole, err := d.client.Trace(context.Background(), id)
		if err != nil {
			return err
		}
		seen := map[string]int{}
		for _, s := range whole.Tree {
			seen[s.Service]++
		}
		if seen["gateway"] < 1 || seen["order-service"] < 4 || seen["inventory-service"] < 2 || seen["user-service"] < 2 {
			return fmt.Errorf("spans by service: %v", seen)
		}
		return nil
	})
	if out := d.must("traces", id); !strings.Contains(out, "inventory-service") || !strings.Contains(out, "gateway") {
		t.Errorf("the waterfall lacks hops:\n%s", out)
	}
	if out := d.must("traces"); !strings.Contains(out, id) && !strings.Contains(out, id[:16]) {
		t.Errorf("the list lacks the trace:\n%s", out)
	}
}

func (d *demo) metrics(t *testing.T) {
	var admin string
	for line := range strings.Lines(d.out.String()) {
		if f := strings.Fields(line); strings.HasPrefix(line, "gateway") {
			admin = f[len(f)-1]
		}
	}
	_, text := fetch(t, "http://"+admin+"/metrics")
	for _, want := range []string{`weft_requests_total{`, `destination="order-service"`, `weft_request_duration_seconds_bucket{`, `version="v1"`} {
		if !strings.Contains(text, want) {
			t.Errorf("the gateway's metrics lack %s", want)
		}
	}
	if _, text := fetch(t, "http://"+d.api+"/metrics"); !strings.Contains(text, "weft_registry_instances") {
		t.Error("the server's metrics lack weft_registry_instances")
	}
}

func (d *demo) plainRefused(t *testing.T) {
	instances := d.instances(t, "inventory-service")
	conn, err := net.Dial("tcp", instances[0].MeshAddress)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
	fmt.Fprintf(conn, "GET /api/inventory/42 HTTP/1.1\r\nHost: inventory-service\r\n\r\n")
	b := make([]byte, 512)
	n, _ := conn.Read(b)
	if strings.HasPrefix(string(b[:n]), "HTTP/") {
		t.Errorf("a plain request was answered: %q", b[:n])
	}
}

func (d *demo) instances(t *testing.T, service string) []client.Instance {
	t.Helper()
	list, err := d.client.Instances(context.Background(), weft.NewServiceName("", service))
	if err != nil || len(list) == 0 {
		t.Fatalf("instances of %s: %v %v", service, list, err)
	}
	return list
}

// The acceptance file as it stands, but for its port: 3000 may be taken.
func (d *demo) consulRegistration(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	healthy := make(chan struct{})
	app := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/health" {
			select {
			case <-healthy:
			default:
				w.WriteHeader(503)
			}
			return
		}
		fmt.Fprint(w, `{"version":"outside"}`)
	})}
	go app.Serve(ln)
	defer app.Close()
	port := fmt.Sprint(ln.Addr().(*net.TCPAddr).Port)
	body, err := os.ReadFile(filepath.Join(acceptance, "consul-register.json"))
	if err != nil {
		t.Fatal(err)
	}
	text := strings.ReplaceAll(string(body), "3000", port)
	text = strings.Replace(text, `"10s"`, `"1s"`, 1) // a test should not wait ten seconds for its first look
	text = strings.Replace(text, `"30s"`, `"2s"`, 1)
	text = strings.Replace(text, "order-service", "outside-service", 1)
	req, _ := http.NewRequest("PUT", "http://"+d.consul+"/v1/agent/service/register", strings.NewReader(text))
	resp, err := http.DefaultClient.Do(req)
	if err != nil || resp.StatusCode != 200 {
		t.Fatal(resp, err)
	}
	passing := func() string {
		_, body := fetch(t, "http://"+d.consul+"/v1/health/service/outside-service?passing=true")
		return body
	}
	if got := passing(); strings.TrimSpace(got) != "[]" {
		t.Errorf("before its check passed: %s", got)
	}
	close(healthy)
	eventually(t, 10*time.Second, "the check to pass", func() error {
		if got := passing(); !strings.Contains(got, `"Port":`+port) && !strings.Contains(got, `"Port": `+port) {
			return fmt.Errorf("got %s", got)
		}
		return nil
	})
	host, dnsPort, _ := net.SplitHostPort(d.dns)
	dig := exec.Command("dig", "+short", "@"+host, "-p", dnsPort, "outside-service.service.consul", "SRV")
	if out, err := dig.CombinedOutput(); err != nil || !strings.Contains(string(out), " "+port+" ") {
		t.Errorf("dig SRV: %s %v", out, err)
	}
	dig = exec.Command("dig", "+short", "@"+host, "-p", dnsPort, "outside-service.default.svc.cluster.local", "A")
	if out, err := dig.CombinedOutput(); err != nil || strings.TrimSpace(string(out)) != "127.0.0.1" {
		t.Errorf("dig A: %s %v", out, err)
	}
	if out := d.must("instances", "outside-service"); !strings.Contains(out, "order-service-host1") || !strings.Contains(out, "passing") {
		t.Errorf("weft instances:\n%s", out)
	}
	out := d.must("explain", "GET", "http://outside-service/")
	if !strings.Contains(out, port) {
		t.Errorf("the mesh does not know the endpoint:\n%s", out)
	}
	app.Close()
	eventually(t, 15*time.Second, "the dead instance to go", func() error {
		_, body := fetch(t, "http://"+d.consul+"/v1/health/service/outside-service")
		if strings.TrimSpace(body) != "[]" {
			return fmt.Errorf("still there: %s", body)
		}
		return nil
	})
}

func (d *demo) canary(t *testing.T) {
	for _, f := range []string{"virtualservice-canary.yaml", "destinationrule-subsets.yaml"} {
		d.must("apply", "-f", filepath.Join(acceptance, f))
	}
	l := startLoad("http://"+d.gateway+"/api/orders/1", 16, 4000)
	l.waitCalls(t, 10_000)
	l.stop()
	l.mustBeClean(t)
	share := float64(l.count("v2")) / float64(l.count("v1")+l.count("v2"))
	if math.Abs(share-0.05) > 0.01 { // 0.7 points are 3.2 standard deviations of 10,000 calls; a test that cries once in 700 runs is none
		t.Errorf("v2 got %.2f %% of %d calls, want 5", 100*share, l.count("v1")+l.count("v2"))
	}
	l = startLoad("http://"+d.gateway+"/api/orders/1", 8, 1000)
	l.waitCalls(t, 300)
	changed := filepath.Join(t.TempDir(), "canary.yaml")
	b, _ := os.ReadFile(filepath.Join(acceptance, "virtualservice-canary.yaml"))
	text := strings.Replace(strings.Replace(string(b), "weight: 95", "weight: 80", 1), "weight: 5", "weight: 20", 1)
	if err := os.WriteFile(changed, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	d.must("apply", "-f", changed)
	v1, v2 := l.count("v1"), l.count("v2")
	l.waitCalls(t, 3000)
	l.stop()
	l.mustBeClean(t)
	v1, v2 = l.count("v1")-v1, l.count("v2")-v2
	if share := float64(v2) / float64(v1+v2); share < 0.15 || share > 0.25 {
		t.Errorf("after 80/20 v2 got %.1f %%", 100*share)
	}
}

func (d *demo) badResources(t *testing.T) {
	bad := filepath.Join(t.TempDir(), "bad.yaml")
	text := `apiVersion: networking.istio.io/v1
kind: VirtualService
metadata:
  name: broken
spec:
  hosts: [order-service]
  http:
    - route:
        - destination: {host: order-service}
          wieght: 5
      timeout: soon
`
	if err := os.WriteFile(bad, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := d.weft("apply", "-f", bad)
	if err == nil {
		t.Errorf("accepted:\n%s", out)
	}
	for _, want := range []string{"bad.yaml:10", "wieght", "weight", "bad.yaml:11", "timeout"} {
		if !strings.Contains(out, want) {
			t.Errorf("the problems lack %q:\n%s", want, out)
		}
	}
	if out := d.must("get", "VirtualService"); strings.Contains(out, "broken") {
		t.Errorf("a rejected resource was stored:\n%s", out)
	}
}

func (d *demo) killInstance(t *testing.T) {
	var victim client.Instance
	for _, in := range d.instances(t, "order-service") {
		if in.Version == "v1" {
			victim = in
		}
	}
	l := startLoad("http://"+d.gateway+"/api/orders/1", 32, 2000)
	l.waitCalls(t, 1000)
	if err := syscall.Kill(victim.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	l.waitCalls(t, 4000)
	l.stop()
	l.mustBeClean(t)
	eventually(t, 10*time.Second, "the dead instance to leave the catalogue", func() error {
		for _, in := range d.instances(t, "order-service") {
			if in.ID == victim.ID && in.Health == weft.Passing {
				return fmt.Errorf("%s is still passing", in.ID)
			}
		}
		return nil
	})
}

// misbehave lets one of two inventory instances answer 500: each caller's sidecar
// ejects it after five in a row.
func (d *demo) misbehave(t *testing.T) {
	bad := d.instances(t, "inventory-service")[0]
	admin := "http://" + bad.Address + "/admin/misbehave"
	resp, err := http.Post(admin+"?status=500&rate=1", "", nil)
	if err != nil || resp.StatusCode/100 != 2 {
		t.Fatal(resp, err)
	}
	resp.Body.Close()
	failed := 0
	const calls = 400
	for range calls {
		if code, _ := d.get("/api/orders/1"); code != 200 {
			failed++
		}
	}
	if callers := 3; failed < 5 || failed > 5*callers {
		t.Errorf("%d of %d calls failed; want five for each of the %d sidecars that learnt it, at most", failed, calls, callers)
	}
	heal, _ := http.NewRequest("DELETE", admin, nil)
	if resp, err = http.DefaultClient.Do(heal); err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
}

// killCanary kills the sidecar of v2's only instance, and with it the instance:
// v1 stands in.
func (d *demo) killCanary(t *testing.T) {
	var sidecar int
	for _, in := range d.instances(t, "order-service") {
		if in.Version == "v2" {
			_, pid, _ := strings.Cut(in.ID, "v2-")
			fmt.Sscan(pid, &sidecar)
		}
	}
	if sidecar == 0 {
		t.Fatal("no v2")
	}
	l := startLoad("http://"+d.gateway+"/api/orders/1", 16, 1000)
	l.waitCalls(t, 500)
	if err := syscall.Kill(sidecar, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	l.waitCalls(t, 5000) // beyond the lapse of its lease
	l.stop()
	l.mustBeClean(t)
}

// killServer ends the server without warning, watches that traffic goes on, and
// brings it back on the same directory and ports.
func (d *demo) killServer(t *testing.T) {
	var before *client.Status
	eventually(t, 20*time.Second, "those killed before to be gone", func() (err error) {
		before, err = d.client.Status(context.Background())
		if err == nil && len(before.Proxies) != before.Healthy+1 { // and the gateway
			err = fmt.Errorf("%d proxies of %d healthy instances:\n%s", len(before.Proxies), before.Healthy, d.must("status"))
		}
		return err
	})
	resources := d.must("get", "VirtualService", "-o", "json")
	l := startLoad("http://"+d.gateway+"/api/orders/1", 8, 500)
	l.waitCalls(t, 200)
	if err := syscall.Kill(before.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	l.waitCalls(t, 500)
	args := []string{"server", "--data", d.data}
	for _, door := range before.Listeners {
		args = append(args, "--"+door.Name, door.Address)
	}
	again := exec.Command(binary, args...)
	again.Stderr = d.out
	if err := again.Start(); err != nil {
		t.Fatal(err)
	}
	d.t.Cleanup(func() {
		d.stop() // the sidecars say goodbye to a living server
		_ = again.Process.Signal(syscall.SIGTERM)
		_ = again.Wait()
	})
	var after *client.Status
	eventually(t, 20*time.Second, "proxies to come back", func() (err error) {
		after, err = d.client.Status(context.Background())
		if err == nil && len(after.Proxies) < len(before.Proxies) {
			err = fmt.Errorf("%d of %d proxies", len(after.Proxies), len(before.Proxies))
		}
		return err
	})
	l.waitCalls(t, 500)
	l.stop()
	l.mustBeClean(t)
	if after.Index < before.Index {
		t.Errorf("index went from %d to %d", before.Index, after.Index)
	}
	if got := d.must("get", "VirtualService", "-o", "json"); got != resources {
		t.Errorf("resources before\n%s\nand after\n%s", resources, got)
	}
	eventually(t, 10*time.Second, "all instances to be healthy", func() error {
		s, err := d.client.Status(context.Background())
		if err == nil && s.Healthy < before.Healthy {
			err = fmt.Errorf("%d of %d", s.Healthy, before.Healthy)
		}
		return err
	})
}

func TestSecondDemoFailsNamingThePort(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	free := "127.0.0.1:0"
	out, err := exec.Command(binary, "demo", "--data", t.TempDir(), "--http", free, "--api", taken.Addr().String(), "--consul", free, "--eureka", free,
		"--dns", free, "--control", free, "--otlp-http", free, "--otlp-grpc", free).CombinedOutput()
	port := fmt.Sprint(taken.Addr().(*net.TCPAddr).Port)
	if err == nil || !strings.Contains(string(out), port) || !strings.Contains(string(out), "taken") {
		t.Errorf("got %v:\n%s", err, out)
	}
}

// Even what was never called before works without the server: sidecars were told
// at their start what their applications call.
func TestColdCallsNeedNoServer(t *testing.T) {
	d := startDemo(t)
	status, err := d.client.Status(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(status.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	versions := map[string]int{}
	for i := range 200 {
		code, body := d.get(fmt.Sprint("/api/orders/", i+1))
		if code != 200 {
			t.Fatalf("call %d: %d %s", i, code, body)
		}
		var order struct{ Version string }
		_ = json.Unmarshal([]byte(body), &order)
		versions[order.Version]++
	}
	if versions["v1"] == 0 || versions["v2"] == 0 {
		t.Errorf("calls by version: %v", versions)
	}
}

func TestStoppedDemoLeavesNoProcess(t *testing.T) {
	d := startDemo(t)
	var pids []int
	for _, s := range []string{"order-service", "inventory-service", "user-service", "recommendation-service", "payment-service"} {
		for _, in := range d.instances(t, s) {
			pids = append(pids, in.PID)
		}
	}
	status, err := d.client.Status(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	pids = append(pids, status.PID)
	d.stop()
	for _, pid := range pids {
		if err := syscall.Kill(pid, 0); err != syscall.ESRCH {
			t.Errorf("process %d is still there (%v)", pid, err)
		}
	}
}
