package ldapgroup

import (
	"context"
	"fmt"
	"slices"
)

// Report is the outcome of Check: one finding for each thing that was looked
// at, in the order looked at.
type Report struct {
	Server   ServerInfo `json:"server"`
	Findings []Finding  `json:"findings"`
}

// OK reports whether every finding is.
func (r *Report) OK() bool {
	return !slices.ContainsFunc(r.Findings, func(f Finding) bool { return !f.OK })
}

func (r *Report) add(what, target string, err error, detail string) {
	f := Finding{What: what, Target: target, OK: err == nil, Detail: detail}
	if err != nil {
		f.Detail = err.Error()
	}
	r.Findings = append(r.Findings, f)
}

// Finding is one line of a Report.
type Finding struct {
	// What was looked at: "connect" (dial, TLS, bind and rootDSE), "schema",
	// "group", "placeholder" or "member_base".
	What   string `json:"what"`
	Target string `json:"target,omitempty"` // the DN
	OK     bool   `json:"ok"`
	Detail string `json:"detail,omitempty"`
}

// Check connects, binds and looks at rootDSE, schema, the configured groups
// and the member bases. The report is never nil. The error is that of the
// connection, without which nothing works; the report then ends with it.
func (e *Engine) Check(ctx context.Context) (*Report, error) {
	r := &Report{}
	ctx, end, err := e.begin(ctx, "check", "")
	if err != nil {
		r.add("connect", e.cfg.Name, err, "")
		return r, err
	}
	defer end()
	s := e.session(ctx)
	defer s.close()
	c, err := s.conn()
	if err != nil {
		r.add("connect", e.cfg.Name, err, "")
		return r, err
	}
	r.Server = *c.server
	r.add("connect", e.cfg.Name, nil, fmt.Sprintf("%s %s", c.server.Vendor, c.server.VendorVersion))
	s.checkSchema(r)
	for _, rule := range e.rules {
		s.checkRule(r, rule)
	}
	for _, base := range e.memberBases {
		r.add("member_base", base.raw, s.readable(base), "")
	}
	return r, nil
}

func (s *session) checkSchema(r *Report) {
	kinds, err := s.readSchema(&r.Server)
	r.Server.Kinds = kinds
	if err == nil && len(kinds) == 0 {
		err = &Error{Op: "read schema", Directory: s.e.cfg.Name, Class: ClassConfig}
	}
	names := make([]string, len(kinds))
	for i, k := range kinds {
		names[i] = k.String()
	}
	r.add("schema", r.Server.subschema, err, sortedNames(names))
}

// checkRule looks at what a rule names. That a group is missing is a finding,
// not an error: it may be made later.
func (s *session) checkRule(r *Report, rule *rule) {
	if rule.Subtree {
		r.add("group", rule.name.raw, s.readable(rule.name), "subtree")
	} else {
		g, _, err := s.resolve("check", rule.name.raw)
		detail := ""
		if err == nil {
			detail = g.kind.String()
			if r.Server.Kinds != nil && !slices.Contains(r.Server.Kinds, g.kind) {
				err = s.e.groupError("check", rule.name.raw, ClassConfig, fmt.Errorf("the schema has no %s", g.kind))
			}
		}
		r.add("group", rule.name.raw, err, detail)
	}
	if rule.placeholder.key != "" {
		r.add("placeholder", rule.placeholder.raw, s.readable(rule.placeholder), "")
	}
}

// readable reports whether an entry is there for us.
func (s *session) readable(n name) error {
	result, err := s.search("check", baseSearch(n.raw, "(objectClass=*)", noAttributes))
	if err != nil {
		return err
	}
	if len(result.Entries) == 0 {
		return &Error{Op: "check", Directory: s.e.cfg.Name, Class: ClassConfig, Err: fmt.Errorf("%q cannot be read", n.raw)}
	}
	return nil
}
