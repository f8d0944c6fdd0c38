package main

import (
	"bytes"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// write puts a file into the test's directory and returns its path.
func write(t *testing.T, name, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestExitCodesAndWords(t *testing.T) {
	token := write(t, "token", "s3cret\n")
	good := []string{"-url", "https://hub.example.com", "-agent-id", "premise-1", "-token-file", token, "-target", "echo=dc1:389"}
	with := func(more ...string) []string { return append(append([]string(nil), good...), more...) }
	absent := filepath.Join(t.TempDir(), "absent")
	tests := []struct {
		name           string
		args, env      []string
		code           int
		stdout, stderr string
	}{
		{"valid", with("-check"), nil, exitOK, "configuration is valid\n", ""},
		{"a secret that is not there yet is no fault", append(with("-check")[:4:4], "-token-file", absent, "-target", "echo=dc1:389", "-check"), nil,
			exitOK, "configuration is valid\n", "warning: token file: open " + absent + ": no such file or directory\n"},
		{"warnings", with("-check"), []string{"NC_TYPO=1"}, exitOK, "configuration is valid\n", "warning: NC_TYPO: unknown variable, ignored\n"},
		{"two faults, two lines", with("-check", "-links", "0", "-carrier", "x"), nil, exitConfig, "",
			"nowconnect-agent: -links: \"0\" is not a whole number from 1 to 16, and not auto\n-carrier: \"x\" is not one of auto, native, websocket\n"},
		{"no such file", []string{"-config", absent}, nil, exitConfig, "",
			"nowconnect-agent: configuration file: open " + absent + ": no such file or directory\n"},
		{"a word too many", with("start"), nil, exitConfig, "", "nowconnect-agent: unexpected argument \"start\"; everything is said by flags\n"},
		{"CA bundle", with("-check"), []string{"NC_CA_BUNDLE=" + token}, exitConfig, "",
			"nowconnect-agent: CA bundle " + token + " holds no certificate in PEM form\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			code := run(tt.args, tt.env, &stdout, &stderr, nil)
			if code != tt.code || stdout.String() != tt.stdout || stderr.String() != tt.stderr {
				t.Errorf("code %d\nstdout %q\nstderr %q", code, stdout.String(), stderr.String())
			}
		})
	}
}

func TestUnknownFlagAndHelp(t *testing.T) {
	for arg, want := range map[string]int{"-token=s3cret": exitConfig, "-help": exitOK} {
		var stdout, stderr bytes.Buffer
		if code := run([]string{arg}, nil, &stdout, &stderr, nil); code != want {
			t.Errorf("%s: code %d", arg, code)
		}
		if !strings.Contains(stderr.String(), "-token-file") || strings.Contains(stderr.String(), "s3cret") {
			t.Errorf("%s: %s", arg, stderr.String())
		}
	}
}

func TestVersion(t *testing.T) {
	var stdout bytes.Buffer
	if code := run([]string{"-version"}, nil, &stdout, nil, nil); code != exitOK || !strings.HasPrefix(stdout.String(), "nowconnect-agent/") {
		t.Errorf("code %d, %q", code, stdout.String())
	}
}

// TestSignalStops runs an agent whose hub does not exist, and asks it to leave.
func TestSignalStops(t *testing.T) {
	signals := make(chan os.Signal, 1)
	var stderr lockedBuffer
	code := make(chan int, 1)
	args := []string{"-url", "http://127.0.0.1:1", "-agent-id", "premise-1", "-token-file", write(t, "token", "s3cret"), "-target", "echo=dc1:389"}
	go func() { code <- run(args, []string{"NC_HEALTH_PORT=0"}, nil, &stderr, signals) }()
	for end := time.Now().Add(10 * time.Second); !strings.Contains(stderr.String(), "link cannot be made"); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("log:\n%s", stderr.String())
		}
	}
	signals <- syscall.SIGTERM
	select {
	case got := <-code:
		if got != exitOK {
			t.Errorf("code %d", got)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("it does not stop")
	}
	for line := range strings.Lines(stderr.String()) {
		var m map[string]any
		if err := json.Unmarshal([]byte(line), &m); err != nil || m["level"] == nil || m["ts"] == nil || m["msg"] == nil {
			t.Errorf("not a JSON log line: %s", line)
		}
	}
	if s := stderr.String(); !strings.Contains(s, "agent stopped") || strings.Contains(s, "s3cret") {
		t.Errorf("log:\n%s", s)
	}
}

func TestTakenHealthPort(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	host, port, _ := net.SplitHostPort(ln.Addr().String())
	args := []string{"-url", "http://127.0.0.1:1", "-agent-id", "a", "-token-file", write(t, "token", "x"), "-target", "echo=dc1:389", "-log-format", "console"}
	var stderr lockedBuffer
	if code := run(args, []string{"NC_HEALTH_HOST=" + host, "NC_HEALTH_PORT=" + port}, nil, &stderr, nil); code != exitFailed {
		t.Errorf("code %d", code)
	}
	if s := stderr.String(); !strings.Contains(s, "ERROR\tagent cannot run\t") {
		t.Errorf("log:\n%s", s)
	}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
