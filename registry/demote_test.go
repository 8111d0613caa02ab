package registry

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/weftmesh/weft"
)

// Each line is a report: seconds, observer, endpoint, failures, successes; and what
// follows from it, "-" for nothing. An endpoint that was demoted is so from then on.
func TestVotes(t *testing.T) {
	for name, lines := range map[string]string{
		"two agree": `
			0 a web1 3 0 -
			1 b web1 3 0 demote`,
		"one lies, and others call the service": `
			0 a web1 0 1 -
			0 b web1 0 1 -
			20 liar web1 100 0 -
			21 liar web1 100 0 -`,
		"one lies before others have reported": `
			0 liar web1 100 0 -
			1 a web1 0 1 -
			20 liar web1 100 0 -`,
		"one is the only caller for long enough": `
			0 a web1 3 0 -
			10 a web1 3 0 -
			15 a web1 3 0 demote`,
		"a few failures among successes": `
			0 a web1 2 0 -
			1 b web1 2 0 -
			2 a web1 1 5 -
			3 b web1 1 5 -`,
		"most have to agree": `
			0 a web1 0 9 -
			0 b web1 0 9 -
			0 c web1 0 9 -
			1 d web1 3 0 -
			2 e web1 3 0 -
			3 a web1 3 0 demote`,
		"who finds everything dead has lost the network": `
			0 a web1 0 1 -
			0 b web1 3 0 -
			0 b web2 3 0 -
			0 b db1 3 0 -
			1 c web1 3 0 -`,
		"old votes do not count": `
			0 a web1 3 0 -
			40 b web1 3 0 -`,
		"it works again": `
			0 a web1 3 0 -
			1 b web1 3 0 demote
			2 a web1 0 1 -
			3 b web1 0 1 -
			5 b web1 0 1 recover`,
		"one after the other": `
			0 a web1 3 0 -
			0 a db1 0 9 -
			0 b db1 0 9 -
			0 b web1 3 0 demote
			0.1 a web2 3 0 -
			0.2 b web2 3 0 -
			1.2 b web2 1 0 demote`,
	} {
		t.Run(name, func(t *testing.T) {
			var s observations
			demoted := make(map[string]bool)
			began := time.Now()
			for line := range strings.SplitSeq(strings.TrimSpace(lines), "\n") {
				var seconds float64
				var o Observation
				var endpoint, want string
				if _, err := fmt.Sscan(line, &seconds, &o.Observer, &endpoint, &o.Failures, &o.Successes, &want); err != nil {
					t.Fatal(line, err)
				}
				o.Key, o.Kind = weft.InstanceKey{Node: "n", ID: endpoint}, "connect"
				now := began.Add(time.Duration(seconds * float64(time.Second)))
				service := weft.NewServiceName("", strings.TrimRight(endpoint, "0123456789"))
				v, ok := s.take(o, service, demoted[endpoint], now)
				got := "-"
				switch {
				case !ok:
					got = "refused"
				case v.demote:
					got, demoted[endpoint] = "demote", true
					s.demoted(o.Key, service, now)
				case v.recover:
					got, demoted[endpoint] = "recover", false
				}
				if got != want {
					t.Errorf("%s: %s", strings.TrimSpace(line), got)
				}
			}
		})
	}
}

func TestAnObserverThatReportsTooOften(t *testing.T) {
	var s observations
	now := time.Now()
	o := Observation{Key: weft.InstanceKey{Node: "n", ID: "web1"}, Observer: "a", Successes: 1}
	service := weft.NewServiceName("", "web")
	taken := 0
	for range 2 * reportsBurst {
		if _, ok := s.take(o, service, false, now); ok {
			taken++
		}
	}
	if taken != reportsBurst {
		t.Errorf("%d reports of one moment are taken, want %d", taken, reportsBurst)
	}
	if _, ok := s.take(o, service, false, now.Add(time.Second)); !ok {
		t.Error("a second later it is still refused")
	}
	o.Observer = "b"
	if _, ok := s.take(o, service, false, now); !ok {
		t.Error("another observer is refused, too")
	}
}
