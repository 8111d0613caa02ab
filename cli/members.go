package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/weftmesh/weft/client"
)

func (a *app) members() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "members [remove NAME]",
		Short: "Show the servers of the cluster, or take one out",
		Long: `Show the servers of the cluster, as the one that is asked knows them: the leader
writes, a learner has joined and is still being told everything. Each is asked whether
it is there.

A server joins when it is started for the first time:

  weft server --peer HOST:PORT --join HOST:PORT --server-token-file FILE

where --peer is an address of its own for the others, --join the control address of
any server that was started with --peer, and FILE a copy of "server-token" from that
one's data directory.

"remove" takes a server out for good: its data directory is of no more use, and its
process ends by itself if it can be reached. One that would leave the others without
a majority is refused.`,
		Example: `  weft members
  weft members remove server-3`,
		Args:              wantArgs(0, 2, "no arguments, or remove and a NAME"),
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	out := formatFlag(cmd, "json")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) > 0 {
			return a.removeMember(cmd.Context(), args)
		}
		list, err := a.client().Servers(cmd.Context())
		if err != nil {
			return err
		}
		if out.value == "json" {
			return printJSON(a.out, list)
		}
		t := newTable(a.out, "", "NAME", "ROLE", "STATE", "PEER", "CONTROL", "API", "CONSUL")
		for _, s := range list {
			t.row("", s.Name, role(&s), state(&s), orDash(s.Peer), orDash(s.Control), orDash(s.API), orDash(s.Consul))
		}
		return t.flush()
	}
	return cmd
}

func role(s *client.Server) string {
	switch {
	case s.Leader:
		return "leader"
	case s.Learner:
		return "learner"
	}
	return "follower"
}

// state says whether a server is there, as the one that was asked finds.
func state(s *client.Server) string {
	if s.Away != "" {
		return "no answer: " + s.Away
	}
	return "answers"
}

func (a *app) removeMember(ctx context.Context, args []string) error {
	if len(args) != 2 || args[0] != "remove" {
		return usagef("want no arguments, or remove and a NAME")
	}
	if err := a.client().RemoveServer(ctx, args[1]); err != nil {
		return err
	}
	fmt.Fprintf(a.out, "%s: removed\n", args[1])
	return nil
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
