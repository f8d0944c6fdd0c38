// Command nowconnect is the hub: Caddy with its standard modules, caddy-l4 and
// every NowConnect module. All of Caddy's commands are there; `nowconnect run`
// runs a configuration.
package main

import (
	"runtime/debug"
	_ "time/tzdata" // so that time zones work without the system's files

	"github.com/caddyserver/caddy/v2"
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	_ "github.com/caddyserver/caddy/v2/modules/standard"

	_ "github.com/nowconnect/nowconnect"
	"github.com/nowconnect/nowconnect/modules/adminapi"
)

// version is set by the linker in releases.
var version string

func main() {
	caddy.CustomBinaryName = "nowconnect"
	caddy.CustomVersion = "nowconnect " + ourVersion() + ", caddy"
	caddy.CustomLongDescription = `NowConnect gives cloud clients a way to TCP services inside a company network,
such as a directory, without an inbound port: an agent inside dials out to this
hub. The hub is Caddy with the NowConnect modules, so that everything Caddy does
is here as well.

Do not use the commands upgrade, add-package and remove-package: they would
replace this program by a Caddy without NowConnect.`
	for _, c := range adminapi.Commands() {
		caddycmd.RegisterCommand(c)
	}
	caddycmd.Main()
}

// ourVersion is the release, or what Go knows of a build of somebody's own.
func ourVersion() string {
	if version != "" {
		return version
	}
	if bi, ok := debug.ReadBuildInfo(); ok && bi.Main.Version != "" {
		return bi.Main.Version
	}
	return "(devel)"
}
