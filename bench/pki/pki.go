// Package pki owns the throw-away certificates of one benchmark run: one
// authority, one server and one client certificate, all ECDSA P-256, valid for
// a day. Nothing outside the run's directory ever trusts them.
package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// Files are the paths of one run's PEM files.
type Files struct {
	CA, ServerCert, ServerKey, ClientCert, ClientKey string
}

// In returns the paths below dir.
func In(dir string) Files {
	p := func(name string) string { return filepath.Join(dir, name) }
	return Files{p("ca.pem"), p("server.pem"), p("server.key"), p("client.pem"), p("client.key")}
}

// Create writes a fresh set of certificates into dir, valid for the given addresses.
func Create(dir string, ips []net.IP) (Files, error) {
	f := In(dir)
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return f, fmt.Errorf("create certificates: %w", err)
	}
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ncbench CA"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, ca, ca, caKey.Public(), caKey)
	if err != nil {
		return f, fmt.Errorf("create certificates: %w", err)
	}
	if err := writePEM(f.CA, "CERTIFICATE", der); err != nil {
		return f, err
	}
	leaf := func(serial int64, name string, use x509.ExtKeyUsage, cert, key string) error {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return fmt.Errorf("create certificates: %w", err)
		}
		der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
			SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: name},
			NotBefore: ca.NotBefore, NotAfter: ca.NotAfter, KeyUsage: x509.KeyUsageDigitalSignature,
			ExtKeyUsage: []x509.ExtKeyUsage{use}, IPAddresses: ips, DNSNames: []string{"localhost"},
		}, ca, k.Public(), caKey)
		if err != nil {
			return fmt.Errorf("create certificates: %w", err)
		}
		kder, err := x509.MarshalPKCS8PrivateKey(k)
		if err != nil {
			return fmt.Errorf("create certificates: %w", err)
		}
		if err := writePEM(cert, "CERTIFICATE", der); err != nil {
			return err
		}
		return writePEM(key, "PRIVATE KEY", kder)
	}
	if err := leaf(2, "ncbench hub", x509.ExtKeyUsageServerAuth, f.ServerCert, f.ServerKey); err != nil {
		return f, err
	}
	return f, leaf(3, "ncbench agent", x509.ExtKeyUsageClientAuth, f.ClientCert, f.ClientKey)
}

// ServerMutual is TLS 1.3 that demands a client certificate of the run's authority.
func (f Files) ServerMutual() (*tls.Config, error) {
	cert, pool, err := f.load(f.ServerCert, f.ServerKey)
	if err != nil {
		return nil, err
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert},
		ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool,
	}, nil
}

// ClientMutual is its counterpart.
func (f Files) ClientMutual() (*tls.Config, error) {
	cert, pool, err := f.load(f.ClientCert, f.ClientKey)
	if err != nil {
		return nil, err
	}
	return &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}, RootCAs: pool}, nil
}

// Client is TLS 1.3 that trusts the run's authority and shows no certificate.
func (f Files) Client() (*tls.Config, error) {
	pem, err := os.ReadFile(f.CA)
	if err != nil {
		return nil, fmt.Errorf("load certificates: %w", err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	return &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: pool, NextProtos: []string{"http/1.1"}}, nil
}

func (f Files) load(certFile, keyFile string) (tls.Certificate, *x509.CertPool, error) {
	cert, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		return cert, nil, fmt.Errorf("load certificates: %w", err)
	}
	pem, err := os.ReadFile(f.CA)
	if err != nil {
		return cert, nil, fmt.Errorf("load certificates: %w", err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	return cert, pool, nil
}

func writePEM(path, kind string, der []byte) error {
	b := pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
	if err := os.WriteFile(path, b, 0o600); err != nil {
		return fmt.Errorf("create certificates: %w", err)
	}
	return nil
}
