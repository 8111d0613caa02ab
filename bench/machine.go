package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
)

// describeMachine says where the numbers come from, a line a fact.
func describeMachine(ctx context.Context, weft string) []string {
	lines := []string{fmt.Sprintf("%d cores, %s, Linux %s %s", runtime.NumCPU(), cpuModel(), kernel(), runtime.GOARCH)}
	versions := []string{version(ctx, weft, "version") + commit(ctx) + ", " + runtime.Version(), version(ctx, "haproxy", "-v"), version(ctx, "nginx", "-v"), version(ctx, "nghttpx", "--version"),
		version(ctx, "wrk", "-v"), version(ctx, "h2load", "--version")}
	lines = append(lines, strings.Join(versions, "; "))
	if !installed("nginx") {
		lines = append(lines, "the backend is bench's own: nginx is not installed")
	}
	if !installed("wrk") {
		lines = append(lines, "the load generator is bench's own: wrk is not installed")
	}
	return lines
}

var modelName = regexp.MustCompile(`(?m)^model name\s*: (.*)$`)

func cpuModel() string {
	text, _ := os.ReadFile("/proc/cpuinfo") // some architectures do not say
	if m := modelName.FindSubmatch(text); m != nil {
		return string(m[1])
	}
	return "unknown CPU"
}

func kernel() string {
	text, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(text))
}

// commit of the tree that weft was built from, where git can tell.
func commit(ctx context.Context) string {
	out, err := exec.CommandContext(ctx, "git", "describe", "--always", "--dirty", "--exclude=*").Output()
	if err != nil {
		return ""
	}
	return " at " + strings.TrimSpace(string(out))
}

var versionNumber = regexp.MustCompile(`\d+\.\d+\S*`)

// version is the first number that looks like one in what a program says of itself.
// wrk's exit code is 1 after that, so the code is not asked.
func version(ctx context.Context, program, flag string) string {
	name := filepath.Base(program)
	out, _ := exec.CommandContext(ctx, program, flag).CombinedOutput()
	if number := versionNumber.Find(out); number != nil {
		return name + " " + string(number)
	}
	return "no " + name
}
