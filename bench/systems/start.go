package systems

import (
	"cmp"
	"fmt"
	"path/filepath"
	"strconv"
)

func (p plan) startL1(sys *System) error {
	return p.both(sys,
		[]string{p.Self, "l1-hub", "-dir", p.Dir, "-clients", p.client, "-agents", p.agents},
		[]string{p.Self, "l1-agent", "-dir", p.Dir, "-hub", p.agents, "-target", p.target})
}

// caddyfile is what all systems behind Caddy share; %s are the options for the
// app, the layer-4 route and the HTTP handlers.
const caddyfile = `{
	admin unix/%[1]s
	persist_config off
	auto_https off
	%[2]s
	layer4 {
		%[3]s {
			route {
				%[4]s
			}
		}
	}
}

https://:%[5]s {
	bind %[6]s
	tls %[7]s %[8]s
	%[9]s
}
`

func (p plan) caddyfile(app, route, site string) (string, error) {
	return p.write(".Caddyfile", fmt.Sprintf(caddyfile, filepath.Join("/", p.Dir, p.name+".sock"),
		app, p.client, route, p.agentPort, p.hubIP, p.Files.ServerCert, p.Files.ServerKey, site))
}

// MuxLinks is how many connections yamux and smux have: as many as ours when
// everything is near.
const MuxLinks = 2

func (p plan) startMux(sys *System) error {
	if err := need(p.MuxHub, "build it with `make bench`"); err != nil {
		return err
	}
	conf, err := p.caddyfile("", "ncbench_mux", "ncbench_mux /tunnel "+p.name+" "+token)
	if err != nil {
		return err
	}
	return p.both(sys,
		[]string{p.MuxHub, "run", "--config", conf, "--adapter", "caddyfile"},
		[]string{p.Self, "mux-agent", "-engine", p.name, "-dir", p.Dir, "-hub", p.agents, "-target", p.target,
			"-token", token, "-links", strconv.Itoa(cmp.Or(p.Links, MuxLinks))})
}

// oursApp has every part that a real hub has: agent authentication, policy,
// metrics, and records that leave together. Only the limits are wider than their defaults: at 64 KiB of first
// window each, 256 MiB admit 4096 sessions per agent.
const oursApp = `servers {
		listener_wrappers {
			nowconnect
			tls
		}
	}
	nowconnect {
		agent_auth token {
			agent bench {file.%s}
		}
		connector bench {
			agents bench
		}
		pdp rules {
			allow bench {
				connector bench
				source 127.0.0.0/8 10.0.0.0/8
			}
		}
		max_links_per_agent 16
		agent_memory 2GiB
		congestion_control %s
		metrics
	}`

const oursSite = `nowconnect_agent /tunnel
	nowconnect_health
	metrics /metrics`

const oursAgent = `tunnel:
  url: https://%[1]s/tunnel
  agent_id: bench
  carrier: %[2]s
  links: %[3]s
  congestion_control: %[8]s
  ca_bundle: %[4]s
  auth:
    token_file: %[5]s
targets:
  bench: %[6]s
limits:
  max_sessions: 20000
  memory: 2GiB
health:
  host: 127.0.0.1
  port: %[7]s
observability:
  log_level: info
`

func (p plan) startOurs(sys *System, carrier string) error {
	for _, b := range []string{p.Binaries.Hub, p.Binaries.Agent} {
		if err := need(b, "build it with `make build`"); err != nil {
			return err
		}
	}
	tokenFile := filepath.Join(p.Dir, "token")
	congestion := cmp.Or(p.Congestion, "auto")
	conf, err := p.caddyfile(fmt.Sprintf(oursApp, tokenFile, congestion), "nowconnect bench", oursSite)
	if err != nil {
		return err
	}
	links := "auto"
	if p.Links > 0 {
		links = strconv.Itoa(p.Links)
	}
	health, err := freePort()
	if err != nil {
		return err
	}
	agentConf, err := p.write(".yaml", fmt.Sprintf(oursAgent, p.agents, carrier, links, p.Files.CA, tokenFile, p.target, health, congestion))
	if err != nil {
		return err
	}
	return p.both(sys,
		[]string{p.Binaries.Hub, "run", "--config", conf, "--adapter", "caddyfile"},
		[]string{p.Binaries.Agent, "-config", agentConf})
}
