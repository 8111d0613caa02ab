package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/client"
)

func (a *app) delete() *cobra.Command {
	var namespace string
	var names []string
	cmd := &cobra.Command{
		Use:   "delete KIND NAME | delete -f FILE",
		Short: "Delete applied resources",
		Long: `Delete one resource, or every resource that is in some files.

With -f each document's kind, namespace and name count and the rest of it does
not matter. All are tried; what could not be deleted is said, and the exit code
is 1.`,
		Example: `  weft delete virtualservice order-service
  weft delete -f canary.yaml`,
		Args:              wantArgs(0, 2, "KIND and NAME, or files by -f"),
		ValidArgsFunction: a.completeResource,
	}
	fileFlag(cmd, &names)
	cmd.Flags().StringVarP(&namespace, "namespace", "n", "", "`namespace` of the resource, where a file says none (default \"default\")")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		targets := []target{}
		switch {
		case len(names) == 0 && len(args) == 2:
			targets = append(targets, target{args[0], namespace, args[1]})
		case len(names) > 0 && len(args) == 0:
			files, err := a.readFiles(names)
			if err != nil {
				return err
			}
			if targets, err = targetsIn(files, namespace); err != nil {
				return err
			}
		default:
			return usagef("want KIND and NAME, or files by -f")
		}
		return a.deleteAll(cmd.Context(), targets)
	}
	return cmd
}

// deleteAll tries every target and says what failed.
func (a *app) deleteAll(ctx context.Context, targets []target) error {
	var failed []error
	for _, t := range targets {
		if err := a.client().Delete(ctx, t.kind, t.namespace, t.name); err != nil {
			failed = append(failed, err)
			continue
		}
		fmt.Fprintf(a.out, "%s deleted\n", printable(qualified(t.kind, t.namespace, t.name)))
	}
	if len(failed) <= 1 {
		return errors.Join(failed...)
	}
	for _, err := range failed {
		a.complain("weft: %s", err)
	}
	return fmt.Errorf("%d of %d resources were not deleted", len(failed), len(targets))
}

// target names one resource.
type target struct{ kind, namespace, name string }

// manifest is what says which resource a document is. A List holds several.
type manifest struct {
	Kind     string
	Metadata struct{ Name, Namespace string }
	Items    []manifest
}

// targetsIn reads which resources the documents of files are.
func targetsIn(files []client.File, namespace string) ([]target, error) {
	var out []target
	for _, f := range files {
		dec := yaml.NewDecoder(strings.NewReader(f.Data))
		for {
			var node yaml.Node
			err := dec.Decode(&node)
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return nil, &weft.Error{Kind: weft.Invalid, Op: "read", Thing: f.Name, Err: err}
			}
			if len(node.Content) == 1 && node.Content[0].Tag == "!!null" {
				continue // nothing but comments
			}
			var m manifest
			if err = node.Decode(&m); err == nil {
				out, err = m.targets(out, namespace)
			}
			if err != nil {
				return nil, weft.Errorf(weft.Invalid, "read", fmt.Sprintf("%s:%d", f.Name, node.Line), "%w", err)
			}
		}
	}
	return out, nil
}

// targets appends the resource that m is, or those that it holds.
func (m *manifest) targets(out []target, namespace string) ([]target, error) {
	var err error
	if m.Kind == "List" {
		for i := range m.Items {
			if out, err = m.Items[i].targets(out, namespace); err != nil {
				break
			}
		}
		return out, err
	}
	if m.Kind == "" || m.Metadata.Name == "" {
		return out, errors.New("the document has no kind or no metadata.name, so there is nothing to delete by it")
	}
	if m.Metadata.Namespace != "" {
		namespace = m.Metadata.Namespace
	}
	return append(out, target{m.Kind, namespace, m.Metadata.Name}), nil
}
