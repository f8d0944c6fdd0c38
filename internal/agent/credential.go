package agent

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"time"
)

// A credential is what an attempt reads from files before a packet leaves.
type credential struct {
	token string           // empty without a token file
	cert  *tls.Certificate // nil without a client certificate
	roots *x509.CertPool   // nil: the system's
}

// digest tells secrets apart without keeping them.
type digest [sha256.Size]byte

// digestOf returns zero for nothing.
func digestOf(secret string) digest {
	if secret == "" {
		return digest{}
	}
	return sha256.Sum256([]byte(secret))
}

// digest tells client certificates apart; zero without one.
func (c *credential) digest() digest {
	if c.cert == nil {
		return digest{}
	}
	return sha256.Sum256(c.cert.Certificate[0])
}

func (d *dialer) credential() (c credential, err error) {
	if d.cfg.TokenFile != "" {
		if c.token, err = d.token.read(); err != nil {
			return c, &ConnectError{Stage: stageToken, Err: err}
		}
	}
	if c.cert, err = readCert(d.cfg.ClientCert, d.cfg.ClientKey); err != nil {
		return c, &ConnectError{Stage: stageCert, Err: err}
	}
	if c.roots, err = readRoots(d.cfg.CABundle); err != nil {
		return c, &ConnectError{Stage: stageCA, Err: err}
	}
	return c, nil
}

// readCert returns nil for an empty path. Its errors hold nothing of the key.
func readCert(certFile, keyFile string) (*tls.Certificate, error) {
	if certFile == "" {
		return nil, nil
	}
	pair, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		return nil, fmt.Errorf("client certificate %s with key %s: %w", certFile, keyFile, err)
	}
	return &pair, nil
}

// expiry turns the hub's duration into a moment of our monotonic clock.
func expiry(from time.Time, ms int64) time.Time {
	if ms <= 0 || ms > maxExpiry {
		return time.Time{}
	}
	return from.Add(time.Duration(ms) * time.Millisecond)
}

// maxExpiry is what a time.Duration holds, in milliseconds: 292 years.
const maxExpiry = int64(1<<63-1) / int64(time.Millisecond)

// refusedByTLS reports whether the peer sent a TLS alert: with TLS 1.3 a client
// certificate is judged after our side of the handshake is done.
func refusedByTLS(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "remote error"
}

var errCertRefused = errors.New("the hub does not accept this agent's client certificate")
