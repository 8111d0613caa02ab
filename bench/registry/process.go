package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// self runs this program as a child, which prints what it measured.
func self(ctx context.Context, o options, child string) error {
	path, err := os.Executable()
	if err != nil {
		return err
	}
	args := []string{
		"-child", child, "-dir", o.dir, "-seconds", fmt.Sprint(o.length.Seconds()), "-clients", strconv.Itoa(o.clients),
		"-services", strconv.Itoa(o.services), "-instances", strconv.Itoa(o.instances), "-watchers", strconv.Itoa(o.watchers),
	}
	if o.profile != "" {
		args = append(args, "-cpuprofile", o.profile+"."+child)
	}
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w", child, err)
	}
	return nil
}

// cpuTime is what a process has used; 0 is this one.
func cpuTime(pid int) (time.Duration, error) {
	if pid == 0 {
		var u syscall.Rusage
		err := syscall.Getrusage(syscall.RUSAGE_SELF, &u)
		return time.Duration(u.Utime.Nano() + u.Stime.Nano()), err
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	user, err := strconv.ParseInt(fields[11], 10, 64)
	if err != nil {
		return 0, err
	}
	system, err := strconv.ParseInt(fields[12], 10, 64)
	return time.Duration(user+system) * (time.Second / 100), err // USER_HZ
}

// memory returns the resident set of this process, and what of it is no file's, in
// bytes.
func memory() (rss, anon int64, err error) {
	f, err := os.Open("/proc/self/status")
	if err != nil {
		return 0, 0, err
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		name, value, _ := strings.Cut(lines.Text(), ":")
		kb, _ := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
		switch name {
		case "VmRSS":
			rss = kb << 10
		case "RssAnon":
			anon = kb << 10
		}
	}
	return rss, anon, nil
}
