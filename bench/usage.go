package main

import (
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// usage is what processes have used so far, and of memory what they use now.
type usage struct {
	cpu  time.Duration // user and system
	rss  int64         // bytes
	anon int64         // bytes of rss that are no file's: without the program itself
	peak int64         // the most that rss has been; of several processes the sum
}

// tick is the unit of CPU time in /proc: USER_HZ, 100 a second on every
// architecture that Go and these peers run on.
const tick = 10 * time.Millisecond

// procStat is what is needed of /proc/PID/stat.
type procStat struct {
	parent int
	usage
}

// usageOf adds up processes and all their descendants (nginx works in a child).
func usageOf(processes []*process) (usage, error) {
	all, err := readProcesses()
	if err != nil {
		return usage{}, err
	}
	var sum usage
	for pid := range all {
		if descends(all, pid, processes) {
			sum.cpu += all[pid].cpu
			sum.rss += all[pid].rss
			anon, peak, err := memory(pid)
			if err != nil {
				return usage{}, err
			}
			sum.anon += anon
			sum.peak += peak
		}
	}
	return sum, nil
}

func descends(all map[int]procStat, pid int, from []*process) bool {
	for ; pid > 1; pid = all[pid].parent {
		for _, p := range from {
			if p.pid == pid {
				return true
			}
		}
	}
	return false
}

func readProcesses() (map[int]procStat, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	all := map[int]procStat{}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		text, err := os.ReadFile("/proc/" + e.Name() + "/stat")
		if err != nil { // it ended while we looked
			continue
		}
		if all[pid], err = parseStat(string(text)); err != nil {
			return nil, fmt.Errorf("process %d: %w", pid, err)
		}
	}
	return all, nil
}

// parseStat reads /proc/PID/stat (proc_pid_stat(5)). The second field is a name in
// parentheses that may itself hold any character.
func parseStat(text string) (procStat, error) {
	fields := strings.Fields(text[strings.LastIndexByte(text, ')')+1:])
	if len(fields) < 22 {
		return procStat{}, fmt.Errorf("stat has %d fields behind the name, want 22", len(fields))
	}
	var n [4]int64
	for i, field := range []int{1, 11, 12, 21} { // ppid, utime, stime, rss in pages
		var err error
		if n[i], err = strconv.ParseInt(fields[field], 10, 64); err != nil {
			return procStat{}, err
		}
	}
	return procStat{parent: int(n[0]), usage: usage{cpu: time.Duration(n[1]+n[2]) * tick, rss: n[3] * int64(os.Getpagesize())}}, nil
}

var (
	rssAnon = regexp.MustCompile(`(?m)^RssAnon:\s+(\d+) kB$`)
	vmHWM   = regexp.MustCompile(`(?m)^VmHWM:\s+(\d+) kB$`)
)

// memory is the part of a process's resident memory that no file is behind, and
// the most that all of it has been.
func memory(pid int) (anonymous, peak int64, err error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, 0, err
	}
	for what, into := range map[*regexp.Regexp]*int64{rssAnon: &anonymous, vmHWM: &peak} {
		m := what.FindSubmatch(text)
		if m == nil {
			return 0, 0, fmt.Errorf("process %d: its status has no %s", pid, what)
		}
		kb, err := strconv.ParseInt(string(m[1]), 10, 64)
		if err != nil {
			return 0, 0, err
		}
		*into = kb << 10
	}
	return anonymous, peak, nil
}

// busy is how long a core has been working so far, for whomever; time that the
// machine's host took away counts.
func busy(core int) (time.Duration, error) {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		if len(fields) < 9 || fields[0] != fmt.Sprintf("cpu%d", core) {
			continue
		}
		var sum time.Duration
		for _, i := range []int{1, 2, 3, 6, 7, 8} { // user nice system, not idle and iowait, irq softirq steal
			n, err := strconv.ParseInt(fields[i], 10, 64)
			if err != nil {
				return 0, err
			}
			sum += time.Duration(n) * tick
		}
		return sum, nil
	}
	return 0, fmt.Errorf("/proc/stat has no core %d", core)
}
