package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/go-ldap/ldap/v3"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/nowconnect/nowconnect/internal/demodir"
)

// awaitReady waits until the hub says that an agent serves the connector.
func (d *demo) awaitReady(ctx context.Context) error {
	d.say("\nCheck:\n")
	ctx, cancel := context.WithTimeout(ctx, demoReadyTimeout)
	defer cancel()
	start, last := time.Now(), "no answer yet"
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		status, body, err := d.web.get(ctx, "/readyz?connector="+demoConnector)
		switch {
		case err == nil && status == http.StatusOK:
			d.ok("ready after %v: /readyz says that an agent serves %q", time.Since(start).Round(time.Millisecond), demoConnector)
			return nil
		case err == nil:
			last = fmt.Sprintf("/readyz says %d: %s", status, strings.TrimSpace(string(body)))
		case ctx.Err() == nil:
			last = err.Error()
		}
		select {
		case <-d.hub.ended():
			return d.hub.died()
		case <-d.agent.ended():
			return d.agent.died()
		case <-ctx.Done():
			return fmt.Errorf("not ready after %v: %s", demoReadyTimeout, last)
		case <-tick.C:
		}
	}
}

// check sends LDAP through the tunnel and looks whether the metrics moved.
func (d *demo) check(ctx context.Context) error {
	before, err := d.trafficAtRest(ctx)
	if err != nil {
		return err
	}
	c, err := dialLDAP(ctx, d.ldapAddr)
	if err != nil {
		return fmt.Errorf("connect to the hub's LDAP port: %w", err)
	}
	if d.external {
		err = d.checkRootDSE(c)
	} else {
		err = d.checkExample(c)
	}
	c.Close()
	if err != nil {
		return err
	}
	after, err := d.web.traffic(ctx)
	if err != nil {
		return err
	}
	moved := trafficSample{after.connections - before.connections, after.c2a - before.c2a, after.a2c - before.a2c}
	if moved.connections < 1 || moved.c2a <= 0 || moved.a2c <= 0 {
		return fmt.Errorf("LDAP got through, but /metrics shows %v connections, %v bytes c2a and %v bytes a2c",
			moved.connections, moved.c2a, moved.a2c)
	}
	d.ok("/metrics: %.0f connection, %.0f bytes client to agent, %.0f bytes agent to client", moved.connections, moved.c2a, moved.a2c)
	return nil
}

// trafficAtRest samples traffic when the hub's own client, ldap_admin, has
// looked at the embedded directory, which it does by itself as soon as there is
// an agent: that connection is not the check's.
func (d *demo) trafficAtRest(ctx context.Context) (trafficSample, error) {
	last, err := d.web.traffic(ctx)
	for end := time.Now().Add(demoReadyTimeout); err == nil && !d.external && time.Now().Before(end); {
		select {
		case <-ctx.Done():
			return last, ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
		var now trafficSample
		if now, err = d.web.traffic(ctx); now == last && now.connections > 0 {
			break
		}
		last = now
	}
	return last, err
}

// checkExample binds, and searches people and a group of the embedded
// directory.
func (d *demo) checkExample(c *ldap.Conn) error {
	if err := c.Bind(demodir.ReaderDN, demodir.ReaderPassword); err != nil {
		return fmt.Errorf("bind through the tunnel: %w", err)
	}
	d.ok("bind as %s through ldap://%s", demodir.ReaderDN, d.ldapAddr)
	people, err := c.Search(ldap.NewSearchRequest(demodir.PeopleDN, ldap.ScopeSingleLevel, ldap.NeverDerefAliases,
		0, 0, false, "(objectClass=person)", []string{"cn", "mail"}, nil))
	if err != nil {
		return fmt.Errorf("search for people through the tunnel: %w", err)
	}
	if n := len(people.Entries); n != demodir.NumPeople() {
		return fmt.Errorf("search for people through the tunnel: %d entries, the directory has %d", n, demodir.NumPeople())
	}
	d.ok("search below %s: %d people", demodir.PeopleDN, len(people.Entries))
	group := demodir.GroupDN("engineers")
	found, err := c.Search(ldap.NewSearchRequest(group, ldap.ScopeBaseObject, ldap.NeverDerefAliases,
		0, 0, false, "(objectClass=groupOfNames)", []string{"member"}, nil))
	if err != nil {
		return fmt.Errorf("read a group through the tunnel: %w", err)
	}
	var want []string
	for _, uid := range demodir.Members("engineers") {
		want = append(want, demodir.PersonDN(uid))
	}
	if len(found.Entries) != 1 || !slices.Equal(found.Entries[0].GetAttributeValues("member"), want) {
		return fmt.Errorf("read a group through the tunnel: got %v, want the members %q", found.Entries, want)
	}
	d.ok("read of %s: %d members", group, len(want))
	return nil
}

// checkRootDSE asks a directory of which nothing is known for what every
// directory tells everybody.
func (d *demo) checkRootDSE(c *ldap.Conn) error {
	r, err := c.Search(ldap.NewSearchRequest("", ldap.ScopeBaseObject, ldap.NeverDerefAliases, 0, 0, false,
		"(objectClass=*)", []string{"namingContexts", "vendorName", "dnsHostName"}, nil))
	if err != nil {
		return fmt.Errorf("read the root DSE of %s through the tunnel: %w", d.target, err)
	}
	if len(r.Entries) != 1 {
		return fmt.Errorf("read the root DSE of %s through the tunnel: %d entries", d.target, len(r.Entries))
	}
	var told []string
	for _, a := range r.Entries[0].Attributes {
		told = append(told, a.Name+" "+strings.Join(a.Values, " "))
	}
	d.ok("root DSE of %s through ldap://%s: %s", d.target, d.ldapAddr, strings.Join(told, ", "))
	return nil
}

func (d *demo) ok(format string, args ...any) { d.say("  ok  "+format+"\n", args...) }

// showNext prints commands to copy.
func (d *demo) showNext() {
	d.say("\nTry next:\n")
	curl := fmt.Sprintf("curl --cacert %s https://%s", d.file("ca.crt"), d.httpAddr)
	if d.external {
		d.say("  ldapsearch -H ldap://%s -x -b '' -s base '*' +\n", d.ldapAddr)
	} else {
		d.say("  ldapsearch -H ldap://%s -x -D %s -w %s -b %s '(title=Engineer)' cn mail memberOf\n",
			d.ldapAddr, demodir.ReaderDN, demodir.ReaderPassword, demodir.PeopleDN)
		d.say("  export NOWCONNECT_API_URL=https://%s/ldap NOWCONNECT_API_CA=%s NOWCONNECT_API_USER=%s NOWCONNECT_API_PASSWORD_FILE=%s\n",
			d.httpAddr, d.file("ca.crt"), demoCaller, d.file("api.password"))
		d.say("  nowconnect group remove %s %s\n  nowconnect group members %[1]s\n",
			demodir.GroupDN(demoGroup), demodir.PersonDN(demoMember))
	}
	d.say("  %s/metrics\n  %s/readyz\n", curl, curl)
	d.say("Files of this run (configurations, logs, CA), until it stops: %s\n", d.dir)
}

func dialable(ctx context.Context, addr string) error {
	dialer := net.Dialer{Timeout: demoStepTimeout}
	c, err := dialer.DialContext(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	return c.Close()
}

// dialLDAP connects; the connection is closed when ctx ends, which unblocks
// whatever waits on it.
func dialLDAP(ctx context.Context, addr string) (*ldap.Conn, error) {
	dialer := net.Dialer{Timeout: demoStepTimeout}
	raw, err := dialer.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	c := ldap.NewConn(raw, false)
	c.SetTimeout(demoStepTimeout)
	c.Start()
	context.AfterFunc(ctx, func() { c.Close() })
	return c, nil
}

// webClient reads the hub's HTTP pages.
type webClient struct {
	base string
	http *http.Client
}

func newWebClient(base string, roots *x509.CertPool) *webClient {
	return &webClient{base, &http.Client{
		Timeout: demoStepTimeout,
		Transport: &http.Transport{
			TLSClientConfig:   &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
			DisableKeepAlives: true, // an idle connection would only hold up the hub's end
		},
	}}
}

func (w *webClient) get(ctx context.Context, path string) (status int, body []byte, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, w.base+path, nil)
	if err != nil {
		return 0, nil, err
	}
	resp, err := w.http.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	body, err = io.ReadAll(io.LimitReader(resp.Body, 8<<20))
	return resp.StatusCode, body, err
}

// trafficSample is what the demo reads from /metrics.
type trafficSample struct{ connections, c2a, a2c float64 }

func (w *webClient) traffic(ctx context.Context) (trafficSample, error) {
	var s trafficSample
	status, body, err := w.get(ctx, "/metrics")
	if err == nil && status != http.StatusOK {
		err = fmt.Errorf("status %d", status)
	}
	if err != nil {
		return s, fmt.Errorf("read /metrics: %w", err)
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(string(body)))
	if err != nil {
		return s, fmt.Errorf("parse /metrics: %w", err)
	}
	for _, m := range []struct {
		name, direction string
		to              *float64
	}{
		{"nowconnect_tcp_connections_total", "", &s.connections},
		{"nowconnect_tcp_bytes_total", "c2a", &s.c2a},
		{"nowconnect_tcp_bytes_total", "a2c", &s.a2c},
	} {
		v, ok := counter(families[m.name], m.direction)
		if !ok {
			return s, errors.New("/metrics has no " + m.name + " for the connector " + demoConnector)
		}
		*m.to = v
	}
	return s, nil
}

// counter finds the demo connector's series in a family.
func counter(f *dto.MetricFamily, direction string) (float64, bool) {
	for _, m := range f.GetMetric() {
		labels := map[string]string{}
		for _, l := range m.GetLabel() {
			labels[l.GetName()] = l.GetValue()
		}
		if labels["connector"] == demoConnector && labels["direction"] == direction {
			return m.GetCounter().GetValue(), true
		}
	}
	return 0, false
}
