package scale

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nowconnect/nowconnect/bench/pki"
)

// accept is what Prometheus asks for by default.
const accept = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4," +
	"text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,text/plain;version=0.0.4;q=0.2,*/*;q=0.1"

// scraper keeps its connection, as Prometheus does, and gives the body as it came.
func (w *world) scraper() (*http.Client, error) {
	t, err := pki.In(w.site.Dir).Client()
	if err != nil {
		return nil, err
	}
	t = t.Clone()
	t.NextProtos = nil
	return &http.Client{Timeout: limit, Transport: &http.Transport{
		TLSClientConfig: t, DisableCompression: true,
		TLSNextProto: map[string]func(string, *tls.Conn) http.RoundTripper{}, // HTTP/1.1
	}}, nil
}

func get(ctx context.Context, c *http.Client, url, encoding string) (io.ReadCloser, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", accept)
	if encoding != "" {
		req.Header.Set("Accept-Encoding", encoding)
	}
	resp, err := c.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		resp.Body.Close()
		return nil, fmt.Errorf("%s: %s", url, resp.Status)
	}
	return resp.Body, nil
}

// figure returns the sum of a metric's series at addr, the hub or an agent.
func (w *world) figure(ctx context.Context, addr, name string) (sum float64, err error) {
	c, scheme := http.DefaultClient, "http://"
	if addr == w.web {
		if c, err = w.scraper(); err != nil {
			return 0, err
		}
		defer c.CloseIdleConnections()
		scheme = "https://"
	}
	body, err := get(ctx, c, scheme+addr+"/metrics", "")
	if err != nil {
		return 0, err
	}
	defer body.Close()
	found := false
	sc := bufio.NewScanner(body)
	for sc.Scan() {
		rest, ok := strings.CutPrefix(sc.Text(), name)
		if !ok || rest == "" || rest[0] != ' ' && rest[0] != '{' {
			continue
		}
		v, err := strconv.ParseFloat(rest[strings.LastIndexByte(rest, ' ')+1:], 64)
		if err != nil {
			return 0, fmt.Errorf("%s: %w", addr, err)
		}
		sum, found = sum+v, true
	}
	if !found {
		err = fmt.Errorf("%s has no %s", addr, name)
	}
	return sum, cmp.Or(sc.Err(), err)
}

// How often what takes milliseconds is done, whose median is the figure, and how
// long what it left behind has to be cleared away. After a reload the hub judges
// all live sessions again.
const (
	rounds      = 11
	scrapePause = 200 * time.Millisecond
	reloadPause = time.Second
)

func (w *world) scrapes(ctx context.Context) error {
	c, err := w.scraper()
	if err != nil {
		return err
	}
	defer c.CloseIdleConnections()
	for _, what := range []struct{ path, encoding, ms, size string }{
		{"/metrics", "gzip", ScrapeMS, ScrapeWireKB},
		{"/metrics", "", ScrapePlainMS, ScrapeMB},
		{"/caddy", "gzip", CaddyScrapeMS, ""},
	} {
		var size int64
		ms, _, err := times(rounds, scrapePause, func(int) error {
			body, err := get(ctx, c, "https://"+w.web+what.path, what.encoding)
			if err != nil {
				return err
			}
			defer body.Close()
			size, err = io.Copy(io.Discard, body)
			return err
		})
		if err != nil {
			return err
		}
		w.figures[what.ms] = ms
		switch what.size {
		case ScrapeMB:
			w.figures[ScrapeMB] = float64(size) / 1e6
		case ScrapeWireKB:
			w.figures[ScrapeWireKB] = float64(size) / 1e3
		}
	}
	return nil
}

// times runs f n times after once for nothing, and returns the median and the
// longest, in milliseconds.
func times(n int, pause time.Duration, f func(i int) error) (median, worst float64, err error) {
	took := make([]time.Duration, 0, n)
	for i := range n + 1 {
		began := time.Now()
		if err := f(i); err != nil {
			return 0, 0, err
		}
		if i > 0 {
			took = append(took, time.Since(began))
		}
		time.Sleep(pause)
	}
	slices.Sort(took)
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1e3 }
	return ms(took[n/2]), ms(took[n-1]), nil
}

func (w *world) reloads(ctx context.Context) error {
	var files, jsons [2][]byte
	for i, path := range w.conf {
		var err error
		if files[i], err = os.ReadFile(path); err != nil {
			return err
		}
		if jsons[i], err = w.adapt(ctx, path); err != nil {
			return err
		}
	}
	var err error
	// The configuration that the hub began with is not the first to be loaded.
	if w.figures[ReloadMS], w.figures[ReloadWorstMS], err = times(rounds, reloadPause, func(i int) error {
		return post(ctx, w.admin(), "application/json", jsons[(i+1)%2])
	}); err != nil {
		return err
	}
	w.figures[ReloadFileMS], _, err = times(rounds, reloadPause, func(i int) error {
		return post(ctx, w.admin(), "text/caddyfile", files[i%2])
	})
	return err
}

func (w *world) adapt(ctx context.Context, path string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, w.site.Hub, "adapt", "--config", path, "--adapter", "caddyfile")
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("adapt %s: %w", path, err)
	}
	return out, nil
}

// post loads a configuration, and is done when Caddy says that it is in force.
func post(ctx context.Context, socket, kind string, config []byte) error {
	c := http.Client{Timeout: limit, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://admin/load", bytes.NewReader(config))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", kind)
	resp, err := c.Do(req)
	if err != nil {
		return fmt.Errorf("reload: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		b, _ := io.ReadAll(resp.Body) // it only explains
		return fmt.Errorf("reload: %s: %s", resp.Status, b)
	}
	return nil
}

// caddyAlone measures the reload of as many listeners that are none of ours.
func (w *world) caddyAlone(ctx context.Context) error {
	var jsons [2][]byte
	var first string
	for i, level := range []string{"WARN", "ERROR"} {
		path, err := w.write("echo-"+level+".Caddyfile", w.echoConfig(level))
		if err != nil {
			return err
		}
		if jsons[i], err = w.adapt(ctx, path); err != nil {
			return err
		}
		first = cmp.Or(first, path)
	}
	p, err := w.process("echo", w.site.Hub, "run", "--config", first, "--adapter", "caddyfile")
	if err != nil {
		return err
	}
	defer p.Stop()
	if err := await(ctx, 20*time.Second, func() error {
		c, err := net.Dial("unix", w.echoAdmin())
		if err == nil {
			c.Close()
		}
		return err
	}); err != nil {
		return err
	}
	time.Sleep(settle)
	w.figures[ReloadCaddyMS], _, err = times(rounds, reloadPause, func(i int) error {
		return post(ctx, w.echoAdmin(), "application/json", jsons[(i+1)%2])
	})
	return err
}
