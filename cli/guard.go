package cli

import (
	"context"
	"fmt"
	"slices"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/client"
)

func (a *app) guard() *cobra.Command {
	var namespace string
	cmd := &cobra.Command{
		Use:   "guard [[release] SERVICE]",
		Short: "Show guarded services, or let their failed instances go",
		Long: `Show the services that are guarded: so many of their instances failed together that
traffic still goes to those, because more often the checks are wrong, or what all of
them need is, than each of them.

A guard ends by itself when instances recover. "release" ends it now: the instances
that failed get no traffic any more. The label weft-guard of an instance sets when its
service is guarded: "off", or a share such as "50%".`,
		Example: `  weft guard
  weft guard order-service
  weft guard release order-service`,
		Args:              wantArgs(0, 2, "nothing, a SERVICE, or release and a SERVICE"),
		ValidArgsFunction: a.completeGuard,
	}
	cmd.Flags().StringVarP(&namespace, "namespace", "n", "", "`namespace` of SERVICE (default \"default\")")
	out := formatFlag(cmd, "json")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		var n weft.ServiceName
		var err error
		if len(args) == 1 && args[0] == "release" {
			return usagef("want release and a SERVICE")
		}
		if len(args) > 0 {
			if n, err = serviceName(args[len(args)-1], namespace); err != nil {
				return err
			}
		} else if namespace != "" {
			return usagef("--namespace belongs to SERVICE")
		}
		if len(args) == 2 {
			return a.releaseGuard(cmd.Context(), args[0], n)
		}
		list, err := a.client().Guards(cmd.Context())
		if err != nil {
			return err
		}
		if len(args) == 1 {
			list = slices.DeleteFunc(list, func(g client.Guarded) bool { return g.Service != n.Name || g.Namespace != n.Namespace })
		}
		if out.value == "json" {
			return printJSON(a.out, list)
		}
		return a.printGuards(list)
	}
	return cmd
}

func (a *app) releaseGuard(ctx context.Context, verb string, n weft.ServiceName) error {
	if verb != "release" {
		return usagef("%q: want release and a SERVICE", verb)
	}
	if err := a.client().ReleaseGuard(ctx, n); err != nil {
		return err
	}
	fmt.Fprintf(a.out, "%s: released; its failed instances get no traffic\n", n)
	return nil
}

func (a *app) printGuards(list []client.Guarded) error {
	if len(list) == 0 {
		a.complain("not guarded")
		return nil
	}
	t := newTable(a.out, "", "NAMESPACE", "SERVICE", "SINCE", "KEPT", "REASON")
	for _, g := range list {
		t.row("", g.Namespace, g.Service, timestamp(g.Since), strconv.Itoa(len(g.Kept)), g.Reason)
	}
	return t.flush()
}

// completeGuard offers release, and the names of services.
func (a *app) completeGuard(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
	names, directive := []string(nil), cobra.ShellCompDirectiveNoFileComp
	if len(args) == 0 || len(args) == 1 && args[0] == "release" {
		names, directive = a.ask(a.completeServices)(cmd, args, prefix)
	}
	if len(args) == 0 {
		names = append(names, withPrefix([]string{"release"}, prefix)...)
	}
	return names, directive
}
