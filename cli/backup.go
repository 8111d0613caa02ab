package cli

import (
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/node"
)

func (a *app) backup() *cobra.Command {
	dir := node.DefaultServer.DataDir
	cmd := &cobra.Command{
		Use:   "backup FILE",
		Short: "Save a server's state and secrets to a file",
		Long: `Save the state of a running server, and the secrets of its data directory, to a
file: resources, catalogue, keys, the certificate authority with its sealed keys, the
key that unseals them, and the tokens. Who has the file has the mesh.

It is asked of one server, and is of the whole cluster. It has to be run where the
server's data directory can be read. Traces are not in it.`,
		Example: `  weft backup --data /var/lib/weft weft-2026-11-21.backup
  weft restore --data /var/lib/weft-new weft-2026-11-21.backup`,
		Args: wantArgs(1, 1, "a FILE"),
	}
	cmd.Flags().StringVar(&dir, "data", dir, "data `directory` of the server")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		token, err := os.ReadFile(node.TokenFile(dir))
		if err != nil {
			return &weft.Error{Kind: weft.Invalid, Op: "back up", Thing: "server of " + dir, Err: fmt.Errorf("%w; set --data to its data directory", err)}
		}
		size, err := writeWhole(args[0], func(w io.Writer) error {
			return node.WriteBackup(w, dir, func(w io.Writer) error {
				return a.client().Backup(cmd.Context(), strings.TrimSpace(string(token)), w)
			})
		})
		if err != nil {
			return err
		}
		fmt.Fprintf(a.out, "%s: %d bytes\n", args[0], size)
		return nil
	}
	return cmd
}

// writeWhole writes a new file, which is there when it is whole.
func writeWhole(path string, write func(io.Writer) error) (size int64, err error) {
	fail := func(err error) error {
		return &weft.Error{Kind: weft.Invalid, Op: "write", Thing: path, Err: err}
	}
	if _, err := os.Lstat(path); err == nil {
		return 0, fail(os.ErrExist)
	}
	part := path + ".part"
	f, err := os.OpenFile(part, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return 0, fail(err)
	}
	defer func() {
		if err != nil {
			_ = f.Close()
			_ = os.Remove(part)
		}
	}()
	if err := write(f); err != nil {
		return 0, err
	}
	if size, err = f.Seek(0, io.SeekCurrent); err != nil {
		return 0, fail(err)
	}
	if err := f.Sync(); err != nil {
		return 0, fail(err)
	}
	if err := f.Close(); err != nil {
		return 0, fail(err)
	}
	return size, os.Rename(part, path)
}

func (a *app) restore() *cobra.Command {
	dir := node.DefaultServer.DataDir
	cmd := &cobra.Command{
		Use:   "restore FILE",
		Short: "Make a data directory out of a backup",
		Long: `Make a data directory out of a backup, for a server that is then started on it. The
server begins alone; others join it with new data directories.`,
		Example: `  weft restore --data /var/lib/weft weft-2026-11-21.backup
  weft server --data /var/lib/weft`,
		Args: wantArgs(1, 1, "a FILE"),
	}
	cmd.Flags().StringVar(&dir, "data", dir, "`directory` to make; it must be empty or not exist")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		f, err := os.Open(args[0])
		if err != nil {
			return &weft.Error{Kind: weft.Invalid, Op: "restore", Thing: args[0], Err: err}
		}
		defer f.Close()
		if err := node.Restore(cmd.Context(), dir, f); err != nil {
			return err
		}
		fmt.Fprintf(a.out, "%s: restored; start it with weft server --data %s\n", dir, dir)
		return nil
	}
	return cmd
}
