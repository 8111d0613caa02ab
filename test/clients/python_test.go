package clients

import (
	"net"
	"os"
	"os/exec"
	"testing"
)

func TestPythonConsul(t *testing.T) {
	python := "/usr/bin/python3" // Debian's: another one does not see its packages
	if out, err := exec.CommandContext(t.Context(), python, "-c", "import consul").CombinedOutput(); err != nil {
		t.Skipf("Debian's package python3-consul is not here: %v %s", err, out)
	}
	dir, err := os.Getwd()
	must(t, err)
	s := start(t)
	host, port, err := net.SplitHostPort(s.counted)
	must(t, err)
	steps(t, dir, python, "consul_steps.py", host, port)
}
