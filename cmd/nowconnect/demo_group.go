package main

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"

	"github.com/go-ldap/ldap/v3"

	"github.com/nowconnect/nowconnect/internal/demodir"
	"github.com/nowconnect/nowconnect/internal/groupapi"
)

// demoCaller is who calls the demo's API; the password is made for each run.
const demoCaller = "demo"

// demoGroup and demoMember are what the check changes.
const (
	demoGroup  = "vpn-users"
	demoMember = "zoe"
)

// checkMembership adds a member to a group through the API, twice, and looks
// for it with LDAP through the tunnel.
func (d *demo) checkMembership(ctx context.Context) error {
	if d.external {
		return nil // nothing is written to a directory that is not ours
	}
	api, err := d.groupAPI()
	if err != nil {
		return err
	}
	group, member := demodir.GroupDN(demoGroup), demodir.PersonDN(demoMember)
	for _, want := range []groupapi.Outcome{groupapi.Added, groupapi.AlreadyMember} {
		a, err := api.Add(ctx, group, member, groupapi.WriteOptions{})
		if err != nil {
			return fmt.Errorf("add a member through the API: %w", err)
		}
		if len(a.Results) != 1 || a.Results[0].Outcome != want {
			return fmt.Errorf("add a member through the API: %+v, want the outcome %s", a.Results, want)
		}
		d.ok("PUT of %s to %s at https://%s/ldap: %s", demoMember, demoGroup, d.httpAddr, want)
	}
	return d.searchMember(ctx, group, member)
}

// groupAPI is a client of the demo's API.
func (d *demo) groupAPI() (*groupapi.Client, error) {
	password, err := os.ReadFile(d.file("api.password"))
	if err != nil {
		return nil, err
	}
	return groupapi.NewClient("https://"+d.httpAddr+"/ldap", d.web.http, func(r *http.Request) error {
		r.SetBasicAuth(demoCaller, strings.TrimSpace(string(password)))
		return nil
	})
}

// searchMember looks for the member through the tunnel.
func (d *demo) searchMember(ctx context.Context, group, member string) error {
	c, err := dialLDAP(ctx, d.ldapAddr)
	if err != nil {
		return fmt.Errorf("connect to the hub's LDAP port: %w", err)
	}
	defer c.Close()
	if err := c.Bind(demodir.ReaderDN, demodir.ReaderPassword); err != nil {
		return fmt.Errorf("bind through the tunnel: %w", err)
	}
	found, err := c.Search(ldap.NewSearchRequest(group, ldap.ScopeBaseObject, ldap.NeverDerefAliases,
		0, 0, false, "(objectClass=groupOfNames)", []string{"member"}, nil))
	if err != nil {
		return fmt.Errorf("read a group through the tunnel: %w", err)
	}
	if len(found.Entries) != 1 || !slices.Contains(found.Entries[0].GetAttributeValues("member"), member) {
		return fmt.Errorf("the API added %s to %s, and a search does not show it: %v", member, group, found.Entries)
	}
	d.ok("read of %s through ldap://%s shows the new member: %d members", demoGroup, d.ldapAddr, len(found.Entries[0].GetAttributeValues("member")))
	return nil
}
