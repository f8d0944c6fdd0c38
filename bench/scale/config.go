package scale

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Listeners have addresses of their own, and ports below those that the kernel
// gives to dialled connections.
const (
	clientHost = "127.3.0.1"
	echoHost   = "127.3.0.2" // of caddy-l4's echo
	healthHost = "127.3.0.3" // of agents
	firstPort  = 10001
)

func clientAddr(i int) string { return net.JoinHostPort(clientHost, strconv.Itoa(firstPort+i)) }

func (w *world) addrs() []string {
	all := make([]string, w.size.Connectors)
	for i := range all {
		all[i] = clientAddr(i)
	}
	return all
}

func (w *world) agentOf(connector int) int { return connector % w.size.Agents }

func agentID(i int) string         { return fmt.Sprintf("agent-%03d", i) }
func connectorName(i int) string   { return fmt.Sprintf("connector-%04d", i) }
func token(i int) string           { return fmt.Sprintf("ncbench-token-of-no-value-%06d", i) }
func (w *world) admin() string     { return filepath.Join(w.dir, "admin.sock") }
func (w *world) echoAdmin() string { return filepath.Join(w.dir, "echo.sock") }

func (w *world) write(name, text string) (string, error) {
	path := filepath.Join(w.dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		return "", fmt.Errorf("configure: %w", err)
	}
	return path, nil
}

// writeConfig writes two Caddyfiles that differ in each connector, so that a
// reload has something to do everywhere.
func (w *world) writeConfig() error {
	for i := range w.size.Agents {
		if _, err := w.write(agentID(i)+".token", token(i)); err != nil {
			return err
		}
	}
	for _, limit := range []int{10000, 10001} {
		path, err := w.write(fmt.Sprintf("hub-%d.Caddyfile", limit), w.hubConfig(limit))
		if err != nil {
			return err
		}
		w.conf = append(w.conf, path)
	}
	return nil
}

// hubConfig has every part that a real hub has: agent authentication, policy,
// metrics, and records that leave together.
func (w *world) hubConfig(limit int) string {
	var agents, connectors, servers strings.Builder
	for i := range w.size.Agents {
		fmt.Fprintf(&agents, "\t\t\tagent %s {file.%s}\n", agentID(i), filepath.Join(w.dir, agentID(i)+".token"))
	}
	for i := range w.size.Connectors {
		fmt.Fprintf(&connectors, "\t\tconnector %s {\n\t\t\tagents %s\n\t\t\tmax_sessions %d\n\t\t}\n", connectorName(i), agentID(w.agentOf(i)), limit)
		fmt.Fprintf(&servers, "\t\tnowconnect/%s {\n\t\t\troute {\n\t\t\t\tnowconnect %s\n\t\t\t}\n\t\t}\n", clientAddr(i), connectorName(i))
	}
	_, port, _ := net.SplitHostPort(w.web)
	return fmt.Sprintf(`{
	admin unix/%s
	persist_config off
	auto_https off
	log {
		level INFO
	}
	servers {
		listener_wrappers {
			nowconnect
			tls
		}
	}
	nowconnect {
		agent_auth token {
%s		}
		pdp rules {
			allow clients {
				source 127.0.0.0/8
			}
		}
%s	}
	layer4 {
%s	}
}

https://:%s {
	bind 127.0.0.1
	tls %s %s
	nowconnect_agent /tunnel
	nowconnect_metrics /metrics
	metrics /caddy
}
`, w.admin(), agents.String(), connectors.String(), servers.String(), port, w.site.Files.ServerCert, w.site.Files.ServerKey)
}

// echoConfig has the same listeners in front of caddy-l4's own echo and nothing
// of ours: what a reload of so many costs anyway.
func (w *world) echoConfig(level string) string {
	var servers strings.Builder
	for i := range w.size.Connectors {
		fmt.Fprintf(&servers, "\t\t%s {\n\t\t\troute {\n\t\t\t\techo\n\t\t\t}\n\t\t}\n", net.JoinHostPort(echoHost, strconv.Itoa(firstPort+i)))
	}
	return fmt.Sprintf("{\n\tadmin unix/%s\n\tpersist_config off\n\tauto_https off\n\tlog {\n\t\tlevel %s\n\t}\n\tlayer4 {\n%s\t}\n}\n", w.echoAdmin(), level, servers.String())
}

// agentConfig is what one agent's process goes by: every connector that the hub
// gives it.
func (w *world) agentConfig(i int) (path, health string, err error) {
	port := strconv.Itoa(firstPort + i)
	health = net.JoinHostPort(healthHost, port)
	var targets strings.Builder
	for c := i; c < w.size.Connectors; c += w.size.Agents {
		// All of the target's addresses: with two thirds of the ports towards one of
		// them in use, the kernel takes 2 ms to find another.
		fmt.Fprintf(&targets, "  %s: %s\n", connectorName(c), w.site.Target(c))
	}
	path, err = w.write(agentID(i)+".yaml", fmt.Sprintf(`tunnel:
  url: https://%s/tunnel
  agent_id: %s
  links: %d
  ca_bundle: %s
  auth:
    token_file: %s
targets:
%shealth:
  host: %s
  port: %s
observability:
  log_level: error
`, w.web, agentID(i), w.size.Links, w.site.Files.CA, filepath.Join(w.dir, agentID(i)+".token"), targets.String(), healthHost, port))
	return path, health, err
}
