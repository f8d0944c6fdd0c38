package ldapadmin

import "testing"

func TestPolicyName(t *testing.T) {
	for given, want := range map[string]string{
		`CN = Team , OU=Groups`:    `cn=team,ou=groups`,
		`cn=\74e\61m,ou=groups`:    `cn=team,ou=groups`,
		`cn=a   b,ou=x`:            `cn=a b,ou=x`,
		`SN=b+CN=a,ou=x`:           `cn=a+sn=b,ou=x`,
		`cn=evil\,ou=it,dc=x`:      `cn=evil\2cou=it,dc=x`,
		`cn=evil\2Cou=it,dc=x`:     `cn=evil\2cou=it,dc=x`,
		`cn=evil\\\,ou=it,dc=x`:    `cn=evil\\\2cou=it,dc=x`,
		`cn=back\\,ou=it,dc=x`:     `cn=back\\,ou=it,dc=x`,
		`cn=a\+b,dc=x`:             `cn=a\2bb,dc=x`,
		`u1`:                       `u1`,
		`<SID=S-1-5-21-1-2-3-500>`: `<SID=S-1-5-21-1-2-3-500>`,
	} {
		if got := policyName(given); got != want {
			t.Errorf("%s is %s, want %s", given, got, want)
		}
	}
}
