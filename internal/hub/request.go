package hub

import (
	"maps"
	"time"

	"github.com/nowconnect/nowconnect/internal/authz"
)

// subjectIP is the type of a subject of which only the address is known.
const subjectIP = "ip"

// request puts the question in AuthZEN form: may this client reach the
// connector through this agent? What describes client and agent is both in the
// properties of subject and resource and in the context, because real engines
// see only the one or only the other.
func (s *session) request(cfg *Config, agent string) *authz.Request {
	cl := s.client
	ip := cl.Addr.Addr().Unmap().String()
	r := &authz.Request{
		Subject:  authz.Entity{Type: subjectIP, ID: ip},
		Action:   authz.Action{Name: authz.ActionConnect},
		Resource: authz.Entity{Type: "connector", ID: s.conn.name},
		Context: map[string]any{
			"time": time.Now().UTC().Format(time.RFC3339), "cid": s.name,
			"source_ip": ip, "source_port": int(cl.Addr.Port()), "listener": cl.Listener,
		},
	}
	properties := make(map[string]any, 4)
	if cl.Subject != nil {
		r.Subject = *cl.Subject
		maps.Copy(properties, cl.Subject.Properties)
	}
	r.Subject.Properties = properties
	properties["source_ip"], properties["listener"] = ip, cl.Listener
	if cl.SNI != "" {
		properties["sni"], r.Context["sni"] = cl.SNI, cl.SNI
	}
	if cfg.ID != "" {
		r.Context["hub"] = cfg.ID
	}
	if agent != "" {
		r.Resource.Properties = map[string]any{"agent": agent}
		r.Context["agent"] = agent
	}
	return r
}
