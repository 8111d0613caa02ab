package cli

import (
	"encoding/json"
	"fmt"
	"io"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/client"
)

func (a *app) get() *cobra.Command {
	var namespace string
	cmd := &cobra.Command{
		Use:   "get KIND [NAME]",
		Short: "Show applied resources",
		Long: `List the applied resources of a kind, or show one of them. KIND may be written in
lower case or in the plural; "all" is every kind.

With -o yaml or -o json the whole resource is printed, as it can be applied again.`,
		Example: `  weft get all
  weft get virtualservice
  weft get virtualservice order-service -o yaml`,
		Args:              wantArgs(1, 2, "a KIND, and the NAME of one resource or none"),
		ValidArgsFunction: a.completeResource,
	}
	cmd.Flags().StringVarP(&namespace, "namespace", "n", "", "only of this `namespace`; with NAME the default is \"default\"")
	out := formatFlag(cmd, "json", "yaml")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) == 2 {
			r, err := a.client().Resource(cmd.Context(), args[0], namespace, args[1])
			if err != nil {
				return err
			}
			if out.value == "json" {
				return printJSON(a.out, r.Object)
			}
			return printResources(a.out, out.value, []client.Resource{r})
		}
		var kinds []string
		if args[0] != "all" {
			kinds = args[:1]
		}
		list, err := a.client().Resources(cmd.Context(), kinds...)
		if err != nil {
			return err
		}
		list = ofNamespace(list, namespace)
		if len(list) == 0 && out.value == "" {
			a.complain("nothing of kind %s is applied", args[0])
			return nil
		}
		return printResources(a.out, out.value, list)
	}
	return cmd
}

func ofNamespace(list []client.Resource, namespace string) []client.Resource {
	if namespace == "" {
		return list
	}
	var out []client.Resource
	for _, r := range list {
		if r.Namespace == namespace {
			out = append(out, r)
		}
	}
	return out
}

func printResources(w io.Writer, format string, list []client.Resource) error {
	switch format {
	case "json":
		objects := make([]json.RawMessage, len(list))
		for i, r := range list {
			objects[i] = r.Object
		}
		return printJSON(w, objects)
	case "yaml":
		for i, r := range list {
			doc, err := yaml.JSONToYAML(r.Object)
			if err != nil {
				return &weft.Error{Op: "print", Thing: qualified(r.Kind, r.Namespace, r.Name), Err: err}
			}
			if i > 0 {
				fmt.Fprintln(w, "---")
			}
			if _, err := w.Write(doc); err != nil {
				return err
			}
		}
		return nil
	}
	t := newTable(w, "", "KIND", "NAMESPACE", "NAME", "API VERSION", "APPLIED FROM")
	for _, r := range list {
		from := weft.SourceRef{File: r.File, Line: r.Line}
		t.row("", r.Kind, r.Namespace, r.Name, r.APIVersion, from.Position())
	}
	return t.flush()
}
