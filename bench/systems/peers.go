package systems

import (
	"errors"
	"fmt"
	"net"
	"os/exec"
)

// ErrNotInstalled means that a peer's programs are not on PATH. The benchmark
// configures, starts and stops peers; it does not build them.
var ErrNotInstalled = errors.New("not on PATH")

// Installed reports whether the programs of a peer are on PATH; nil for all other systems.
func Installed(name string) error {
	switch name {
	case Frp:
		return onPath("frps", "frpc")
	case Chisel:
		return onPath("chisel")
	}
	return nil
}

func onPath(names ...string) error {
	for _, n := range names {
		if _, err := exec.LookPath(n); err != nil {
			return fmt.Errorf("%s: %w", n, ErrNotInstalled)
		}
	}
	return nil
}

// frp with its defaults (tcpMux, one pooled connection) and mTLS. Its client
// must not give up when it starts a moment before the server listens.
const (
	frpServer = `bindAddr = "%[1]s"
bindPort = %[2]s
proxyBindAddr = "127.0.0.1"
auth.token = "%[3]s"
transport.tls.force = true
transport.tls.certFile = "%[4]s"
transport.tls.keyFile = "%[5]s"
transport.tls.trustedCaFile = "%[6]s"
`
	frpClient = `serverAddr = "%[1]s"
serverPort = %[2]s
loginFailExit = false
auth.token = "%[3]s"
transport.tls.certFile = "%[4]s"
transport.tls.keyFile = "%[5]s"
transport.tls.trustedCaFile = "%[6]s"
transport.tls.serverName = "localhost"

[[proxies]]
name = "bench"
type = "tcp"
localIP = "%[7]s"
localPort = %[8]s
remotePort = %[9]s
`
)

func (p plan) startFrp(sys *System) error {
	host, port, err := net.SplitHostPort(p.target)
	if err != nil {
		return err
	}
	server, err := p.write("-frps.toml", fmt.Sprintf(frpServer, p.hubIP, p.agentPort, token, p.Files.ServerCert, p.Files.ServerKey, p.Files.CA))
	if err != nil {
		return err
	}
	client, err := p.write("-frpc.toml", fmt.Sprintf(frpClient, p.hubIP, p.agentPort, token, p.Files.ClientCert, p.Files.ClientKey, p.Files.CA, host, port, p.clientPort))
	if err != nil {
		return err
	}
	return p.both(sys, []string{"frps", "-c", server}, []string{"frpc", "-c", client})
}

// chisel with mTLS around its own SSH.
func (p plan) startChisel(sys *System) error {
	return p.both(sys,
		[]string{"chisel", "server", "--host", p.hubIP, "--port", p.agentPort, "--reverse", "--auth", "bench:" + token,
			"--tls-cert", p.Files.ServerCert, "--tls-key", p.Files.ServerKey, "--tls-ca", p.Files.CA},
		[]string{"chisel", "client", "--auth", "bench:" + token, "--tls-ca", p.Files.CA, "--tls-cert", p.Files.ClientCert,
			"--tls-key", p.Files.ClientKey, "https://" + p.agents, "R:" + p.client + ":" + p.target})
}
