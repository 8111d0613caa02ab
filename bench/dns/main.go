package main

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"time"
)

// name is the one that is asked for.
const name = "web.service.consul."

const records = 10

// serve runs the servers, by their names, in processes of their own.
var serve = map[string]func() error{"weft": serveWeft, "coredns": serveCoreDNS}

func main() {
	if len(os.Args) > 2 && os.Args[1] == "serve" {
		if err := serve[os.Args[2]](); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	seconds := flag.Float64("seconds", 5, "`duration` of one measurement, in seconds")
	rounds := flag.Int("rounds", 3, "`number` of rounds, of which the medians are printed")
	flag.Parse()
	if err := run(time.Duration(*seconds*float64(time.Second)), *rounds); err != nil {
		fmt.Fprintln(os.Stderr, "bench/dns:", err)
		os.Exit(1)
	}
}

// figures are what is measured of one server.
type figures struct {
	name     string
	process  *process
	perSec   []float64 // at saturation
	cpu      []float64 // microseconds of its processor time for a question
	p50, p99 []float64 // milliseconds, at half of saturation
	outside  []float64 // questions a second, says dnsperf
}

func run(length time.Duration, rounds int) error {
	if err := pin(0, loadCore()); err != nil {
		return err
	}
	var peers []*figures
	for _, name := range []string{"weft", "coredns"} {
		p, err := start(name)
		if err != nil {
			return err
		}
		defer p.stop()
		peers = append(peers, &figures{name: name, process: p})
	}
	for range rounds {
		for _, f := range peers {
			if err := f.measure(length); err != nil {
				return fmt.Errorf("%s: %w", f.name, err)
			}
		}
	}
	fmt.Printf("%-8s %12s %10s %12s %12s %14s\n", "", "questions/s", "CPU µs", "p50 ms, half", "p99 ms, half", "dnsperf says/s")
	for _, f := range peers {
		fmt.Printf("%-8s %12.0f %10.2f %12.3f %12.3f %14.0f\n", f.name, median(f.perSec), median(f.cpu), median(f.p50), median(f.p99), median(f.outside))
	}
	fmt.Printf("weft answers %.2f times as many, with %.2f of the processor time\n",
		median(peers[0].perSec)/median(peers[1].perSec), median(peers[0].cpu)/median(peers[1].cpu))
	return nil
}

func (f *figures) measure(length time.Duration) error {
	before, err := f.process.cpuTime()
	if err != nil {
		return err
	}
	n, err := saturate(f.process.addr, length)
	if err != nil {
		return err
	}
	after, err := f.process.cpuTime()
	if err != nil {
		return err
	}
	perSec := float64(n) / length.Seconds()
	f.perSec = append(f.perSec, perSec)
	f.cpu = append(f.cpu, float64((after-before).Microseconds())/float64(n))
	late, err := pace(f.process.addr, perSec/2, length)
	if err != nil {
		return err
	}
	slices.Sort(late)
	f.p50 = append(f.p50, ms(late[len(late)/2]))
	f.p99 = append(f.p99, ms(late[len(late)*99/100]))
	outside, err := dnsperf(f.process.addr, length)
	f.outside = append(f.outside, outside)
	return err
}

func ms(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e6 }

func median(list []float64) float64 {
	sorted := slices.Sorted(slices.Values(list))
	return sorted[len(sorted)/2]
}
