package cli

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/weftmesh/weft/client"
)

func (a *app) services() *cobra.Command {
	var namespace string
	cmd := &cobra.Command{
		Use:   "services",
		Short: "List the services and how many of their instances are healthy",
		Long: `List every service that has an instance, with its versions and tags.

HEALTHY counts the instances that get traffic: those that pass or only warn. Of a
service that is guarded, "+3 kept" says that three that failed get traffic, too; why,
says "weft guard".`,
		Example: `  weft services
  weft services -n shop
  weft services -o json | jq -r '.[].name'`,
		Args:              wantArgs(0, 0, "no arguments"),
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	cmd.Flags().StringVarP(&namespace, "namespace", "n", "", "only of this `namespace`")
	out := formatFlag(cmd, "json")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		list, err := a.client().Services(cmd.Context(), namespace)
		if err != nil {
			return err
		}
		if out.value == "json" {
			return printJSON(a.out, list)
		}
		t := newTable(a.out, "", "NAMESPACE", "NAME", "INSTANCES", "HEALTHY", "VERSIONS", "TAGS")
		for _, s := range list {
			t.row("", s.Namespace, s.Name, strconv.Itoa(s.Instances), healthy(&s),
				strings.Join(s.Versions, ","), strings.Join(s.Tags, ","))
		}
		return t.flush()
	}
	return cmd
}

// healthy is how many instances of a service get traffic.
func healthy(s *client.Service) string {
	if s.Kept == 0 {
		return strconv.Itoa(s.Healthy)
	}
	return fmt.Sprintf("%d +%d kept", s.Healthy, s.Kept)
}
