package e2e

import (
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/client"
)

// picture is how docs/cascade.svg is made:
//
//	go test -count=1 -run TestCascade -v ./test/e2e -picture ../../docs/cascade.svg
var picture = flag.String("picture", "", "let TestCascade run at the documented rate, and draw it into this `file`")

const (
	// cascadeRate of requests for orders a second, and that of the picture. A test
	// shares its machine with others.
	cascadeRate = 150
	pictureRate = 500
	// A tenth as many ask for users: what has nothing to do with payments.
	others = 10

	slowPayment = 5 * time.Second // of each answer of payment-service

	// What happens in a run, by its clock: payments become slow, then well again.
	slowFrom  = 4 * time.Second
	slowUntil = 12 * time.Second
	runEnd    = 16 * time.Second
	settled   = 1500 * time.Millisecond // after slowFrom: the circuits are open by then

	bucket = 200 * time.Millisecond // of the picture
)

// sent is one request of an open loop: it was due at a time, whatever had become of
// those before it.
type sent struct {
	due, took time.Duration // from the run's beginning; until the whole answer was there
	failure   string        // "" for 200
	instead   bool          // the order's payment is the policy's answer
}

// run is what happened to both kinds of requests.
type run struct{ orders, users []sent }

// TestCascade makes payment-service slow, which an order waits for: without a policy
// everybody waits with it, and with one nobody does.
func TestCascade(t *testing.T) {
	rate := cascadeRate
	if *picture != "" {
		rate = pictureRate
	}
	d := startDemo(t)
	bare := d.cascade(t, rate)
	d.stop() // it has thousands of traces to tidy up
	d = startDemo(t)
	d.must("apply", "-f", "../../examples/shop/resilience/payment-service.yaml")
	d.awaitGuard(t, "payment-service.default")
	guarded := d.cascade(t, rate)

	slow := [2]time.Duration{slowFrom + settled, slowUntil}
	before := [2]time.Duration{0, slowFrom}
	t.Logf("at %d orders/s, of which the last column is the p99 of users:", rate)
	for _, r := range []struct {
		name string
		run  run
		span [2]time.Duration
	}{{"normal", bare, before}, {"slow, no policy", bare, slow}, {"normal", guarded, before}, {"slow, with policy", guarded, slow}} {
		orders, users := within(r.run.orders, r.span), within(r.run.users, r.span)
		t.Logf("%-18s p50 %7s  p99 %7s  in flight %5d  failed %4d of %5d   %7s", r.name, at(orders, 0.5), at(orders, 0.99),
			inFlight(r.run.orders, r.span), failures(orders), len(orders), at(users, 0.99))
	}
	for name, r := range map[string]run{"without": bare, "with": guarded} {
		normal := within(r.orders, before)
		t.Logf("%s policy: p99 of orders while slow is %.2f × normal, of users %.2f × normal", name,
			float64(at(within(r.orders, slow), 0.99))/float64(at(normal, 0.99)),
			float64(at(within(r.users, slow), 0.99))/float64(at(within(r.users, before), 0.99)))
	}

	if n := inFlight(bare.orders, slow); n < 2*rate {
		t.Errorf("without a policy %d orders were in flight at most; they should pile up for %s", n, slowPayment)
	}
	if p := at(within(bare.orders, slow), 0.5); p < 4*time.Second {
		t.Errorf("without a policy half of the orders took less than %s", p)
	}
	if n := failures(guarded.orders); n > 0 {
		t.Errorf("with the policy %d of %d orders failed, the first: %s", n, len(guarded.orders), firstFailure(guarded.orders))
	}
	if n, most := inFlight(guarded.orders, slow), inFlight(bare.orders, slow); n > most/4 {
		t.Errorf("behind open circuits %d orders were in flight, without a policy %d", n, most)
	}
	if n := instead(within(guarded.orders, slow)); n < len(within(guarded.orders, slow))*9/10 {
		t.Errorf("%d of %d orders have the policy's answer for their payment", n, len(within(guarded.orders, slow)))
	}
	if last := within(guarded.orders, [2]time.Duration{runEnd - bucket, runEnd}); instead(last) == len(last) {
		t.Error("payments are well again, and no order has one")
	}
	if n := failures(guarded.users); n > 0 { // without it, the gateway may have been too busy for them
		t.Errorf("with the policy %d of %d users failed, the first: %s", n, len(guarded.users), firstFailure(guarded.users))
	}
	normal, now := at(within(guarded.users, before), 0.99), at(within(guarded.users, slow), 0.99)
	if now > max(10*normal, slowPayment/10) {
		t.Errorf("with the policy, p99 of users went from %s to %s", normal, now)
	}
	if *picture != "" {
		if err := os.WriteFile(*picture, []byte(drawCascade(bare, guarded, rate, madeHere(time.Now()))), 0o644); err != nil {
			t.Error(err)
		}
	}
}

// cascade is a run in which payments are slow for a while.
func (d *demo) cascade(t *testing.T, rate int) run {
	t.Helper()
	tell := func(method, query string) {
		for _, in := range d.instances(t, "payment-service") {
			mustTell(t, method, in, query)
		}
	}
	defer tell("DELETE", "")
	d.storm(t, rate, 3*time.Second, nil) // what is slow only because it is new
	return d.storm(t, rate, runEnd, func(since func(time.Duration) <-chan time.Time) {
		<-since(slowFrom)
		tell("POST", "?delay="+slowPayment.String())
		<-since(slowUntil)
		tell("DELETE", "")
	})
}

// mustTell tells an instance of the shop how to behave.
func mustTell(t *testing.T, method string, in client.Instance, query string) {
	t.Helper()
	req, err := http.NewRequest(method, "http://"+in.Address+"/admin/misbehave"+query, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Error(err)
		return
	}
	defer resp.Body.Close()
	if text, err := io.ReadAll(resp.Body); resp.StatusCode != 200 {
		t.Errorf("%s %s%s: %s %s %v", method, in.ID, query, resp.Status, text, err)
	}
}

// storm asks for orders and users in an open loop, and does what the plan says
// meanwhile.
func (d *demo) storm(t *testing.T, rate int, length time.Duration, plan func(since func(time.Duration) <-chan time.Time)) run {
	t.Helper()
	transport := &http.Transport{MaxIdleConnsPerHost: 10_000, DialContext: (&net.Dialer{Timeout: 5 * time.Second}).DialContext}
	defer transport.CloseIdleConnections()
	web := &http.Client{Transport: transport, Timeout: 15 * time.Second}
	r := run{orders: make([]sent, rate*int(length/time.Second)), users: make([]sent, rate/others*int(length/time.Second))}
	began := time.Now()
	var all sync.WaitGroup
	loop := func(out []sent, path string) {
		for i := range out {
			due := length * time.Duration(i) / time.Duration(len(out))
			if wait := due - time.Since(began); wait > 0 {
				<-time.After(wait)
			}
			url := fmt.Sprintf("http://%s%s%d", d.gateway, path, 1+rand.IntN(1000))
			all.Go(func() { out[i] = ask(web, url, began, due) })
		}
	}
	all.Go(func() { loop(r.orders, "/api/orders/") })
	all.Go(func() { loop(r.users, "/api/users/") })
	if plan != nil {
		plan(func(at time.Duration) <-chan time.Time { return time.After(at - time.Since(began)) })
	}
	all.Wait()
	return r
}

func ask(web *http.Client, url string, began time.Time, due time.Duration) sent {
	s := sent{due: due}
	resp, err := web.Get(url)
	if err != nil {
		s.failure = err.Error()
	} else {
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != 200 {
			s.failure = fmt.Sprint(resp.StatusCode, " ", string(body), err)
		}
		s.instead = strings.Contains(string(body), `"status":"unknown"`)
	}
	s.took = time.Since(began) - due
	return s
}

// within are the requests that were due in a span.
func within(all []sent, span [2]time.Duration) (some []sent) {
	for _, s := range all {
		if s.due >= span[0] && s.due < span[1] {
			some = append(some, s)
		}
	}
	return some
}

// at is the quantile of the times taken.
func at(some []sent, quantile float64) time.Duration {
	if len(some) == 0 {
		return 0
	}
	took := make([]time.Duration, len(some))
	for i, s := range some {
		took[i] = s.took
	}
	slices.Sort(took)
	return took[min(int(quantile*float64(len(took))), len(took)-1)].Round(10 * time.Microsecond)
}

// inFlight is how many requests were in flight at once, at most, in a span.
func inFlight(all []sent, span [2]time.Duration) (most int) {
	for at := span[0]; at < span[1]; at += bucket / 4 {
		most = max(most, inFlightAt(all, at))
	}
	return most
}

func inFlightAt(all []sent, at time.Duration) (n int) {
	for _, s := range all {
		if s.due <= at && at < s.due+s.took {
			n++
		}
	}
	return n
}

func failures(some []sent) (n int) {
	for _, s := range some {
		if s.failure != "" {
			n++
		}
	}
	return n
}

func firstFailure(some []sent) string {
	for _, s := range some {
		if s.failure != "" {
			return s.failure
		}
	}
	return ""
}

func instead(some []sent) (n int) {
	for _, s := range some {
		if s.instead {
			n++
		}
	}
	return n
}

// awaitGuard waits until every proxy has taken over what was applied.
func (d *demo) awaitGuard(t *testing.T, target string) {
	t.Helper()
	service, _, _ := strings.Cut(target, ".")
	eventually(t, 10*time.Second, "the callers of "+target+" to have its policy", func() error {
		d.get("/api/orders/1")
		list, err := d.client.Breakers(t.Context(), client.BreakerQuery{Service: weft.NewServiceName("", service)})
		if err == nil && len(list) < 3 {
			err = fmt.Errorf("%d circuits: %+v", len(list), list)
		}
		return err
	})
}
