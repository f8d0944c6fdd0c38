package rules

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/ext"
	"cel.dev/cel-go/interpreter"

	"github.com/nowconnect/nowconnect/internal/authz"
)

// Bounds of an expression. A comparison costs one or two, a step of a macro a
// few; what exceeds the limit is an error, so it cannot hold up a decision.
const (
	maxExpression = 4096 // characters
	costLimit     = 10_000
)

// variable is one that expressions can use. value answers false when the
// request does not tell.
type variable struct {
	typ   *cel.Type
	value func(a *activation) (any, bool)
}

var variables = map[string]variable{
	"action":       {cel.StringType, func(a *activation) (any, bool) { return a.r.Action.Name, true }},
	"connector":    {cel.StringType, func(a *activation) (any, bool) { return a.r.Resource.ID, true }},
	"subject_type": {cel.StringType, func(a *activation) (any, bool) { return a.r.Subject.Type, true }},
	"subject_id":   {cel.StringType, func(a *activation) (any, bool) { return a.r.Subject.ID, true }},
	"group":        {cel.StringType, resource("group", "")},
	"members":      {cel.ListType(cel.StringType), resource("members", []string{})},
	"member_count": {cel.IntType, resource("member_count", 0)},
	"source_ip":    {ext.IPType, func(a *activation) (any, bool) { return a.source, a.source.IsValid() }},
	"source_port": {cel.IntType, func(a *activation) (any, bool) {
		port, ok := a.r.Context["source_port"].(int)
		return port, ok
	}},
	"time": {cel.TimestampType, func(a *activation) (any, bool) {
		t, ok := timeOf(a.r)
		return t, ok
	}},
	"listener":         {cel.StringType, required("listener")},
	"agent":            {cel.StringType, required("agent")},
	"hub":              {cel.StringType, optional("hub")},
	"sni":              {cel.StringType, optional("sni")},
	"cert_common_name": {cel.StringType, property("common_name", "")},
	"cert_subject_dn":  {cel.StringType, property("subject_dn", "")},
	"cert_issuer_dn":   {cel.StringType, property("issuer_dn", "")},
	"cert_fingerprint": {cel.StringType, property("fingerprint", "")},
	"cert_dns_names":   {cel.ListType(cel.StringType), property("dns_names", []string{})},
	"cert_uris":        {cel.ListType(cel.StringType), property("uris", []string{})},
	"cert_emails":      {cel.ListType(cel.StringType), property("emails", []string{})},
}

// required reads a string that has to be there.
func required(key string) func(*activation) (any, bool) {
	return func(a *activation) (any, bool) {
		s, ok := text(a.r, key)
		return s, ok
	}
}

// optional reads a string that is empty when the request does not have it.
func optional(key string) func(*activation) (any, bool) {
	return func(a *activation) (any, bool) {
		v, told := a.r.Context[key]
		if !told {
			return "", true
		}
		s, ok := v.(string)
		return s, ok
	}
}

// property reads what the client's certificate says. Without a certificate, or
// without such a thing in it, it is empty.
func property[T any](key string, empty T) func(*activation) (any, bool) {
	return func(a *activation) (any, bool) {
		if a.r.Subject.Type != subjectCertificate {
			return empty, true
		}
		v, told := a.r.Subject.Properties[key]
		if !told {
			return empty, true
		}
		t, ok := v.(T)
		return t, ok
	}
}

// resource reads what a request about a group says of it. A request to connect
// has nothing of it.
func resource[T any](key string, empty T) func(*activation) (any, bool) {
	return func(a *activation) (any, bool) {
		v, told := a.r.Resource.Properties[key]
		if !told {
			return empty, true
		}
		t, ok := v.(T)
		return t, ok
	}
}

// environment is what an expression may use: the variables with their types,
// CEL's own functions, and those about addresses.
var environment = sync.OnceValues(func() (*cel.Env, error) {
	options := []cel.EnvOption{
		ext.Network(),
		cel.ASTValidators(cel.ValidateDurationLiterals(), cel.ValidateTimestampLiterals(), cel.ValidateRegexLiterals()),
	}
	for name, v := range variables {
		options = append(options, cel.Variable(name, v.typ))
	}
	return cel.NewEnv(options...)
})

// expression is a compiled one. It is read-only.
type expression struct {
	program cel.Program
	time    bool // it looks at it
}

func newExpression(source string) (*expression, error) {
	if len(source) > maxExpression {
		return nil, fmt.Errorf("%d characters, at most %d", len(source), maxExpression)
	}
	env, err := environment()
	if err != nil {
		return nil, err
	}
	checked, issues := env.Compile(source)
	if issues.Err() != nil {
		var all []error
		for _, i := range issues.Errors() {
			all = append(all, at(source, i.Location.Line(), i.Location.Column(), i.Message))
		}
		return nil, errors.Join(all...)
	}
	if checked.OutputType() != cel.BoolType {
		return nil, fmt.Errorf("is a %s, not true or false", checked.OutputType())
	}
	e := new(expression)
	if err := e.inspect(checked.NativeRep(), source); err != nil {
		return nil, err
	}
	e.program, err = env.Program(checked, cel.EvalOptions(cel.OptOptimize), cel.OptimizeRegex(interpreter.MatchesRegexOptimization), cel.CostLimit(costLimit))
	return e, err
}

// at says where in an expression something is. The line is told only when
// there are several.
func at(source string, line, column int, message string) error {
	if strings.Contains(strings.TrimSpace(source), "\n") {
		return fmt.Errorf("line %d, column %d: %s", line, column+1, message)
	}
	return fmt.Errorf("column %d: %s", column+1, message)
}

// inspect notes which variables are used, and finds addresses and networks that
// are none: CEL would find them only when it gets there.
func (e *expression) inspect(tree *ast.AST, source string) error {
	for _, x := range ast.MatchDescendants(ast.NavigateAST(tree), ast.AllMatcher()) {
		switch x.Kind() {
		case ast.IdentKind:
			e.time = e.time || x.AsIdent() == "time"
		case ast.CallKind:
			if err := checkLiteral(x.AsCall()); err != nil {
				l := tree.SourceInfo().GetStartLocation(x.ID())
				return at(source, l.Line(), l.Column(), err.Error())
			}
		}
	}
	return nil
}

// checkLiteral checks what stands for an address or a network.
func checkLiteral(call ast.CallExpr) error {
	var err error
	for _, arg := range call.Args() {
		if arg.Kind() != ast.LiteralKind {
			continue
		}
		s, ok := arg.AsLiteral().(types.String)
		if !ok {
			continue
		}
		switch call.FunctionName() {
		case "ip", "containsIP":
			var a netip.Addr
			if a, err = netip.ParseAddr(string(s)); a.Is4In6() || a.Zone() != "" {
				err = fmt.Errorf("%s: write IPv4 addresses as IPv4, and no zone", s)
			}
		case "cidr", "containsCIDR":
			_, err = netip.ParsePrefix(string(s))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// eval answers whether the expression holds.
func (e *expression) eval(a *activation) (bool, error) {
	v, _, err := e.program.Eval(a)
	if err != nil {
		return false, err
	}
	b, ok := v.(types.Bool)
	if !ok {
		return false, fmt.Errorf("came to a %s", v.Type())
	}
	return bool(b), nil
}

// activation gives CEL the variables.
type activation struct {
	r      *authz.Request
	source netip.Addr
}

// ResolveName implements cel.Activation.
func (a *activation) ResolveName(name string) (any, bool) {
	v, ok := variables[name]
	if !ok {
		return nil, false
	}
	return v.value(a)
}

// Parent implements cel.Activation.
func (*activation) Parent() cel.Activation { return nil }

// Interface guards
var (
	_ cel.Activation = (*activation)(nil)
)
