package cli

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	"github.com/weftmesh/weft"
)

func (a *app) version() *cobra.Command {
	cmd := &cobra.Command{
		Use:               "version",
		Short:             "Print the version of this binary",
		Long:              "Print the version of this binary and what it was built from.\nThe server's own version is in \"weft status\".",
		Example:           "  weft version\n  weft version -o json",
		Args:              wantArgs(0, 0, "no arguments"),
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	out := formatFlag(cmd, "json")
	cmd.RunE = func(*cobra.Command, []string) error {
		b := thisBuild()
		if out.value == "json" {
			return printJSON(a.out, b)
		}
		fmt.Fprintf(a.out, "weft %s\n%s %s\n", b.Version, b.Go, b.Platform)
		if b.Commit != "" {
			fmt.Fprintf(a.out, "commit %s\n", b.Commit)
		}
		return nil
	}
	return cmd
}

// build says what this binary was made from.
type build struct {
	Version  string `json:"version"`
	Go       string `json:"go"`
	Platform string `json:"platform"`
	Commit   string `json:"commit,omitempty"` // with "+changes" when the tree was not clean
}

func thisBuild() build {
	b := build{Version: weft.Version, Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return b
	}
	changed := false
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			b.Commit = s.Value
		case "vcs.modified":
			changed = s.Value == "true"
		}
	}
	if changed {
		b.Commit += "+changes"
	}
	return b
}
