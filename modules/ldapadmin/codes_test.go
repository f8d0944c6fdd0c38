package ldapadmin

import (
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"testing"

	"go.uber.org/zap"

	"github.com/nowconnect/nowconnect/internal/ldapgroup"
)

// No answer that is the service's or the directory's fault goes without the
// time after which to come back, whichever way it is made.
func TestEveryServerErrorHasRetryAfter(t *testing.T) {
	h := &Handler{logger: zap.NewNop()}
	problems := map[string]*problem{
		"unknown error": engineProblem(errors.New("x")),
		"route":         routeProblem(errors.New("x")),
		"no class":      engineProblem(&ldapgroup.Error{Class: "new"}),
	}
	for class := range statuses {
		problems[string(class)] = engineProblem(&ldapgroup.Error{Class: class})
		problems["unknown after "+string(class)] = sameFailure([]ldapgroup.MemberResult{{Outcome: ldapgroup.Unknown, Err: &ldapgroup.Error{Class: class}}})
	}
	server := 0
	for name, p := range problems {
		r := h.refuse(&request{Request: httptest.NewRequest("GET", "/", nil)}, p)
		seconds, err := strconv.Atoi(r.header.Get("Retry-After"))
		if r.status >= 500 {
			server++
			if err != nil || seconds < 1 {
				t.Errorf("%s: %d with Retry-After %q", name, r.status, r.header.Get("Retry-After"))
			}
		}
	}
	if server < 10 {
		t.Errorf("%d answers were server errors", server)
	}
	if r := answer(200, "x", func() {}); r.status != 500 || r.header.Get("Retry-After") == "" {
		t.Errorf("what cannot be encoded: %d %v", r.status, r.header)
	}
}

// The codes in the document are ours and the engine's classes, no more and no
// fewer.
func TestDocumentListsTheCodes(t *testing.T) {
	var codes []string
	f, err := parser.ParseFile(token.NewFileSet(), "problem.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	ast.Inspect(f, func(n ast.Node) bool {
		if v, ok := n.(*ast.ValueSpec); ok && strings.HasPrefix(v.Names[0].Name, "code") {
			s, err := strconv.Unquote(v.Values[0].(*ast.BasicLit).Value)
			if err != nil {
				t.Fatal(err)
			}
			codes = append(codes, s)
		}
		return true
	})
	for class := range statuses {
		codes = append(codes, string(class))
		if details[class] == "" {
			t.Errorf("nothing is said about %s", class)
		}
	}
	slices.Sort(codes)
	codes = slices.Compact(codes)
	var spec struct {
		Components struct {
			Schemas struct {
				Problem struct {
					Properties struct {
						Code struct {
							Enum []string `json:"enum"`
						} `json:"code"`
					} `json:"properties"`
				} `json:"Problem"`
			} `json:"schemas"`
		} `json:"components"`
	}
	if err := json.Unmarshal(specification, &spec); err != nil {
		t.Fatal(err)
	}
	if got := spec.Components.Schemas.Problem.Properties.Code.Enum; !slices.Equal(got, codes) {
		t.Errorf("the document has\n%q, the code\n%q", got, codes)
	}
}
