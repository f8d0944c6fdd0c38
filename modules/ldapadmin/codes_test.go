package ldapadmin

import (
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"slices"
	"strconv"
	"strings"
	"testing"
)

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
