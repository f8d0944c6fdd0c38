// Package metrics is the module "nowconnect.metrics". It owns no figure: it
// puts the hub's collector into each configuration's registry.
//
// Invariants:
//
//   - Figures belong to the process and survive reloads; a registry belongs to
//     one configuration and gets its own collector over the same figures.
//   - Nothing is registered twice in one registry.
package metrics

import (
	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/nowconnect/nowconnect/internal/hub"
	"github.com/nowconnect/nowconnect/internal/obs"
	"github.com/nowconnect/nowconnect/modules/nowconnect"
)

func init() {
	caddy.RegisterModule(&Metrics{})
}

// Metrics makes the hub's figures part of Caddy's own metrics. Scrape
// them with Caddy's `metrics` handler; the admin endpoint's `/metrics` shows
// the registry of a configuration that failed to load until the next good one.
type Metrics struct {
	// NativeHistograms adds native (sparse) buckets to every histogram; the
	// classic buckets stay. A scraper has to ask for the protobuf format to
	// see them. It takes effect when Caddy starts, not on a reload. Default:
	// false.
	NativeHistograms bool `json:"native_histograms,omitempty"`
}

// CaddyModule returns the Caddy module information.
func (*Metrics) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "nowconnect.metrics",
		New: func() caddy.Module { return new(Metrics) },
	}
}

// Options implements nowconnect.MetricsExporter.
func (m *Metrics) Options() obs.Options {
	return obs.Options{NativeHistograms: m.NativeHistograms}
}

// Export implements nowconnect.MetricsExporter.
func (m *Metrics) Export(reg *prometheus.Registry, h *hub.Hub) error {
	return reg.Register(h.Metrics().Collector(h))
}

// UnmarshalCaddyfile sets up the module from Caddyfile tokens. Syntax:
//
//	metrics {
//		native_histograms
//	}
func (m *Metrics) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // consume the option's name
	if d.NextArg() {
		return d.Err("metrics takes a block and no arguments")
	}
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		if d.Val() != "native_histograms" {
			return d.Errf("unrecognized option %q of metrics", d.Val())
		}
		if m.NativeHistograms {
			return d.Err("native_histograms twice")
		}
		if d.NextArg() {
			return d.Err("native_histograms takes no value")
		}
		if d.NextBlock(nesting + 1) {
			return d.Err("native_histograms takes no block")
		}
		m.NativeHistograms = true
	}
	return nil
}

// Interface guards
var (
	_ caddyfile.Unmarshaler      = (*Metrics)(nil)
	_ nowconnect.MetricsExporter = (*Metrics)(nil)
)
