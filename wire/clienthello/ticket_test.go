package clienthello

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"math/big"
	"net"
	"testing"
	"time"
)

// resumable returns a client's session cache with a ticket of a server that calls
// itself shop.example: its next hello has a pre-shared key.
func resumable(t *testing.T) tls.ClientSessionCache {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"shop.example"}, NotAfter: time.Now().Add(time.Hour)}
	certificate, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	server := &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{certificate}, PrivateKey: key}}}
	cache := tls.NewLRUClientSessionCache(1)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	near, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer near.Close()
	_ = near.SetDeadline(time.Now().Add(5 * time.Second))
	done := make(chan error)
	go func() {
		far, err := listener.Accept()
		if err == nil {
			_, err = tls.Server(far, server).Write([]byte("x")) // the ticket goes before it
			_ = far.Close()
		}
		done <- err
	}()
	conn := tls.Client(near, &tls.Config{ServerName: "shop.example", InsecureSkipVerify: true, ClientSessionCache: cache})
	_, err = conn.Read(make([]byte, 1))
	if serverErr := <-done; err != nil || serverErr != nil {
		t.Fatal(err, serverErr)
	}
	if session, ok := cache.Get("shop.example"); !ok || session == nil {
		t.Fatal("no ticket")
	}
	return cache
}
