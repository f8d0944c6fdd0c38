package rules

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"time"

	"github.com/nowconnect/nowconnect/internal/authz"
)

// facts reads a request, each thing once and only when a rule asks for it.
type facts struct {
	r       *authz.Request
	explain bool    // collect why
	why     []error // what the request does not tell

	source     netip.Addr
	sourceRead bool

	now     time.Time
	nowRead bool
	until   int64 // Unix seconds of the next change of a schedule; 0 = none
}

func (f *facts) missing(format string, args ...any) verdict {
	if f.explain {
		f.why = append(f.why, fmt.Errorf(format, args...))
	}
	return unknown
}

// text returns a string of the request's context.
func text(r *authz.Request, key string) (string, bool) {
	s, ok := r.Context[key].(string)
	return s, ok
}

// addr returns the client's address without an IPv4-in-IPv6 disguise and
// without a zone, which names an interface of ours and no client.
func (f *facts) addr() (netip.Addr, bool) {
	if !f.sourceRead {
		f.sourceRead = true
		f.source, _ = sourceOf(f.r)
	}
	return f.source, f.source.IsValid()
}

func sourceOf(r *authz.Request) (netip.Addr, bool) {
	s, _ := text(r, "source_ip")
	a, err := netip.ParseAddr(s)
	return a.Unmap().WithZone(""), err == nil
}

func (f *facts) fromAny(prefixes []netip.Prefix) verdict {
	a, ok := f.addr()
	if !ok {
		return f.missing("the request has no usable context.source_ip")
	}
	for _, p := range prefixes {
		if p.Contains(a) {
			return yes
		}
	}
	return no
}

// asksForAny: a client that asked for no name asked for none of these.
func (f *facts) asksForAny(names []hostPattern) verdict {
	v, told := f.r.Context["sni"]
	if !told {
		return no
	}
	s, ok := v.(string)
	if !ok {
		return f.missing("context.sni is not a string")
	}
	for _, p := range names {
		if p.match(s) {
			return yes
		}
	}
	return no
}

// subjectCertificate is the subject's type when TLS verified the client's
// certificate; the names of any other subject are not its alternative names.
const subjectCertificate = "certificate"

// hasAny: a client without a certificate has none of its names.
func (f *facts) hasAny(patterns []sanPattern) verdict {
	if f.r.Subject.Type != subjectCertificate {
		return no
	}
	result := no
	for i := range patterns {
		p := &patterns[i]
		v, told := f.r.Subject.Properties[p.property]
		if !told {
			continue
		}
		names, ok := v.([]string)
		if !ok {
			result = f.missing("subject.properties.%s is not a list of strings", p.property)
			continue
		}
		if slices.ContainsFunc(names, p.match) {
			return yes
		}
	}
	return result
}

func (f *facts) servedByAny(agents []string) verdict {
	a, ok := text(f.r, "agent")
	if !ok {
		return f.missing("the request does not tell the agent")
	}
	if slices.Contains(agents, a) {
		return yes
	}
	return no
}

// time returns when the question was asked.
func (f *facts) time() (time.Time, bool) {
	if !f.nowRead {
		f.nowRead = true
		f.now, _ = timeOf(f.r)
	}
	return f.now, !f.now.IsZero()
}

func timeOf(r *authz.Request) (time.Time, bool) {
	s, _ := text(r, "time")
	t, err := time.Parse(time.RFC3339, s)
	return t, err == nil && !t.IsZero()
}

func (f *facts) within(s *schedule) verdict {
	t, ok := f.time()
	if !ok {
		return f.missing("the request has no usable context.time")
	}
	open, until := s.at(t)
	f.changeAt(until)
	if open {
		return yes
	}
	return no
}

func (f *facts) changeAt(unix int64) {
	if unix != math.MaxInt64 && (f.until == 0 || unix < f.until) {
		f.until = unix
	}
}

func (f *facts) holds(e *expression) verdict {
	if e.time {
		if t, ok := f.time(); ok {
			f.changeAt(t.Add(expressionLease).Unix())
		}
	}
	source, _ := f.addr()
	ok, err := e.eval(&activation{r: f.r, source: source})
	switch {
	case err != nil:
		if f.explain {
			f.why = append(f.why, errors.New("expression: "+err.Error()))
		}
		return unknown
	case ok:
		return yes
	}
	return no
}

// lease is how long what has been found about the time holds.
func (f *facts) lease() time.Duration {
	if f.until == 0 {
		return 0
	}
	return max(time.Second, time.Duration(f.until-f.now.Unix())*time.Second)
}
