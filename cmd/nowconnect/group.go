package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/signal"
	"syscall"
	"time"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"

	"github.com/nowconnect/nowconnect/internal/groupapi"
)

// The exit codes of the group commands. They are part of the promise. 2 is
// Caddy's.
const (
	exitDone        = 0
	exitUsage       = 1 // wrong words, unreadable files, no credential
	exitRefused     = 3 // the service said no: 4xx
	exitUnavailable = 4 // not reached, or 5xx after several tries
	exitIncomplete  = 5 // some members are not in the state asked for
)

const groupHelp = `
Reads and changes group memberships through the HTTP API of a hub (the handler
ldap_admin). Every change may be repeated: members are made present or absent,
and for each it is told what was found and what was done.

The API's address and the caller's credential:

  --url            or NOWCONNECT_API_URL, such as https://hub.example.com/ldap
  --user           or NOWCONNECT_API_USER, with a password from --password-file,
                   NOWCONNECT_API_PASSWORD_FILE or NOWCONNECT_API_PASSWORD
  --token-file     or NOWCONNECT_API_TOKEN_FILE or NOWCONNECT_API_TOKEN, a bearer token
  --cert, --key    or NOWCONNECT_API_CERT, NOWCONNECT_API_KEY, a client certificate
  --ca             or NOWCONNECT_API_CA, authorities to trust besides the system's

There is no flag for a secret itself: other users of the machine would see it.
Credentials go over https only, or to a loopback address.

Exit status:

  0  every member is in the state asked for
  1  wrong usage, a file that cannot be read, no credential
  3  the service refused (not allowed, no such group, last member, ...)
  4  the service or the directory cannot be reached; try again
  5  some members are in the state asked for and some are not
`

func init() {
	caddycmd.RegisterCommand(caddycmd.Command{
		Name:  "group",
		Usage: "members|add|remove|sync",
		Short: "Reads and changes group memberships through a hub",
		Long:  groupHelp,
		CobraFunc: func(parent *cobra.Command) {
			parent.AddCommand(groupMembersCommand(), groupAddCommand(), groupRemoveCommand(), groupSyncCommand())
		},
	})
}

func groupMembersCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "members <group>",
		Short: "Lists a group's members",
		Long:  "Lists a group's members, one a line, or with --json as one JSON object.\n" + groupHelp,
		Args:  cobra.ExactArgs(1),
	}
	return groupCommand(cmd, func(ctx context.Context, g *groupRun, args []string) error {
		return g.members(ctx, args[0])
	})
}

func groupAddCommand() *cobra.Command {
	return groupChangeCommand(&cobra.Command{
		Use:   "add <group> [<member>...] [--file <path>]",
		Short: "Makes members of a group",
	}, "Makes entries members of a group.", false)
}

func groupRemoveCommand() *cobra.Command {
	return groupChangeCommand(&cobra.Command{
		Use:   "remove <group> [<member>...] [--file <path>]",
		Short: "Takes members out of a group",
	}, "Takes entries out of a group.", true)
}

const fileHelp = `
Names are DNs, or user names for a posixGroup. A file has one a line; empty lines
and lines that begin with # are left out; - is standard input.
`

func groupChangeCommand(cmd *cobra.Command, long string, remove bool) *cobra.Command {
	cmd.Long = long + "\n" + fileHelp + groupHelp
	cmd.Args = cobra.MinimumNArgs(1)
	file := cmd.Flags().String("file", "", "Read members from this file, or from - standard input")
	dry := cmd.Flags().Bool("dry-run", false, "Tell what would be done, and write nothing")
	return groupCommand(cmd, func(ctx context.Context, g *groupRun, args []string) error {
		members, err := membersOf(g.in, args[1:], *file)
		if err != nil {
			return err
		}
		return g.change(ctx, args[0], members, remove, *dry)
	})
}

func groupSyncCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "sync <group> --file <path>",
		Short: "Makes a list of members the group's members, and nobody else",
		Long: `
Makes the members in the file the group's members, and nobody else. The hub's
configuration must allow it for the group (replace). The set is read first, and
nothing is changed if somebody else changes it meanwhile.

Without --force an empty file is refused, and so is removing a larger share of
the group than the configuration allows (max_removals).
` + fileHelp + groupHelp,
		Args: cobra.ExactArgs(1),
	}
	file := cmd.Flags().String("file", "", "Read members from this file, or from - standard input (required)")
	dry := cmd.Flags().Bool("dry-run", false, "Tell what would be done, and write nothing")
	force := cmd.Flags().Bool("force", false, "Allow an empty set, and any number of removals")
	return groupCommand(cmd, func(ctx context.Context, g *groupRun, args []string) error {
		if *file == "" {
			return errors.New("--file is missing")
		}
		members, err := readMembers(g.in, *file)
		if err != nil {
			return err
		}
		return g.sync(ctx, args[0], members, *dry, *force)
	})
}

// groupCommand gives a command the flags that all have, and runs it.
func groupCommand(cmd *cobra.Command, run func(context.Context, *groupRun, []string) error) *cobra.Command {
	var o apiOptions
	f := cmd.Flags()
	f.StringVar(&o.url, "url", "", "`url` of the API, such as https://hub.example.com/ldap")
	f.StringVar(&o.user, "user", "", "`name` for basic authentication")
	f.StringVar(&o.passwordFile, "password-file", "", "`file` with the password")
	f.StringVar(&o.tokenFile, "token-file", "", "`file` with a bearer token")
	f.StringVar(&o.cert, "cert", "", "`file` with a client certificate (PEM)")
	f.StringVar(&o.key, "key", "", "`file` with its key (PEM)")
	f.StringVar(&o.ca, "ca", "", "`file` with authorities to trust besides the system's (PEM)")
	timeout := f.Duration("timeout", 10*time.Minute, "How long the whole command may take")
	asJSON := f.Bool("json", false, "Write JSON")
	quiet := f.Bool("quiet", false, "Show no progress")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		cmd.SilenceUsage, cmd.SilenceErrors = true, true
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
		defer stop()
		ctx, cancel := context.WithTimeout(ctx, *timeout)
		defer cancel()
		g := &groupRun{
			in: cmd.InOrStdin(), out: cmd.OutOrStdout(), err: cmd.ErrOrStderr(), json: *asJSON,
			progress: !*quiet && isTerminal(cmd.ErrOrStderr()),
		}
		err := o.fromEnvironment(os.Getenv)
		if err == nil {
			g.api, err = o.client()
		}
		if err == nil {
			err = run(ctx, g, args)
		}
		return exit(cmd, g.err, err)
	}
	return cmd
}

// exit tells what went wrong and makes the exit status of it.
func exit(cmd *cobra.Command, to io.Writer, err error) error {
	code := exitCode(err)
	if code == exitDone {
		return nil
	}
	if !errors.Is(err, errIncomplete) {
		fmt.Fprintf(to, "%s: %v\n", cmd.CommandPath(), err)
	}
	if code == exitUsage {
		return err
	}
	return caddycmd.WrapCommandFuncForCobra(func(caddycmd.Flags) (int, error) { return code, nil })(cmd, nil)
}

// errIncomplete ends a command whose table shows what is not as it should be.
var errIncomplete = errors.New("some members are not in the state asked for")

func exitCode(err error) int {
	var p *groupapi.Problem
	var u *url.Error
	switch {
	case err == nil:
		return exitDone
	case errors.Is(err, errIncomplete):
		return exitIncomplete
	case errors.As(err, &p) && p.Status >= 500:
		return exitUnavailable
	case errors.As(err, &p):
		return exitRefused
	case errors.As(err, &u), errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled), errors.Is(err, io.ErrUnexpectedEOF):
		return exitUnavailable
	}
	return exitUsage
}
