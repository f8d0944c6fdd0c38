package nowconnect

import (
	// the layer4 app and its matchers and handlers (tls, proxy_protocol, …)
	_ "github.com/mholt/caddy-l4"

	// our modules
	_ "github.com/nowconnect/nowconnect/caddyfile"
	_ "github.com/nowconnect/nowconnect/modules/adminapi"
	_ "github.com/nowconnect/nowconnect/modules/agentauth/jwt"
	_ "github.com/nowconnect/nowconnect/modules/agentauth/mtls"
	_ "github.com/nowconnect/nowconnect/modules/agentauth/token"
	_ "github.com/nowconnect/nowconnect/modules/agentendpoint"
	_ "github.com/nowconnect/nowconnect/modules/health"
	_ "github.com/nowconnect/nowconnect/modules/l4nowconnect"
	_ "github.com/nowconnect/nowconnect/modules/ldapadmin"
	_ "github.com/nowconnect/nowconnect/modules/linklistener"
	_ "github.com/nowconnect/nowconnect/modules/metrics"
	_ "github.com/nowconnect/nowconnect/modules/nowconnect"
	_ "github.com/nowconnect/nowconnect/modules/pdp/allowall"
	_ "github.com/nowconnect/nowconnect/modules/pdp/authzen"
	_ "github.com/nowconnect/nowconnect/modules/pdp/rules"
)
