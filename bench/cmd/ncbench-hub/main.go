// ncbench-hub is Caddy with the standard modules, caddy-l4 and, in the place of
// NowConnect, the yamux and smux modules of the benchmark. It exists so that
// `make bench` compares engines and not web servers.
package main

import (
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	_ "github.com/caddyserver/caddy/v2/modules/standard"
	_ "github.com/mholt/caddy-l4"

	_ "github.com/nowconnect/nowconnect/bench/muxhub"
)

func main() { caddycmd.Main() }
