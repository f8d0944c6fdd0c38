package testpeer

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/go-ldap/ldap/v3"
)

const scriptedGroup = "CN=crew,DC=lab,DC=test"

func startGroups(t *testing.T, g *GroupServer, script func(*LDAPRequest)) *ldap.Conn {
	t.Helper()
	g.BindDN = "CN=svc,DC=lab,DC=test"
	g.SetPassword("right")
	s := LDAPServer(t, func(r *LDAPRequest) {
		g.Note(r)
		if script != nil {
			script(r)
			return
		}
		g.Answer(r)
	})
	c := dialLDAP(t, s.URL)
	c.SetTimeout(20 * time.Second)
	return c
}

func memberChange(op uint, members ...string) *ldap.ModifyRequest {
	r := ldap.NewModifyRequest(scriptedGroup, nil)
	if op == ldap.AddAttribute {
		r.Add("member", members)
	} else {
		r.Delete("member", members)
	}
	return r
}

func TestGroupServerAnswersAsItsKind(t *testing.T) {
	for _, tt := range []struct {
		windows        bool
		exists, absent uint16
	}{
		{true, ldap.LDAPResultEntryAlreadyExists, ldap.LDAPResultUnwillingToPerform},
		{false, ldap.LDAPResultAttributeOrValueExists, ldap.LDAPResultNoSuchAttribute},
	} {
		t.Run(fmt.Sprint("windows ", tt.windows), func(t *testing.T) {
			g := &GroupServer{Windows: tt.windows}
			g.SetGroup(scriptedGroup, "CN=a", "CN=b")
			c := startGroups(t, g, nil)
			if err := c.Bind(g.BindDN, "wrong"); !ldap.IsErrorWithCode(err, ldap.LDAPResultInvalidCredentials) {
				t.Errorf("a wrong password: %v", err)
			}
			if err := c.Bind(g.BindDN, "right"); err != nil {
				t.Fatal(err)
			}
			if err := c.Modify(memberChange(ldap.AddAttribute, "CN=c", "CN=A")); !ldap.IsErrorWithCode(err, tt.exists) {
				t.Errorf("adding one that is there: %v", err)
			}
			if err := c.Modify(memberChange(ldap.DeleteAttribute, "CN=a", "CN=x")); !ldap.IsErrorWithCode(err, tt.absent) {
				t.Errorf("removing one that is not: %v", err)
			}
			if got := strings.Join(g.Group(scriptedGroup), " "); got != "CN=a CN=b" {
				t.Errorf("refused changes left %s", got)
			}
			if err := c.Modify(memberChange(ldap.AddAttribute, "CN=c")); err != nil {
				t.Error(err)
			}
			for filter, n := range map[string]int{"(member=cn=C)": 1, "(member=CN=x)": 0, `(member=CN=\63)`: 1} {
				if got := len(search(t, c, scriptedGroup, filter)); got != n {
					t.Errorf("%s finds %d, want %d", filter, got, n)
				}
			}
			if g.Count("bind") != 2 || g.Count("modify") != 3 || g.Count("search") != 3 {
				t.Errorf("%d binds, %d changes, %d searches", g.Count("bind"), g.Count("modify"), g.Count("search"))
			}
		})
	}
}

func TestGroupServerRanges(t *testing.T) {
	g := &GroupServer{Windows: true, MaxValRange: 4}
	var members []string
	for i := range 10 {
		members = append(members, fmt.Sprintf("CN=%d", i))
	}
	g.SetGroup(scriptedGroup, members...)
	c := startGroups(t, g, nil)
	for ask, want := range map[string]string{
		"member":           "member;range=0-3 [CN=0 CN=1 CN=2 CN=3]",
		"member;range=4-*": "member;range=4-7 [CN=4 CN=5 CN=6 CN=7]",
		"member;range=8-*": "member;range=8-* [CN=8 CN=9]",
	} {
		r, err := c.Search(ldap.NewSearchRequest(scriptedGroup, ldap.ScopeBaseObject, ldap.NeverDerefAliases, 0, 0, false,
			"(objectClass=*)", []string{ask}, nil))
		if err != nil {
			t.Fatal(err)
		}
		as := r.Entries[0].Attributes
		last := as[len(as)-1]
		if got := fmt.Sprint(last.Name, " ", last.Values); got != want {
			t.Errorf("%s gives %s, want %s", ask, got, want)
		}
		if ask == "member" && (len(as) != 2 || as[0].Name != "member" || len(as[0].Values) != 0) {
			t.Errorf("no empty attribute beside the first range: %v", as[0])
		}
	}
}

func TestLDAPServerDoesWhatTheScriptSays(t *testing.T) {
	bySuffix := map[string]func(*LDAPRequest){
		"referral": func(r *LDAPRequest) { r.Referral("ldap://elsewhere/") },
		"busy":     func(r *LDAPRequest) { r.Result(ldap.LDAPResultBusy, "later") },
		"matched":  func(r *LDAPRequest) { r.NotFound("DC=lab", "no") },
		"close":    (*LDAPRequest).Close,
		"reset":    (*LDAPRequest).Reset,
		"notice":   func(r *LDAPRequest) { r.Disconnecting(ldap.LDAPResultUnavailable) },
		"late": func(r *LDAPRequest) {
			r.Later(func() { time.Sleep(50 * time.Millisecond); r.Result(ldap.LDAPResultSuccess, "") })
		},
	}
	for name, check := range map[string]func(error) bool{
		"referral": func(err error) bool { return ldap.IsErrorWithCode(err, ldap.LDAPResultReferral) },
		"busy": func(err error) bool {
			return ldap.IsErrorWithCode(err, ldap.LDAPResultBusy) && strings.Contains(err.Error(), "later")
		},
		"matched": func(err error) bool {
			e, ok := err.(*ldap.Error) //nolint:errorlint // go-ldap wraps none
			return ok && e.MatchedDN == "DC=lab" && e.ResultCode == ldap.LDAPResultNoSuchObject
		},
		"close":  func(err error) bool { return err != nil },
		"reset":  func(err error) bool { return err != nil },
		"notice": func(err error) bool { return err != nil },
		"late":   func(err error) bool { return err == nil },
	} {
		t.Run(name, func(t *testing.T) {
			c := startGroups(t, &GroupServer{}, func(r *LDAPRequest) { bySuffix[r.DN](r) })
			r := ldap.NewModifyRequest(name, nil)
			r.Add("member", []string{"CN=a"})
			if err := c.Modify(r); !check(err) {
				t.Errorf("got %v", err)
			}
		})
	}
}
