package cli

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/weftmesh/weft/node"
)

// upgradeTime is longer than an upgrade of each process of a demo may take.
const upgradeTime = 10 * time.Minute

func (a *app) upgrade() *cobra.Command {
	return &cobra.Command{
		Use:   "upgrade PID",
		Short: "Replace a running weft by a new process, without dropping a connection",
		Long: `Replace a running gateway, server or sidecar by a new process, without dropping a
connection. PID is its process id, as "weft status" and the "ready" line of its log
tell it.

The process starts its executable again, by the path by which it was started (put
the new version there before), with the same arguments and environment. The new
process inherits the listening sockets; when it serves, the old one stops accepting,
lets requests in flight end (for its --drain at most), and exits with 0. When the
new one fails, or is not ready in 30 s, the old one goes on as before, and this
command says why. SIGUSR2 does the same, and the log tells how it ended.

A sidecar's program runs on: it keeps its process id. Its parent, the first "weft
run", stays for it and serves nothing; so does a process that is the first of a
container, that has init as its parent and no notify socket, or --keep-pid. Such a
parent passes signals on, and may be upgraded again.

A server closes its state before the new one opens it. Connections wait meanwhile;
proxies go on with what they know.`,
		Example:           "  weft upgrade 4711",
		Args:              wantArgs(1, 1, "the PID of a weft process"),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			pid, err := strconv.Atoi(args[0])
			if err != nil || pid < 1 {
				return usagef("%q is no process id", args[0])
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), upgradeTime)
			defer cancel()
			said, err := node.Upgrade(ctx, pid)
			if err != nil {
				return err
			}
			for line := range strings.Lines(said) {
				fmt.Fprintln(a.out, printable(strings.TrimSuffix(line, "\n")))
			}
			return nil
		},
	}
}
