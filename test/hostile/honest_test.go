package hostile

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weftmesh/weft/test/world"
)

func TestMain(m *testing.M) { world.Main(m) }

// scene is a gateway under attack, before an application that is well.
type scene struct {
	*testing.T
	gateway *world.Proxy
	honest  *honest
	memory  int64 // of the gateway, before the attack
}

// large is what large answers are cut from, so that they cost the application little.
var large = make([]byte, 10<<20)

// application answers small, and under /large/N with N KiB; it reads what is sent.
var application = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body) // attackers do not send all of it
	if size, ok := strings.CutPrefix(r.URL.Path, "/large/"); ok {
		n, err := strconv.Atoi(size)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		w.Header().Set("Content-Length", strconv.Itoa(n<<10))
		_, _ = w.Write(large[:n<<10]) // the attacker may have gone
		return
	}
	fmt.Fprint(w, "well")
})

// newScene starts a world with honest clients and measures them for a second
// without an enemy.
func newScene(t *testing.T) *scene {
	t.Helper()
	app := httptest.NewServer(application)
	t.Cleanup(app.Close)
	w := world.New(t)
	w.Register("app", "app-1", app.Listener.Addr().String())
	w.Apply(world.Everything("app"))
	g := w.Gateway("--access-log", "off")
	world.Eventually(t, 10*time.Second, "the gateway", world.Answers("http://"+g.HTTP+"/"))
	s := &scene{T: t, gateway: g, honest: startHonest(t, g.HTTP)}
	s.honest.after(t, 500)
	t.Logf("honest clients before: p50 %s, p99 %s", s.honest.share(0.5), s.honest.share(0.99))
	s.honest.forget()
	s.memory = g.Memory()
	return s
}

const (
	// mostMemory is what an attack may add to a gateway's own memory: with the limits
	// that it has by default, what a hundred connections pin is far below.
	mostMemory = 256 << 20
	// mostPatience is what an honest client bears on a machine that is busy with an
	// attack. It is no figure of speed: it is the difference between late and never.
	mostPatience = 5 * time.Second
)

// over ends the attack: honest clients were served, memory is bounded, and the
// refusals are counted under one of the reasons.
func (s *scene) over(reasons ...string) {
	s.Helper()
	s.honest.after(s.T, 200)
	p99 := s.honest.share(0.99)
	s.Logf("honest clients during: p50 %s, p99 %s, of %d", s.honest.share(0.5), p99, s.honest.answered())
	if p99 > mostPatience {
		s.Errorf("honest clients waited %s", p99)
	}
	s.honest.mustBeWell(s.T)
	now := s.gateway.Memory()
	s.Logf("memory before %d KiB, after %d KiB", s.memory>>10, now>>10)
	if now-s.memory > mostMemory {
		s.Errorf("memory grew from %d to %d MiB", s.memory>>20, now>>20)
	}
	counted := 0.0
	for _, reason := range reasons {
		counted += s.gateway.Metric("weft_refused_total", `reason="`+reason+`"`)
	}
	if counted == 0 && len(reasons) > 0 {
		s.Errorf("weft_refused_total counts none of %q, but\n%s", reasons, s.gateway.Series("weft_refused_total"))
	}
}

// honest is clients that ask at a moderate pace, each over its own connection.
type honest struct {
	mu     sync.Mutex
	took   []time.Duration
	failed []string
}

const honestClients = 20

func startHonest(t *testing.T, address string) *honest {
	t.Helper()
	h := &honest{}
	stop := make(chan struct{})
	var asking sync.WaitGroup
	for i := range honestClients {
		asking.Go(func() {
			protocols := new(http.Protocols)
			protocols.SetHTTP1(i%2 == 0)
			protocols.SetUnencryptedHTTP2(i%2 == 1)
			transport := &http.Transport{Protocols: protocols}
			defer transport.CloseIdleConnections()
			client := &http.Client{Transport: transport, Timeout: 2 * mostPatience}
			tick := time.NewTicker(20 * time.Millisecond)
			defer tick.Stop()
			for {
				select {
				case <-stop:
					return
				case <-tick.C:
					h.ask(client, address)
				}
			}
		})
	}
	t.Cleanup(func() { close(stop); asking.Wait() })
	return h
}

func (h *honest) ask(client *http.Client, address string) {
	began := time.Now()
	err := askOnce(client, address)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.took = append(h.took, time.Since(began))
	if err != nil {
		h.failed = append(h.failed, err.Error())
	}
}

func askOnce(client *http.Client, address string) error {
	resp, err := client.Get("http://" + address + "/")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK || string(b) != "well" {
		return fmt.Errorf("%s %q", resp.Status, b)
	}
	return nil
}

func (h *honest) answered() int { h.mu.Lock(); defer h.mu.Unlock(); return len(h.took) }

func (h *honest) forget() { h.mu.Lock(); defer h.mu.Unlock(); h.took = nil }

// after waits for n more answers.
func (h *honest) after(t *testing.T, n int) {
	t.Helper()
	until := h.answered() + n
	world.Eventually(t, 60*time.Second, fmt.Sprint(n, " answers to honest clients"), func() error {
		if got := h.answered(); got < until {
			return fmt.Errorf("%d of %d", got, until)
		}
		return nil
	})
}

// share is the time in which a share of the answers came.
func (h *honest) share(share float64) time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	sorted := slices.Clone(h.took)
	slices.Sort(sorted)
	return sorted[int(share*float64(len(sorted)-1))]
}

func (h *honest) mustBeWell(t *testing.T) {
	t.Helper()
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.failed) > 0 {
		t.Errorf("%d of %d honest requests failed, the first: %s", len(h.failed), len(h.took), h.failed[0])
	}
}

// dialTCP opens a connection that belongs to the test.
func dialTCP(t *testing.T, address string) *net.TCPConn {
	t.Helper()
	c, err := net.DialTimeout("tcp", address, 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c.(*net.TCPConn)
}
