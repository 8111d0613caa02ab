package grpc

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"
	"time"

	"github.com/weftmesh/weft/test/world"
)

var interopClient, interopServer string

// TestMain builds the interoperability programs beside weft.
func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "weft-grpc-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	interopClient, interopServer = filepath.Join(dir, "client"), filepath.Join(dir, "server")
	for program, from := range map[string]string{interopClient: "client", interopServer: "server"} {
		build := exec.Command("go", "build", "-o", program, "google.golang.org/grpc/interop/"+from)
		build.Stderr = os.Stderr
		if err := build.Run(); err != nil {
			fmt.Fprintln(os.Stderr, "build the interoperability programs:", err)
			os.Exit(1)
		}
	}
	code := world.Run(m)
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

// orca makes the client look at the load reports that servers send.
const orca = `--service_config_json={"loadBalancingConfig":[{"test_backend_metrics_load_balancer":{}}]}`

// interopCases are all that the client has, with the flags that they need.
var interopCases = map[string][]string{
	"empty_unary": nil, "large_unary": nil, "client_streaming": nil, "server_streaming": nil, "ping_pong": nil, "empty_stream": nil,
	"timeout_on_sleeping_server": nil, "cancel_after_begin": nil, "cancel_after_first_response": nil,
	"status_code_and_message": nil, "special_status_message": nil, "custom_metadata": nil,
	"unimplemented_method": nil, "unimplemented_service": nil,
	"rpc_soak":     {"--soak_iterations=30", "--soak_num_threads=3", "--soak_overall_timeout_seconds=60", "--soak_per_iteration_max_acceptable_latency_ms=20000"},
	"channel_soak": {"--soak_iterations=10", "--soak_overall_timeout_seconds=60", "--soak_per_iteration_max_acceptable_latency_ms=20000"},
	"orca_per_rpc": {orca}, "orca_oob": {orca},
}

// notOurs are cases that fail without weft, too, with the reason.
var notOurs = map[string]string{
	"compute_engine_creds": cloud, "service_account_creds": cloud, "jwt_token_creds": cloud, "per_rpc_creds": cloud,
	"oauth2_auth_token": cloud, "google_default_credentials": cloud, "compute_engine_channel_credentials": cloud,
	"pick_first_unary": "it wants a server's name in each answer, which the interoperability server does not give",
}

const cloud = "it asks Google's cloud for credentials"

// TestNoCaseIsForgotten reads the client's own list of its cases.
func TestNoCaseIsForgotten(t *testing.T) {
	help, _ := exec.Command(interopClient, "--help").CombinedOutput() // ends with an error, as flag does
	found := regexp.MustCompile(`(?m)^[ \t]+([a-z_0-9]+) ?: `).FindAllStringSubmatch(string(help), -1)
	if len(found) < 20 {
		t.Fatalf("the client lists only %d cases:\n%s", len(found), help)
	}
	for _, m := range found {
		if _, ours := interopCases[m[1]]; !ours && notOurs[m[1]] == "" {
			t.Errorf("case %s is new", m[1])
		}
	}
}

// interop runs all cases against an address.
func interop(t *testing.T, address string, flags ...string) {
	for name, own := range interopCases {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			args := append([]string{"--server_host=127.0.0.1", "--server_port=" + strconv.Itoa(world.Port(t, address)), "--test_case=" + name}, flags...)
			if out, err := exec.CommandContext(ctx, interopClient, append(args, own...)...).CombinedOutput(); err != nil {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}

// startInterop starts the interoperability server and returns its address.
func startInterop(t *testing.T) (*world.Process, string) {
	t.Helper()
	address := "127.0.0.1:" + strconv.Itoa(world.FreePort(t))
	p := world.Start(t, "interop-server", interopServer, "--port="+strconv.Itoa(world.Port(t, address)))
	world.Eventually(t, 10*time.Second, "the interoperability server", world.Accepts(address))
	return p, address
}

// TestInteropDirect has nothing between the two: what fails here is not weft's.
func TestInteropDirect(t *testing.T) {
	_, address := startInterop(t)
	interop(t, address)
}

func TestInteropThroughSidecars(t *testing.T) {
	w := world.New(t)
	_, app := startInterop(t)
	door := startPair(t, w, app)
	interop(t, door)
}

func TestInteropThroughTheGateway(t *testing.T) {
	w := world.New(t)
	_, app := startInterop(t)
	g := startGateway(t, w, app)
	t.Run("plain", func(t *testing.T) { interop(t, g.HTTP) })
	t.Run("TLS", func(t *testing.T) {
		interop(t, g.HTTPS, "--use_tls", "--use_test_ca", "--ca_file="+g.certificate.Cert, "--server_host_override=localhost")
	})
}
