// Command xcaddybuild builds Caddy with NowConnect from xcaddy.json, through
// xcaddy's own builder, and checks what came out. xcaddy reads no manifest by
// itself; the "build" object of ours has its builder's key names, plus output,
// so nothing is translated on the way.
//
// Invariants:
//
//   - Every version in the manifest is exact: asking a proxy for "the latest"
//     would make yesterday's manifest build something else today.
//   - A build counts as good only when the binary itself lists every module the
//     manifest promises, and no module of ours that it does not.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"

	"github.com/caddyserver/xcaddy"
)

// manifest is xcaddy.json. What is not needed for building describes the
// module to people and catalogues.
type manifest struct {
	Name        string   `json:"name"`
	Version     string   `json:"version"`
	Description string   `json:"description"`
	Author      string   `json:"author"`
	License     string   `json:"license"`
	Keywords    []string `json:"keywords"`
	Caddy       struct {
		GoModule   string   `json:"go_module"`
		ModuleIDs  []string `json:"module_ids"`
		Directives []string `json:"directives"`
	} `json:"caddy"`
	Compatibility struct {
		Caddy string `json:"caddy"`
		Go    string `json:"go"`
	} `json:"compatibility"`
	Build build `json:"build"`
}

type build struct {
	xcaddy.Builder
	Output string `json:"output"`
}

func main() {
	path := flag.String("manifest", "xcaddy.json", "the manifest; paths in it are relative to its directory")
	check := flag.Bool("check", false, "build nothing, only check the binary that is there")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, *path, *check, os.Stdout); err != nil {
		log.Fatalf("xcaddybuild: %v", err)
	}
}

func run(ctx context.Context, path string, checkOnly bool, out io.Writer) error {
	m, err := read(path)
	if err != nil {
		return err
	}
	if !checkOnly {
		if err := m.Build.Builder.Build(ctx, m.Build.Output); err != nil {
			return fmt.Errorf("build %s: %w", m.Build.Output, err)
		}
	}
	listed, err := exec.CommandContext(ctx, m.Build.Output, "list-modules", "--packages").Output()
	if err != nil {
		return fmt.Errorf("%s list-modules: %w", m.Build.Output, err)
	}
	ours, err := m.compare(listed)
	if err != nil {
		return fmt.Errorf("%s: %w", m.Build.Output, err)
	}
	fmt.Fprintf(out, "%s lists %d modules of %s:\n  %s\n", m.Build.Output, len(ours), m.Name, strings.Join(ours, "\n  "))
	return nil
}

// read parses the manifest and makes its paths absolute, since the builder
// works in a directory of its own.
func read(path string) (*manifest, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	var m manifest
	if err := d.Decode(&m); err != nil {
		return nil, fmt.Errorf("parse %s: %w", path, err)
	}
	if err := m.validate(); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	dir, err := filepath.Abs(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	if !filepath.IsAbs(m.Build.Output) {
		m.Build.Output = filepath.Join(dir, m.Build.Output)
	}
	for i, r := range m.Build.Replacements {
		if p := r.New.String(); p == "." || strings.HasPrefix(p, "./") || strings.HasPrefix(p, "../") {
			m.Build.Replacements[i].New = xcaddy.ReplacementPath(filepath.Join(dir, p))
		}
	}
	return &m, nil
}

func (m *manifest) validate() error {
	if m.Build.Output == "" {
		return errors.New("build.output is empty")
	}
	if m.Build.CaddyVersion == "" {
		return errors.New("build.caddy_version is empty")
	}
	if len(m.Caddy.ModuleIDs) == 0 {
		return errors.New("caddy.module_ids is empty")
	}
	for _, p := range m.Build.Plugins {
		if p.Version == "" {
			return fmt.Errorf("build.plugins: %s has no version", p.PackagePath)
		}
	}
	return nil
}

// compare holds the output of list-modules --packages against the manifest and
// returns the IDs of our modules.
func (m *manifest) compare(listed []byte) ([]string, error) {
	var ours []string
	for line := range strings.Lines(string(listed)) {
		f := strings.Fields(line) // ID, module, and "=> directory" where replaced
		if len(f) >= 2 && (f[1] == m.Caddy.GoModule || strings.HasPrefix(f[1], m.Caddy.GoModule+"/")) {
			ours = append(ours, f[0])
		}
	}
	var errs []error
	for _, id := range m.Caddy.ModuleIDs {
		if !slices.Contains(ours, id) {
			errs = append(errs, fmt.Errorf("does not list %s", id))
		}
	}
	for _, id := range ours {
		if !slices.Contains(m.Caddy.ModuleIDs, id) {
			errs = append(errs, fmt.Errorf("lists %s, which the manifest does not name", id))
		}
	}
	return ours, errors.Join(errs...)
}
