package cli

import (
	"fmt"

	"github.com/spf13/cobra"
)

func (a *app) instances() *cobra.Command {
	var namespace string
	cmd := &cobra.Command{
		Use:   "instances NAME",
		Short: "List the instances of a service",
		Long: `List the instances of a service: where each runs and how it is.

HEALTH is the worst of the instance's own checks and its node's; "kept" are those that
get traffic though they failed, because too many failed together. PID is known
for what "weft run" started. With -o json every check is shown with its last
output, and the address and identity of the sidecar.`,
		Example: `  weft instances order-service
  weft instances order-service.shop
  weft instances order-service -o json | jq -r '.[] | select(.health != "passing") | .id'`,
		Args:              wantArgs(1, 1, "the NAME of one service"),
		ValidArgsFunction: a.first(a.completeServices),
	}
	cmd.Flags().StringVarP(&namespace, "namespace", "n", "", "`namespace` of the service (default \"default\")")
	out := formatFlag(cmd, "json")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		n, err := serviceName(args[0], namespace)
		if err != nil {
			return err
		}
		list, err := a.client().Instances(cmd.Context(), n)
		if err != nil {
			return err
		}
		if out.value == "json" {
			return printJSON(a.out, list)
		}
		guard := ""
		t := newTable(a.out, "", "ID", "ADDRESS", "VERSION", "ZONE", "HEALTH", "PID", "NODE")
		for _, i := range list {
			health := i.Health.String()
			if i.Kept != "" {
				health, guard = health+", kept", i.Kept
			}
			t.row("", i.ID, i.Address, i.Version, i.Zone, health, number(i.PID), i.Node)
		}
		if err := t.flush(); err != nil || guard == "" {
			return err
		}
		fmt.Fprintf(a.out, "\nguarded: %s\n", printable(guard))
		return nil
	}
	return cmd
}
