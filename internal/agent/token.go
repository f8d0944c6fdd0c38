package agent

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"sync"

	"go.uber.org/zap"
)

// maxToken bounds a token in bytes: far above any JWT, far below what an HTTP
// server takes as a header.
const maxToken = 16 << 10

// tokenSource reads the agent's secret. It keeps no copy: the file is the
// secret's only home, and a rotated one is used at the next connect.
type tokenSource struct {
	path string
	log  *zap.Logger
	open sync.Once // guards the one warning about the file's mode
}

// read returns the token. Its errors name the file and never the content.
func (t *tokenSource) read() (string, error) {
	f, err := os.Open(t.path)
	if err != nil {
		return "", fmt.Errorf("token file: %w", err)
	}
	defer f.Close()
	t.warnIfOpen(f)
	b, err := io.ReadAll(io.LimitReader(f, maxToken+1))
	if err != nil {
		return "", fmt.Errorf("token file: %w", err)
	}
	if len(b) > maxToken {
		return "", fmt.Errorf("token file %s has more than %d bytes", t.path, maxToken)
	}
	token := strings.TrimSpace(strings.TrimPrefix(string(b), "\ufeff"))
	if token == "" {
		return "", fmt.Errorf("token file %s is empty", t.path)
	}
	// What else were in it would end or split the header.
	if strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return "", fmt.Errorf("token file %s holds more than one word, or characters that no token has", t.path)
	}
	return token, nil
}

// warnIfOpen speaks up once when any user of the machine can read the secret.
func (t *tokenSource) warnIfOpen(f *os.File) {
	info, err := f.Stat()
	if err != nil || !openToAll(info) {
		return
	}
	t.open.Do(func() {
		t.log.Warn("every user of this machine can read the token; chmod 600 the file",
			zap.String("token_file", t.path), zap.String("mode", info.Mode().Perm().String()))
	})
}

// openToAll reports whether any user can read a file. Windows has no such bits:
// Go reports them always set.
func openToAll(info os.FileInfo) bool {
	return runtime.GOOS != "windows" && info.Mode().Perm()&0o004 != 0
}

// CheckCredential reports why the token file or the client certificate cannot
// be used now. It is no part of New: a secret may be mounted later than the
// agent starts.
func (c *Config) CheckCredential() error {
	var err error
	if c.TokenFile != "" {
		_, err = (&tokenSource{path: c.TokenFile, log: zap.NewNop()}).read()
	}
	_, certErr := readCert(c.ClientCert, c.ClientKey)
	return errors.Join(err, certErr)
}
