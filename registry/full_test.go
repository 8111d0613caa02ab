package registry_test

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/store"
)

// TestFullDisk: writes are refused at once and with the reason, reads go on, also of a
// server that is started there, and writes when there is room again.
func TestFullDisk(t *testing.T) {
	if !inside(t) {
		return
	}
	disk := t.TempDir()
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("weft", disk, "tmpfs", 0, "size=128m"); err != nil {
		t.Skipf("a file system cannot be mounted here: %v", err)
	}
	defer func() { _ = syscall.Unmount(disk, syscall.MNT_DETACH) }()
	dir := filepath.Join(disk, "state")
	s, err := store.Open(t.Context(), store.Config{Dir: dir}) // its log tells of the full disk, too
	must(t, err)
	r := openRegistry(t, s)
	in := weft.Instance{ID: "a", Service: weft.NewServiceName("", "web")}
	_, err = r.Register(t.Context(), in)
	must(t, err)

	ballast := filepath.Join(disk, "ballast")
	var st syscall.Statfs_t
	must(t, syscall.Statfs(disk, &st))
	must(t, os.WriteFile(ballast, make([]byte, int64(st.Bavail)*st.Bsize-(24<<20)), 0o600))
	refused := func() {
		t.Helper()
		began := time.Now()
		in.ID = "b"
		for range 3 {
			_, err := r.Register(t.Context(), in)
			if weft.KindOf(err) != weft.Unavailable || !strings.Contains(err.Error(), "the disk is full: that of "+dir) {
				t.Fatalf("%v, want it refused with the reason", err)
			}
		}
		if waited := time.Since(began); waited > 5*time.Second {
			t.Errorf("the refusals took %v", waited)
		}
		if got, _ := r.Instance(weft.InstanceKey{Node: r.LocalNode().Name, ID: "a"}); got == nil {
			t.Error("what is there cannot be read")
		}
	}
	refused()

	must(t, r.Close())
	must(t, s.Close())
	s, err = store.Open(t.Context(), store.Config{Dir: dir})
	must(t, err)
	defer func() { must(t, s.Close()) }()
	r = openRegistry(t, s)
	defer func() { must(t, r.Close()) }()
	refused()

	must(t, os.Remove(ballast))
	for end := time.Now().Add(10 * time.Second); ; <-time.After(50 * time.Millisecond) {
		if _, err = r.Register(t.Context(), in); err == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
}

// insideEnv is set where a test has mounts of its own.
const insideEnv = "WEFT_REGISTRY_TEST_INSIDE"

// inside says whether the test is to go on. Outside, it has run in a process that has
// mounts of its own, which go with it however it ends.
func inside(t *testing.T) bool {
	t.Helper()
	if os.Getenv(insideEnv) != "" {
		return true
	}
	child := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=1m")
	child.Env = append(os.Environ(), insideEnv+"=1")
	child.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWNS | syscall.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
		Pdeathsig:   syscall.SIGKILL,
	}
	out, err := child.CombinedOutput()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		t.Fatalf("%v\n%s", err, out)
	case err != nil:
		t.Skipf("no process with mounts of its own can be had here: %v", err)
	case bytes.Contains(out, []byte("--- SKIP")):
		t.Skipf("%s", out)
	case !bytes.Contains(out, []byte("--- PASS: "+t.Name())):
		t.Fatalf("it did not run:\n%s", out)
	}
	return false
}
