package ldapadmin

import (
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
)

// Every option is refused when it stands twice, without its value, with one too
// many, and with a block; the error names the line.
func TestEveryOptionIsChecked(t *testing.T) {
	words := map[string]string{
		"max_body": "1MiB", "max_members": "1", "max_requests": "1", "max_requests_per_caller": "1", "min_connections": "1", "max_connections": "1",
		"idle_time": "1s", "timeout": "1s", "idempotency_ttl": "1s", "max_removals": "5%",
	}
	flags := map[string]bool{
		"insecure_plaintext": true, "tls_insecure_skip_verify": true, "any_member": true, "allow_sid": true, "insecure_no_auth": true, "replace": true,
	}
	many := map[string]bool{"tls_ca": true, "members_below": true}
	try := func(format, line string) error {
		return new(Handler).UnmarshalCaddyfile(caddyfile.NewTestDispenser(strings.Replace(format, "%", line, 1)))
	}
	check := func(format, option string) {
		t.Helper()
		line := option
		if !flags[option] {
			line += " " + orX(words[option])
		}
		if err := try(format, line); err != nil {
			t.Errorf("%s: %v", line, err)
		}
		bad := map[string]string{
			"twice":        line + "\n" + line,
			"with a block": line + " {\nfoo\n}",
		}
		if !flags[option] {
			bad["without a value"] = option
			bad["with an empty value"] = option + ` ""`
		}
		if !many[option] {
			bad["with one too many"] = line + " more"
		}
		if many[option] {
			delete(bad, "with an empty value") // an empty file name or DN is found when it is used
		}
		for what, lines := range bad {
			if err := try(format, lines); err == nil || !strings.Contains(err.Error(), option) || !strings.Contains(err.Error(), "Testfile:") {
				t.Errorf("%s %s: %v", option, what, err)
			}
		}
	}
	for option := range new(Handler).options() {
		check("ldap_admin {\n%\n}", option)
	}
	for option := range new(Group).options() {
		check("ldap_admin {\ngroup dc=x {\n%\n}\n}", option)
	}
}

func orX(s string) string {
	if s == "" {
		return "x"
	}
	return s
}
