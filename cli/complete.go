package cli

import (
	"context"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/weftmesh/weft"
)

// completionTime bounds what the shell waits for after Tab: longer feels stuck,
// and without a server there is nothing to offer anyway.
const completionTime = 300 * time.Millisecond

// completer offers values for a word that begins with prefix.
type completer func(ctx context.Context, prefix string) []string

// first completes the first argument only.
func (a *app) first(c completer) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return a.ask(c)(cmd, args, prefix)
	}
}

// ask runs a completer within completionTime.
func (a *app) ask(c completer) cobra.CompletionFunc {
	return func(cmd *cobra.Command, _ []string, prefix string) ([]string, cobra.ShellCompDirective) {
		ctx, cancel := context.WithTimeout(cmd.Context(), completionTime)
		defer cancel()
		if a.connect(ctx) != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return withPrefix(c(ctx, prefix), prefix), cobra.ShellCompDirectiveNoFileComp
	}
}

func withPrefix(values []string, prefix string) []string {
	var out []string
	for _, v := range values {
		if strings.HasPrefix(strings.ToLower(v), strings.ToLower(prefix)) {
			out = append(out, v)
		}
	}
	return out
}

// completeServices offers the names of services; those outside the default
// namespace as "name.namespace".
func (a *app) completeServices(ctx context.Context, _ string) []string {
	list, err := a.client().Services(ctx, "")
	if err != nil {
		return nil
	}
	names := make([]string, len(list))
	for i, s := range list {
		names[i] = s.Name
		if s.Namespace != weft.DefaultNamespace {
			names[i] += "." + s.Namespace
		}
	}
	return names
}

func (a *app) completeKinds(ctx context.Context, _ string) []string {
	kinds, err := a.client().Kinds(ctx)
	if err != nil {
		return nil
	}
	return kinds
}

// completeResource offers a kind, then the names of that kind's resources.
func (a *app) completeResource(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
	switch len(args) {
	case 0:
		return a.ask(a.completeKinds)(cmd, args, prefix)
	case 1:
		return a.ask(func(ctx context.Context, _ string) []string {
			list, err := a.client().Resources(ctx, args[0])
			if err != nil {
				return nil
			}
			names := make([]string, len(list))
			for i, r := range list {
				names[i] = r.Name
			}
			return names
		})(cmd, args, prefix)
	}
	return nil, cobra.ShellCompDirectiveNoFileComp
}

// completeRequest offers a method, then the URLs of services.
func (a *app) completeRequest(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
	switch len(args) {
	case 0:
		methods := []string{http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete}
		return withPrefix(methods, prefix), cobra.ShellCompDirectiveNoFileComp
	case 1:
		urls, _ := a.ask(func(ctx context.Context, prefix string) []string {
			names := a.completeServices(ctx, prefix)
			for i := range names {
				names[i] = "http://" + names[i] + "/"
			}
			return names
		})(cmd, args, prefix)
		return urls, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
	}
	return nil, cobra.ShellCompDirectiveNoFileComp
}
