package cli

import (
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/client"
)

func (a *app) apply() *cobra.Command {
	var names []string
	var o client.ApplyOptions
	cmd := &cobra.Command{
		Use:   "apply -f FILE",
		Short: "Create or change resources from YAML files",
		Long: `Create or change resources from YAML or JSON files, all in one transaction.

Every problem of all files is printed at once, with file:line, the field and how
to mend it; then nothing is applied, unless --partial says to apply what is
right. A reference to a host or subset that is not there yet is only a warning:
the order of files does not matter.`,
		Example: `  weft apply -f canary.yaml
  weft apply -f examples/shop -f extra.yaml
  weft get virtualservice order-service -o yaml | sed 's/95/80/;s/ 5/ 20/' | weft apply -f -
  weft apply --dry-run -f canary.yaml`,
		Args:              wantArgs(0, 0, "files by -f and no arguments"),
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	fileFlag(cmd, &names)
	cmd.Flags().BoolVar(&o.Partial, "partial", false, "apply what is right though something else is wrong")
	cmd.Flags().BoolVar(&o.DryRun, "dry-run", false, "check and say what would happen, change nothing")
	out := formatFlag(cmd, "json")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if len(names) == 0 {
			return usagef("want at least one -f FILE")
		}
		files, err := a.readFiles(names)
		if err != nil {
			return err
		}
		result, err := a.client().Apply(cmd.Context(), files, o)
		if err != nil {
			return a.rejected(err)
		}
		a.printProblems(result.Problems)
		if out.value == "json" {
			err = printJSON(a.out, result)
		} else {
			printApplied(a.out, result.Resources, o.DryRun)
		}
		if wrong := len(result.Problems.Errors()); wrong > 0 && err == nil {
			err = fmt.Errorf("%s: what has one was left out, the rest is applied", plural(wrong, "problem"))
		}
		return err
	}
	return cmd
}

// fileFlag gives cmd the repeatable flag -f.
func fileFlag(cmd *cobra.Command, names *[]string) {
	cmd.Flags().StringArrayVarP(names, "filename", "f", nil, "`file`, directory, or - for stdin; may be repeated")
	// It fails only for a flag that does not exist.
	_ = cmd.MarkFlagFilename("filename", "yaml", "yml", "json")
}

// rejected prints the problems in err, if there are any, and sums them up.
func (a *app) rejected(err error) error {
	var problems weft.Problems
	if !errors.As(err, &problems) {
		return err
	}
	a.printProblems(problems)
	return fmt.Errorf("%s, nothing was applied; mend the files, or apply what is right by --partial", plural(len(problems.Errors()), "problem"))
}

func printApplied(w io.Writer, list []client.AppliedResource, dryRun bool) {
	note := ""
	if dryRun {
		note = " (dry run)"
	}
	for _, r := range list {
		fmt.Fprintf(w, "%s %s%s\n", printable(qualified(r.Kind, r.Namespace, r.Name)), r.Action, note)
	}
}

// qualified is "VirtualService/order-service", with the namespace between when
// it is not the default one.
func qualified(kind, namespace, name string) string {
	if namespace == "" || namespace == weft.DefaultNamespace {
		return kind + "/" + name
	}
	return kind + "/" + namespace + "/" + name
}
