package adminapi

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"

	"github.com/caddyserver/caddy/v2"
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"
)

func init() {
	caddycmd.RegisterCommand(caddycmd.Command{
		Name:  "nowconnect",
		Usage: "agents|sessions|doctor|revoke|reevaluate|drain|undrain",
		Short: "Asks a running hub about agents and sessions, ends sessions, or drains it",
		Long:  `Talks to the admin endpoint of a running Caddy with the nowconnect app.`,
		CobraFunc: func(parent *cobra.Command) {
			for _, c := range Commands() {
				child := &cobra.Command{Use: c.Name + " " + c.Usage, Short: c.Short, Long: c.Long}
				c.CobraFunc(child)
				parent.AddCommand(child)
			}
		},
	})
}

// Commands returns the commands under `caddy nowconnect`. A program of its own
// name, such as cmd/nowconnect, can register them at its top.
func Commands() []caddycmd.Command {
	return []caddycmd.Command{
		{
			Name:      "agents",
			Usage:     "[--config <path> [--adapter <name>]] [--address <interface>]",
			Short:     "Lists the hub's agents with their links, and its connectors",
			Long:      addressHelp,
			CobraFunc: runs(agentsRequest, nil),
		},
		{
			Name:  "sessions",
			Usage: "[--connector <name>] [--config <path> [--adapter <name>]] [--address <interface>]",
			Short: "Lists the hub's live sessions",
			Long:  addressHelp,
			CobraFunc: runs(sessionsRequest, func(cmd *cobra.Command) {
				cmd.Flags().String("connector", "", "Only sessions of this connector")
			}),
		},
		{
			Name:  "doctor",
			Usage: "[--config <path> [--adapter <name>]] [--address <interface>]",
			Short: "Looks whether agents and directories are as the configuration says",
			Long: `
Has the hub look at what its configuration leads to, and prints what it found:
whether each connector has an agent, and, for each directory of ldap_admin,
whether it can be reached and takes the account, what its schema has, and whether
the groups and the places of members can be read. Nothing is written. The exit
status is 0 if all of it is well.
` + addressHelp,
			CobraFunc: runs(doctorRequest, nil),
		},
		{
			Name:  "revoke",
			Usage: "[--cid <cid>] [--connector <name>] [--agent <id>] [--source <address>|<network>] [--reason <text>] [--config <path> [--adapter <name>]] [--address <interface>]",
			Short: "Ends live sessions",
			Long: `
Ends the live sessions for which everything given holds, and prints which those
were. A client that comes back is judged anew: to keep it out, change the policy
first.
` + addressHelp,
			CobraFunc: runs(revokeCommandRequest, func(cmd *cobra.Command) {
				cmd.Flags().String("cid", "", "The session of this name, as the sessions command and the audit log have it")
				cmd.Flags().String("connector", "", "Sessions of this connector")
				cmd.Flags().String("agent", "", "Sessions that this agent serves")
				cmd.Flags().String("source", "", "Sessions of clients from this address or network")
				cmd.Flags().String("reason", "", "Words for the audit log")
			}),
		},
		{
			Name:  "reevaluate",
			Usage: "[--connector <name>] [--config <path> [--adapter <name>]] [--address <interface>]",
			Short: "Has live sessions judged again after a change of policy",
			Long: `
Tells the hub that the policy has changed behind a policy decision point:
remembered answers are forgotten, and live sessions are judged again.
` + addressHelp,
			CobraFunc: runs(reevaluateCommandRequest, func(cmd *cobra.Command) {
				cmd.Flags().String("connector", "", "Only sessions of this connector")
			}),
		},
		{
			Name:  "drain",
			Usage: "[--timeout <duration>] [--config <path> [--adapter <name>]] [--address <interface>]",
			Short: "Takes the hub out of service and waits until its sessions are over",
			Long: `
Takes the hub out of service: it accepts no new session and no agent, lets live
sessions finish, cuts what is left after the timeout, and reports. The undrain
command is the way back.
` + addressHelp,
			CobraFunc: runs(drainCommandRequest, func(cmd *cobra.Command) {
				cmd.Flags().String("timeout", "", "How long sessions may go on (default: drain_timeout)")
			}),
		},
		{
			Name:  "undrain",
			Usage: "[--config <path> [--adapter <name>]] [--address <interface>]",
			Short: "Puts a drained hub back into service",
			Long: `
Puts the hub back into service after a drain that is over. Agents come back by
themselves, half a minute later at the latest.
` + addressHelp,
			CobraFunc: runs(undrainCommandRequest, nil),
		},
	}
}

const addressHelp = `
The address of the running hub's admin endpoint is that of --address, or the one
in the configuration given with --config, or Caddy's default.
`

// request is what a command sends.
type request struct {
	method, uri string
	body        io.Reader // JSON; nil for none

	verdict func(answer []byte) error // nil: any answer is a good one
}

// runs makes the part of a command that sets its flags and sends its request.
func runs(build func(caddycmd.Flags) (request, error), flags func(*cobra.Command)) func(*cobra.Command) {
	return func(cmd *cobra.Command) {
		cmd.Args = cobra.NoArgs
		cmd.Flags().StringP("config", "c", "", "Configuration file to find the admin address in")
		cmd.Flags().StringP("adapter", "a", "", "Name of config adapter to apply")
		cmd.Flags().String("address", "", "Address of the admin endpoint")
		if flags != nil {
			flags(cmd)
		}
		cmd.RunE = caddycmd.WrapCommandFuncForCobra(func(fl caddycmd.Flags) (int, error) {
			r, err := build(fl)
			if err == nil {
				err = ask(fl, r)
			}
			if err != nil {
				return caddy.ExitCodeFailedStartup, err
			}
			return caddy.ExitCodeSuccess, nil
		})
	}
}

func agentsRequest(caddycmd.Flags) (request, error) {
	return request{method: http.MethodGet, uri: "/nowconnect/agents"}, nil
}

func doctorRequest(caddycmd.Flags) (request, error) {
	return request{method: http.MethodGet, uri: "/nowconnect/doctor", verdict: wellness}, nil
}

func sessionsRequest(fl caddycmd.Flags) (request, error) {
	uri := "/nowconnect/sessions"
	if name := fl.String("connector"); name != "" {
		uri += "?connector=" + url.QueryEscape(name)
	}
	return request{method: http.MethodGet, uri: uri}, nil
}

func drainCommandRequest(fl caddycmd.Flags) (request, error) {
	return change("/nowconnect/drain", struct {
		Timeout string `json:"timeout,omitempty"`
	}{fl.String("timeout")})
}

func undrainCommandRequest(caddycmd.Flags) (request, error) {
	return change("/nowconnect/undrain", struct{}{})
}

// change makes a request with a JSON body.
func change(uri string, v any) (request, error) {
	body, err := json.Marshal(v)
	return request{method: http.MethodPost, uri: uri, body: bytes.NewReader(body)}, err
}

func revokeCommandRequest(fl caddycmd.Flags) (request, error) {
	body := revokeRequest{
		CID: fl.String("cid"), Connector: fl.String("connector"), Agent: fl.String("agent"),
		Source: fl.String("source"), Reason: fl.String("reason"),
	}
	if _, err := body.match(); err != nil {
		return request{}, err
	}
	return change("/nowconnect/sessions/revoke", body)
}

func reevaluateCommandRequest(fl caddycmd.Flags) (request, error) {
	return change("/nowconnect/reevaluate", reevaluateRequest{fl.String("connector")})
}

// ask sends the request to the admin endpoint and prints the answer.
func ask(fl caddycmd.Flags, r request) error {
	addr, err := caddycmd.DetermineAdminAPIAddress(fl.String("address"), nil, fl.String("config"), fl.String("adapter"))
	if err != nil {
		return fmt.Errorf("find the admin address: %w", err)
	}
	resp, err := caddycmd.AdminAPIRequest(addr, r.method, r.uri, nil, r.body)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	var answer bytes.Buffer
	if _, err = io.Copy(io.MultiWriter(os.Stdout, &answer), resp.Body); err != nil || r.verdict == nil {
		return err
	}
	return r.verdict(answer.Bytes())
}
