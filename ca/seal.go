package ca

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/weftmesh/weft"
)

const (
	sealKeySize = 32     // AES-256
	rootRecord  = "root" // its name in the storage
)

// LoadOrCreateSealKey reads the seal key from a file of mode 0600, or creates the
// file with a new key. The file holds the key as one line of hex, so that it can
// be copied to a safe place; without it the stored root cannot be used.
func LoadOrCreateSealKey(path string) ([]byte, error) {
	key, err := readSealKey(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return key, err
	}
	key = make([]byte, sealKeySize)
	rand.Read(key)
	err = createSealKey(path, key)
	if errors.Is(err, fs.ErrExist) {
		return readSealKey(path) // another process was first
	}
	if err != nil {
		return nil, &weft.Error{Op: "create seal key", Thing: path, Err: err}
	}
	return key, nil
}

func readSealKey(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, &weft.Error{Op: "read seal key", Thing: path, Err: err}
	}
	if open := info.Mode().Perm() & 0o077; open != 0 {
		return nil, weft.Errorf(weft.Denied, "read seal key", path, "its mode %04o lets others read it; chmod 600 it", info.Mode().Perm())
	}
	if info.Size() > 1024 {
		return nil, weft.Errorf(weft.Invalid, "read seal key", path, "want 64 hex digits, it has %d bytes", info.Size())
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, &weft.Error{Op: "read seal key", Thing: path, Err: err}
	}
	key, err := hex.DecodeString(strings.TrimSpace(string(text)))
	if err != nil || len(key) != sealKeySize {
		return nil, weft.Errorf(weft.Invalid, "read seal key", path, "want 64 hex digits")
	}
	return key, nil
}

// createSealKey writes beside the path and links into place, so that a crash
// leaves no half-written key and a second creator fails with fs.ErrExist.
func createSealKey(path string, key []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".seal-*") // CreateTemp makes mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.WriteString(hex.EncodeToString(key) + "\n")
	if err == nil {
		err = f.Sync()
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return err
	}
	if err := os.Link(f.Name(), path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

// sealer encrypts the root's private key.
type sealer struct {
	aead cipher.AEAD
	file string
}

func newSealer(key []byte, file string) (*sealer, error) {
	if file == "" {
		file = "seal.key"
	}
	if len(key) != sealKeySize {
		return nil, weft.Errorf(weft.Invalid, "open CA", file, "the seal key has %d bytes, want %d", len(key), sealKeySize)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, &weft.Error{Op: "open CA", Thing: file, Err: err}
	}
	aead, err := cipher.NewGCMWithRandomNonce(block) // the nonce goes in front
	if err != nil {
		return nil, &weft.Error{Op: "open CA", Thing: file, Err: err}
	}
	return &sealer{aead: aead, file: file}, nil
}

// storedRoot is the record in the storage. The certificate is authenticated
// together with the key, so that neither can be exchanged alone.
type storedRoot struct {
	Certificate []byte `json:"certificate"` // DER
	SealedKey   []byte `json:"sealedKey"`   // nonce, then PKCS #8 under AES-256-GCM
}

func (s *sealer) seal(root *x509.Certificate, key *ecdsa.PrivateKey) ([]byte, error) {
	plain, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, &weft.Error{Op: "seal root key", Err: err}
	}
	return json.Marshal(storedRoot{Certificate: root.Raw, SealedKey: s.aead.Seal(nil, nil, plain, root.Raw)})
}

func (s *sealer) open(record []byte) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	var stored storedRoot
	if err := json.Unmarshal(record, &stored); err != nil {
		return nil, nil, &weft.Error{Op: "open CA", Thing: "stored root", Err: err}
	}
	root, err := x509.ParseCertificate(stored.Certificate)
	if err != nil {
		return nil, nil, &weft.Error{Op: "open CA", Thing: "stored root", Err: err}
	}
	plain, err := s.aead.Open(nil, nil, stored.SealedKey, stored.Certificate)
	if err != nil {
		return nil, nil, weft.Errorf(weft.Denied, "open CA", "stored root",
			"its key was sealed with another key than %s holds; put back the file that belongs to this data directory", s.file)
	}
	key, err := x509.ParsePKCS8PrivateKey(plain)
	if err != nil {
		return nil, nil, &weft.Error{Op: "open CA", Thing: "stored root", Err: err}
	}
	signer, ok := key.(*ecdsa.PrivateKey)
	if !ok || !signer.PublicKey.Equal(root.PublicKey) || len(root.URIs) != 1 {
		return nil, nil, weft.Errorf(weft.Internal, "open CA", "stored root", "key and certificate do not belong together")
	}
	return root, signer, nil
}

// loadOrCreateRoot retries once: a root that another process created between our
// Load and our Create is the root.
func loadOrCreateRoot(ctx context.Context, s Storage, seal *sealer, td spiffeid.TrustDomain, now time.Time) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	record, found, err := s.Load(ctx, rootRecord)
	if err != nil {
		return nil, nil, &weft.Error{Kind: weft.KindOf(err), Op: "open CA", Thing: "stored root", Err: err}
	}
	if found {
		return seal.open(record)
	}
	root, key, err := newRoot(td, now)
	if err != nil {
		return nil, nil, err
	}
	record, err = seal.seal(root, key)
	if err != nil {
		return nil, nil, err
	}
	err = s.Create(ctx, rootRecord, record)
	if err == nil {
		return root, key, nil
	}
	if weft.KindOf(err) != weft.Conflict {
		return nil, nil, &weft.Error{Kind: weft.KindOf(err), Op: "create root", Thing: td.Name(), Err: err}
	}
	record, found, err = s.Load(ctx, rootRecord)
	if err != nil || !found {
		return nil, nil, &weft.Error{Kind: weft.KindOf(err), Op: "open CA", Thing: "stored root", Err: errors.Join(err, errors.New("it was created by another process, but cannot be read"))}
	}
	return seal.open(record)
}
