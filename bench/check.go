package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"
)

// check waits until the system does its job, and for a pair that its inner door
// does not serve those who have no certificate.
func (s *system) check(ctx context.Context, j job) error {
	last := s.proxies[len(s.proxies)-1]
	if err := last.eventually(ctx, func() error { return j.answers(ctx, s.address) }); err != nil {
		return err
	}
	if s.mtls == "" {
		return nil
	}
	if err := refuses(s.mtls, nil); err != nil {
		return fmt.Errorf("a plain connection: %w", err)
	}
	// The server is not verified here: who it is does not matter, what it does with
	// a stranger does.
	if err := refuses(s.mtls, &tls.Config{InsecureSkipVerify: true}); err != nil {
		return fmt.Errorf("a connection without a client certificate: %w", err)
	}
	return nil
}

// answers asks once and expects the backend's answer, whole.
func answers(ctx context.Context, address string) error {
	return answersWith(ctx, &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}, address)
}

func answersWith(ctx context.Context, client *http.Client, address string) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+path, nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(io.LimitReader(resp.Body, 4096))
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK || string(got) != body {
		return fmt.Errorf("%s answers %s %q, want 200 and the backend's 100 bytes", address, resp.Status, got)
	}
	return nil
}

// answersBytes asks once and expects so many bytes.
func answersBytes(ctx context.Context, address string, size int64) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+path, nil)
	if err != nil {
		return err
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	n, err := io.Copy(io.Discard, resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK || n != size {
		return fmt.Errorf("%s answers %s with %d bytes, want 200 and %d", address, resp.Status, n, size)
	}
	return nil
}

// refuses asks a mutual-TLS door without a certificate: plain, or over TLS when
// there is a config. Only an answer that is a success counts against it.
func refuses(address string, config *tls.Config) error {
	conn, err := net.DialTimeout("tcp", address, 2*time.Second)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return err
	}
	if config != nil {
		conn = tls.Client(conn, config)
	}
	// In TLS 1.3 the client has finished before the server has looked for its
	// certificate, so a refusal may be seen by the write or only by the read.
	if _, err := fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: bench\r\n\r\n", path); err != nil {
		return nil
	}
	got, _ := io.ReadAll(io.LimitReader(conn, 4096)) // ends with an error when refused, and that is right
	if strings.HasPrefix(string(got), "HTTP/1.1 200") {
		return fmt.Errorf("%s served it", address)
	}
	return nil
}
