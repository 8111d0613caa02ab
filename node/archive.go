package node

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/node/cluster"
	"github.com/weftmesh/weft/store"
)

// A backup is a tar archive of the state, with its checksum in it, and of the secrets
// without which the state is of no use: the key that seals those of the certificate
// authority, and the tokens by which proxies and servers join.
const stateEntry = "state.snapshot"

// secretFiles of a data directory, by their names in it.
func secretFiles(dataDir string) map[string]string {
	return map[string]string{
		"seal.key":     filepath.Join(dataDir, "seal.key"),
		"join-token":   TokenFile(dataDir),
		"server-token": cluster.TokenFile(dataDir), // of servers that have others
	}
}

// maxSecret bounds what is read of a secret, in bytes.
const maxSecret = 64 << 10

// WriteBackup writes a backup of the server with this data directory to w. state
// writes the server's state.
func WriteBackup(w io.Writer, dataDir string, state func(io.Writer) error) error {
	whole, err := os.CreateTemp("", "weft-state-*") // tar wants to know the size
	if err != nil {
		return &weft.Error{Kind: weft.Internal, Op: "back up", Thing: dataDir, Err: err}
	}
	defer os.Remove(whole.Name())
	defer whole.Close()
	if err := state(whole); err != nil {
		return err
	}
	size, err := whole.Seek(0, io.SeekCurrent)
	if err == nil {
		_, err = whole.Seek(0, io.SeekStart)
	}
	if err != nil {
		return &weft.Error{Kind: weft.Internal, Op: "back up", Thing: dataDir, Err: err}
	}
	out := tar.NewWriter(w)
	for name, path := range secretFiles(dataDir) {
		b, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) && name == "server-token" {
			continue
		}
		if err != nil {
			return &weft.Error{Kind: weft.Internal, Op: "back up", Thing: dataDir, Err: err}
		}
		if err := out.WriteHeader(&tar.Header{Name: name, Mode: 0o600, Size: int64(len(b))}); err != nil {
			return err
		}
		if _, err := out.Write(b); err != nil {
			return err
		}
	}
	if err := out.WriteHeader(&tar.Header{Name: stateEntry, Mode: 0o600, Size: size}); err != nil {
		return err
	}
	if _, err := io.Copy(out, whole); err != nil {
		return err
	}
	return out.Close()
}

// Restore makes a data directory out of a backup. A directory that has anything in
// it is refused; when anything is wrong with the backup nothing is left there.
func Restore(ctx context.Context, dataDir string, r io.Reader) (err error) {
	if list, err := os.ReadDir(dataDir); err == nil && len(list) > 0 {
		return weft.Errorf(weft.Conflict, "restore", dataDir, "the directory is not empty; choose a new one")
	}
	if err := os.MkdirAll(dataDir, 0o700); err != nil {
		return &weft.Error{Kind: weft.Internal, Op: "restore", Thing: dataDir, Err: err}
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(dataDir))
		}
	}()
	found := map[string]bool{}
	in := tar.NewReader(r)
	for {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return notBackup(dataDir, err)
		}
		if err := restoreEntry(ctx, dataDir, h.Name, in); err != nil {
			return err
		}
		found[h.Name] = true
	}
	for _, name := range []string{stateEntry, "seal.key", "join-token"} {
		if !found[name] {
			return notBackup(dataDir, errors.New("there is no "+name+" in it"))
		}
	}
	return nil
}

func restoreEntry(ctx context.Context, dataDir, name string, r io.Reader) error {
	if name == stateEntry {
		return store.Restore(ctx, filepath.Join(dataDir, "state"), r)
	}
	path, known := secretFiles(dataDir)[name]
	if !known {
		return notBackup(dataDir, errors.New("there is a file "+name+" in it"))
	}
	b, err := io.ReadAll(io.LimitReader(r, maxSecret))
	if err != nil {
		return notBackup(dataDir, err)
	}
	return os.WriteFile(path, b, 0o600)
}

func notBackup(dataDir string, err error) error {
	return &weft.Error{Kind: weft.Invalid, Op: "restore", Thing: dataDir, Err: errors.Join(errors.New("this is no whole backup of weft"), err)}
}
