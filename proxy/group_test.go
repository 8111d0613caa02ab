package proxy

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weftmesh/weft"
)

// Which endpoint a request goes to.

// named is a mesh of servers that say their names, of three.
func named(t *testing.T, p weft.TrafficPolicy) *mesh {
	m := newMesh(t)
	m.svc.Policy = p
	var urls []string
	for _, name := range []string{"a", "b", "c"} {
		urls = append(urls, server(t, func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, name) }).URL)
	}
	m.endpoints(urls...)
	return m
}

func TestSameKeySameEndpoint(t *testing.T) {
	for name, tt := range map[string]struct {
		hash weft.Hash
		ask  func(m *mesh, key string) string
	}{
		"header": {weft.Hash{Header: "x-user"}, func(m *mesh, key string) string {
			_, body := m.ask("GET", "/", http.Header{"X-User": {key}})
			return body
		}},
		"query": {weft.Hash{Query: "user"}, func(m *mesh, key string) string {
			_, body := m.ask("GET", "/?page=1&user="+key, nil)
			return body
		}},
		"cookie": {weft.Hash{Cookie: "user"}, func(m *mesh, key string) string {
			_, body := m.ask("GET", "/", http.Header{"Cookie": {"theme=dark; user=" + key}})
			return body
		}},
	} {
		for _, lb := range []weft.LoadBalancer{weft.RingHash, weft.Maglev} {
			t.Run(name+" by "+string(lb), func(t *testing.T) {
				m := named(t, weft.TrafficPolicy{LoadBalancer: lb, Hash: &tt.hash})
				used := map[string]int{}
				for key := range 20 {
					first := tt.ask(m, fmt.Sprint("user-", key))
					used[first]++
					for range 3 {
						if again := tt.ask(m, fmt.Sprint("user-", key)); again != first {
							t.Fatalf("user-%d went to %s and then to %s", key, first, again)
						}
					}
				}
				if len(used) != 3 {
					t.Errorf("20 keys use %v; want all three", used)
				}
			})
		}
	}
}

func TestClientsOfOneAddressGoToOneEndpoint(t *testing.T) {
	m := named(t, weft.TrafficPolicy{LoadBalancer: weft.Maglev, Hash: &weft.Hash{SourceIP: true}})
	_, first := m.do("GET", "/", "")
	for range 10 {
		if _, again := m.do("GET", "/", ""); again != first {
			t.Fatalf("one went to %s, another to %s", first, again)
		}
	}
}

// A client without the cookie gets one, and is from then on where it was then.
func TestStickyCookie(t *testing.T) {
	m := named(t, weft.TrafficPolicy{LoadBalancer: weft.RingHash, Hash: &weft.Hash{Cookie: "place", CookiePath: "/shop", CookieTTL: time.Hour}})
	used := map[string]bool{}
	for range 20 {
		resp, first := m.ask("GET", "/", nil)
		cookies := resp.Cookies()
		if len(cookies) != 1 || cookies[0].Name != "place" || cookies[0].Path != "/shop" || cookies[0].MaxAge != 3600 || !cookies[0].HttpOnly {
			t.Fatalf("cookies %v", resp.Header["Set-Cookie"])
		}
		used[first] = true
		for range 3 {
			resp, again := m.ask("GET", "/", http.Header{"Cookie": {"place=" + cookies[0].Value}})
			if again != first || len(resp.Cookies()) != 0 {
				t.Fatalf("went to %s and then to %s, cookies %v", first, again, resp.Cookies())
			}
		}
	}
	if len(used) != 3 {
		t.Errorf("20 clients use %v; want all three", used)
	}
}

// The zones of facts: near ones first, as far as they go.
func TestNearEndpointsFirst(t *testing.T) {
	for name, tt := range map[string]struct {
		own      string
		locality *weft.Locality
		zone     string
		labels   map[string]string
		want     uint8
	}{
		"does not matter":        {"eu/a", nil, "us/b", nil, 0},
		"own zone not known":     {"", &weft.Locality{}, "us/b", nil, 0},
		"same place":             {"eu/a/1", &weft.Locality{}, "eu/a/1", nil, 0},
		"another subzone":        {"eu/a/1", &weft.Locality{}, "eu/a/2", nil, 1},
		"another zone":           {"eu/a", &weft.Locality{}, "eu/b", nil, 2},
		"another region":         {"eu/a", &weft.Locality{}, "us/a", nil, 3},
		"plain zones":            {"a", &weft.Locality{}, "b", nil, 3},
		"zone not known":         {"eu/a", &weft.Locality{}, "", nil, 3},
		"region that stands in":  {"eu/a", &weft.Locality{Failover: []weft.LocalityFailover{{From: "eu", To: "us"}}}, "us/a", nil, 3},
		"another than that":      {"eu/a", &weft.Locality{Failover: []weft.LocalityFailover{{From: "eu", To: "us"}}}, "ap/a", nil, 4},
		"failover of others":     {"eu/a", &weft.Locality{Failover: []weft.LocalityFailover{{From: "ap", To: "us"}}}, "ap/a", nil, 3},
		"all labels":             {"eu/a", &weft.Locality{Priority: []string{"topology.kubernetes.io/region", "topology.kubernetes.io/zone"}}, "eu/a", nil, 0},
		"first label only":       {"eu/a", &weft.Locality{Priority: []string{"topology.kubernetes.io/region", "topology.kubernetes.io/zone"}}, "eu/b", nil, 1},
		"not even the first":     {"eu/a", &weft.Locality{Priority: []string{"topology.kubernetes.io/region", "topology.kubernetes.io/zone"}}, "us/a", nil, 2},
		"a label with its value": {"eu/a", &weft.Locality{Priority: []string{"disk=ssd"}}, "us/a", map[string]string{"disk": "ssd"}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPlaces(tt.locality, tt.own)
			if got := p.priority(&weft.Endpoint{Zone: tt.zone, Labels: tt.labels}); got != tt.want {
				t.Errorf("priority %d; want %d", got, tt.want)
			}
		})
	}
}

// shares counts where a thousand picks go, by zone.
func shares(g *group, now time.Time) map[string]int {
	out := map[string]int{}
	r := rand.New(rand.NewPCG(1, 2))
	for range 1000 {
		if e := g.pick(choice{random: r.Uint64(), now: now}); e != nil {
			out[e.version]++
		} else {
			out["none"]++
		}
	}
	return out
}

// zoned is a cluster with five endpoints in each zone; their versions are the zones.
func zoned(c *cluster, p weft.TrafficPolicy, zones ...string) {
	s := &weft.Service{Policy: p}
	for _, z := range zones {
		for i := range 5 {
			a := fmt.Sprintf("%s-%d", strings.ReplaceAll(z, "/", "-"), i)
			s.Endpoints = append(s.Endpoints, weft.Endpoint{ID: a, Address: a, Zone: z, Weight: 1, Labels: map[string]string{"version": z}})
		}
	}
	c.update(s)
}

// A zone goes, and its traffic goes to the next; it comes back, and gets its share
// back by and by.
func TestZoneIsLostAndComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := weft.TrafficPolicy{LoadBalancer: weft.RoundRobin, Locality: &weft.Locality{},
			Outlier:   &weft.Outlier{Consecutive5xx: 1, BaseEjection: 30 * time.Second, MaxEjection: 30 * time.Second, MaxEjectionPercent: 100},
			SlowStart: &weft.SlowStart{Window: 100 * time.Second}}
		c := newCluster("shop", "eu/a")
		zoned(c, p, "eu/a", "eu/b", "us/a")
		g := c.set.Load().all
		if got := shares(g, time.Now()); got["eu/a"] != 1000 {
			t.Fatalf("all are well: %v; want all in the own zone", got)
		}
		fail := func(n int) {
			for _, e := range g.endpoints[:n] {
				if g.failed(e, 0, time.Now()) == 0 {
					t.Fatalf("%s was not ejected", e.id)
				}
			}
		}
		fail(3) // 40 % × 1.4 = 56 %
		if got := shares(g, time.Now()); got["eu/a"] < 500 || got["eu/a"] > 620 || got["eu/b"] != 1000-got["eu/a"] {
			t.Errorf("three of five are out: %v; want 56 %% in the own zone, the rest next door", got)
		}
		for _, e := range g.endpoints[3:5] {
			g.failed(e, 0, time.Now())
		}
		if got := shares(g, time.Now()); got["eu/b"] != 1000 {
			t.Errorf("all five are out: %v; want all next door", got)
		}
		time.Sleep(31 * time.Second)
		c.set.Load().refresh(time.Now().UnixNano())
		if got := shares(g, time.Now()); got["eu/a"] != 1000 {
			t.Errorf("all are back: %v", got)
		}
	})
}

// A new endpoint gets a tenth of its share first, and all of it after the window.
func TestNewEndpointStartsSlowly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := weft.TrafficPolicy{LoadBalancer: weft.RoundRobin, SlowStart: &weft.SlowStart{Window: 100 * time.Second}}
		c := newCluster("shop", "")
		zoned(c, p, "old")
		time.Sleep(time.Hour)
		zoned(c, p, "old", "new")
		at := func(after time.Duration, least, most int) {
			t.Helper()
			time.Sleep(after)
			c.set.Load().refresh(time.Now().UnixNano())
			if got := shares(c.set.Load().all, time.Now())["new"]; got < least || got > most {
				t.Errorf("%d of 1000; want %d to %d", got, least, most)
			}
		}
		at(0, 70, 110)
		at(50*time.Second, 310, 360)
		at(60*time.Second, 490, 510)
	})
}

// Zones get the shares that were asked for.
func TestSharesOfZones(t *testing.T) {
	p := weft.TrafficPolicy{LoadBalancer: weft.Random, Locality: &weft.Locality{Distribute: []weft.LocalityShares{
		{From: "us/*", To: map[string]uint32{"us/*": 100}},
		{From: "eu/a/*", To: map[string]uint32{"eu/a/*": 70, "eu/b": 30}},
	}}}
	c := newCluster("shop", "eu/a")
	zoned(c, p, "eu/a", "eu/b", "us/a")
	if got := shares(c.set.Load().all, time.Now()); got["eu/a"] < 640 || got["eu/a"] > 760 || got["us/a"] != 0 {
		t.Errorf("%v; want 70 %% and 30 %%, nothing elsewhere", got)
	}
}

// A subset that stands in for another may be balanced in another way.
func TestStickyClientOfAnotherSubset(t *testing.T) {
	live := server(t, func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "v1") })
	dead := server(t, func(http.ResponseWriter, *http.Request) {})
	m := newMesh(t, live.URL, dead.URL)
	m.svc.Endpoints[0].Labels = map[string]string{"version": "v1"}
	m.svc.Endpoints[1].Labels = map[string]string{"version": "v2"}
	m.svc.Subsets = []weft.Subset{{Name: "v1", Labels: map[string]string{"version": "v1"}}, {Name: "v2", Labels: map[string]string{"version": "v2"},
		Policy: weft.TrafficPolicy{LoadBalancer: weft.RingHash, Hash: &weft.Hash{Cookie: "place", SessionTTL: true}}}}
	m.rule.Destinations = []weft.Destination{{Service: shop, Subset: "v1", Weight: 1}, {Service: shop, Subset: "v2", Weight: 99}}
	m.publish()
	dead.Close()
	for range 10 {
		if resp, body := m.ask("GET", "/", nil); resp.StatusCode != 200 || body != "v1" {
			t.Fatalf("%d %q", resp.StatusCode, body)
		}
	}
}
