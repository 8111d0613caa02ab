package node

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/weftmesh/weft/control/controltest"
)

// The status and the metrics of a server tell how its sources are: one that is well
// but for a file, and one that is away.
func TestSourcesAreTold(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("web.yaml", "service:\n  name: web\n  port: 8080\n")
	write("bad.yaml", "service:\n  name: bad\n  port: 99999\n")
	s := startMember(t, ServerConfig{Node: "a", Sources: Sources{Directories: []string{dir}, Etcd: []string{"http://" + freePort(t)}}})
	defer http.DefaultClient.CloseIdleConnections()
	told := func(problems int) func() string {
		return func() string {
			status, err := s.api.Status(t.Context())
			if err != nil || len(status.Sources) != 2 {
				return fmt.Sprintf("status: %+v, %v", status, err)
			}
			files, etcd := status.Sources[0], status.Sources[1]
			if !files.Up() || files.Instances != 1 || files.Node != "a" || len(files.Problems) != problems {
				return fmt.Sprintf("files: %+v", files)
			}
			if problems > 0 && !strings.Contains(files.Problems[0], "bad.yaml:2:") {
				return fmt.Sprintf("the problem has no place: %v", files.Problems)
			}
			if etcd.Up() || etcd.Away == "" || etcd.AwaySince.IsZero() {
				return fmt.Sprintf("etcd: %+v", etcd)
			}
			metrics, _ := fetch(t, s.doors.api, "/metrics")
			for _, line := range []string{
				fmt.Sprintf("weft_source_up{source=%q} 1", files.Name), fmt.Sprintf("weft_source_up{source=%q} 0", etcd.Name),
				fmt.Sprintf("weft_source_problems{source=%q} %d", files.Name, problems), fmt.Sprintf("weft_source_instances{source=%q} 1", files.Name),
			} {
				if !strings.Contains(metrics, line) {
					return "the metrics do not have " + line
				}
			}
			return ""
		}
	}
	controltest.Eventually(t, told(1))
	if err := os.Remove(filepath.Join(dir, "bad.yaml")); err != nil {
		t.Fatal(err)
	}
	controltest.Eventually(t, told(0))
}
