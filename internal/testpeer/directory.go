package testpeer

import (
	"fmt"
	"iter"
	"os"
	"testing"
	"time"
)

// Directory is a running directory server: OpenLDAP (Slapd), Samba as an Active
// Directory domain controller (Samba) or 389 Directory Server (DS389). The
// service account writes the groups below GroupsDN; the admin may do anything
// and meets no limit; people may bind and read.
type Directory struct {
	URL, Addr         string // ldap://…, host:port
	LDAPSURL, TLSAddr string // ldaps://…; empty without TLS
	CA                *CA    // of StartTLS and LDAPS; nil without TLS

	BaseDN, AdminDN, AdminPassword string
	PeopleDN, GroupsDN             string
	BigDN                          string // OpenLDAP's SlapdOptions.BigEntries
	ContactsDN                     string // Samba's Contacts
	ServiceDN, ServicePassword     string
	UserPassword                   string // of everybody in PeopleDN
	People                         int
	Contacts                       int // below ContactsDN: members for big groups, without accounts

	Process *Process // of now: Restart makes another

	rdn string // the attribute that names people
	// launch starts the server at the addresses it has, or at new ones when it
	// has none yet, and waits until it listens.
	launch func(tb testing.TB) *Process
}

// UserDN is the name of person i, counted from 1.
func (d *Directory) UserDN(i int) string { return fmt.Sprintf("%s=u%d,%s", d.rdn, i, d.PeopleDN) }

// ContactDN is the name of contact i, counted from 1.
func (d *Directory) ContactDN(i int) string { return fmt.Sprintf("CN=c%d,%s", i, d.ContactsDN) }

// GroupDN is the name of a group: with OpenLDAP "staff", which has every second
// person as member, or "empty", whose only member is the admin. The others
// begin without groups.
func (d *Directory) GroupDN(name string) string { return fmt.Sprintf("cn=%s,%s", name, d.GroupsDN) }

// Stop ends the server as kill -9 does. Its data and addresses stay.
func (d *Directory) Stop() { d.Process.Kill() }

// Restart starts the server again after Stop, with the same data at the same
// addresses, until tb ends.
func (d *Directory) Restart(tb testing.TB) {
	tb.Helper()
	d.Process = d.launch(tb)
}

// shortDir is a temporary directory for servers with Unix sockets, whose paths
// may have a hundred characters only: tb.TempDir's would be too long.
func shortDir(tb testing.TB) string {
	tb.Helper()
	dir, err := os.MkdirTemp("", "testpeer")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// launches is how often a server is started until it listens. The first time
// its address may turn out to be taken, and each try has a new one. When it
// starts again it must have the old one, and waits for whoever has it.
func launches(again bool) iter.Seq[int] {
	return func(yield func(int) bool) {
		n := 5
		if again {
			n = 60
		}
		for i := range n {
			if i > 0 && again {
				time.Sleep(250 * time.Millisecond)
			}
			if !yield(i) {
				return
			}
		}
	}
}

// listening waits until p accepts connections at all addrs, or is gone.
func listening(p *Process, d time.Duration, addrs ...string) bool {
	up := eventually(d, p.Done(), func() bool {
		for _, a := range addrs {
			if !accepts(a) {
				return false
			}
		}
		return true
	})
	return up && !p.exited()
}
