package l4nowconnect

import (
	"github.com/mholt/caddy-l4/layer4"
	"github.com/mholt/caddy-l4/modules/l4tls"

	"github.com/nowconnect/nowconnect/internal/authz"
	"github.com/nowconnect/nowconnect/modules/nowconnect"
)

// tlsIdentity returns the server name that the client asked for and, when the
// tls handler verified its certificate, who it is. With TLS inside of TLS the
// innermost counts: it is the one next to the bytes.
func tlsIdentity(cx *layer4.Connection) (sni string, subject *authz.Entity) {
	if states := l4tls.GetConnectionStates(cx); len(states) > 0 {
		s := states[len(states)-1]
		return s.ServerName, nowconnect.CertificateSubject(s)
	}
	// TLS passes through to the target; a tls matcher may have read its name.
	if hellos := l4tls.GetClientHelloInfos(cx); len(hellos) > 0 {
		return hellos[len(hellos)-1].ServerName, nil
	}
	return "", nil
}
