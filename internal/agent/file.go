package agent

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
)

// maxFile bounds the configuration file in bytes.
const maxFile = 1 << 20

// loadFile reads the one configuration file. JSON needs no reader of its own:
// it is YAML.
func (l *loader) loadFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("configuration file: %w", err)
	}
	defer f.Close()
	src, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return fmt.Errorf("configuration file: %w", err)
	}
	if len(src) > maxFile {
		return fmt.Errorf("configuration file: %s has more than %d bytes", path, maxFile)
	}
	return l.parseFile(path, strings.TrimPrefix(string(src), "\ufeff"))
}

func (l *loader) parseFile(path, src string) error {
	file, err := parser.ParseBytes([]byte(src), 0)
	if err != nil {
		var at yaml.Error
		if errors.As(err, &at) && at.GetToken() != nil {
			return fmt.Errorf("%s:%d: %s", path, at.GetToken().Position.Line, at.GetMessage())
		}
		return fmt.Errorf("%s: %w", path, err)
	}
	w := fileWalk{l, path}
	var docs []ast.Node
	for _, d := range file.Docs {
		if d.Body != nil {
			docs = append(docs, d.Body)
		}
	}
	if len(docs) > 1 {
		return fmt.Errorf("%s:%d: a second document; the configuration is one", path, line(docs[1]))
	}
	if len(docs) == 1 {
		w.section(docs[0], "")
	}
	return nil
}

// fileWalk takes a parsed file apart. It walks the syntax tree instead of
// decoding into structs, so that each value keeps its line for messages that
// come later.
type fileWalk struct {
	*loader
	path string
}

// at names a node for messages: file, line and key.
func (w fileWalk) at(n ast.Node, key string) string {
	return fmt.Sprintf("%s:%d: %s", w.path, line(n), key)
}

func line(n ast.Node) int { return n.GetToken().Position.Line }

// section reads the mapping n, whose keys lie under prefix ("" or "tunnel.").
func (w fileWalk) section(n ast.Node, prefix string) {
	for _, e := range w.entries(n, strings.TrimSuffix(prefix, ".")) {
		key := prefix + e.key
		i := slices.IndexFunc(settings, func(s setting) bool { return s.key == key })
		switch {
		case i >= 0:
			if v, ok := w.scalar(e.value, key); ok {
				w.apply(&settings[i], v, w.at(e.node, key))
			}
		case key == "targets":
			w.targets(e.value)
		case len(keysUnder(key+".")) > 0:
			w.section(e.value, key+".")
		default:
			w.fail(w.at(e.node, key), "unknown key; known here: %s", strings.Join(keysUnder(prefix), ", "))
		}
	}
}

// keysUnder lists the keys that may follow prefix.
func keysUnder(prefix string) []string {
	var keys []string
	if prefix == "" {
		keys = append(keys, "targets")
	}
	for _, s := range settings {
		if rest, ok := strings.CutPrefix(s.key, prefix); ok && s.key != "" {
			k, _, _ := strings.Cut(rest, ".")
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	return slices.Compact(keys)
}

// targets reads the mapping of connectors to host and port.
func (w fileWalk) targets(n ast.Node) {
	for _, e := range w.entries(n, "targets") {
		key := "targets." + e.key
		if _, ok := w.d.Targets[e.key]; ok {
			w.fail(w.at(e.node, key), "this connector already has a target; keep one")
			continue
		}
		w.origin[key] = w.at(e.node, key)
		var t Target
		if _, ok := e.value.(*ast.StringNode); ok { // host:port in one
			v, _ := w.scalar(e.value, key)
			var err error
			if t, err = parseTarget(v); err != nil {
				w.fail(w.at(e.node, key), "%w", err)
			}
			w.d.Targets[e.key] = t
			continue
		}
		for _, f := range w.entries(e.value, key) {
			field := key + "." + f.key
			v, ok := w.scalar(f.value, field)
			switch {
			case !ok || v == "":
			case f.key == "host":
				w.setHost(&t, e.key, v, w.at(f.node, field))
			case f.key == "port":
				w.setPort(&t, e.key, v, w.at(f.node, field))
			default:
				w.fail(w.at(f.node, field), "unknown key; known here: host, port")
			}
		}
		w.d.Targets[e.key] = t
	}
}

// entry is one key of a mapping.
type entry struct {
	key   string
	node  ast.Node // the key, for its line
	value ast.Node
}

// entries lists a mapping's keys; no value at all is an empty mapping.
func (w fileWalk) entries(n ast.Node, key string) []entry {
	var pairs []*ast.MappingValueNode
	switch n := n.(type) {
	case *ast.NullNode:
	case *ast.MappingNode:
		pairs = n.Values
	case *ast.MappingValueNode:
		pairs = []*ast.MappingValueNode{n}
	default:
		if key == "" {
			key = "the configuration"
		}
		w.fail(w.at(n, key), "must be a mapping of keys to values, not %s", kind(n))
	}
	var out []entry
	for _, p := range pairs {
		k, ok := w.scalar(p.Key, key)
		if _, merge := p.Key.(*ast.MergeKeyNode); merge || !ok {
			continue
		}
		out = append(out, entry{k, p.Key, p.Value})
	}
	return out
}

// scalar returns a single value as text; a list becomes a comma list, for the
// settings that take one. Anchors, aliases, merges and tags are refused: a
// file of this size needs none, and each is a way to misread it.
func (w fileWalk) scalar(n ast.Node, key string) (string, bool) {
	switch n := n.(type) {
	case *ast.NullNode:
		return "", true
	case *ast.StringNode:
		return n.Value, true
	case *ast.LiteralNode:
		return n.Value.Value, true
	case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode:
		return n.GetToken().Value, true
	case *ast.SequenceNode:
		return w.list(n, key)
	}
	w.fail(w.at(n, key), "must be a single value, not %s", kind(n))
	return "", false
}

func (w fileWalk) list(n *ast.SequenceNode, key string) (string, bool) {
	i := slices.IndexFunc(settings, func(s setting) bool { return s.key == key })
	if i < 0 || settings[i].name != "connectors" {
		w.fail(w.at(n, key), "must be a single value, not a list")
		return "", false
	}
	var words []string
	for _, v := range n.Values {
		s, ok := v.(*ast.StringNode)
		if !ok {
			w.fail(w.at(v, key), "must be a list of names, not of %s", kind(v))
			return "", false
		}
		words = append(words, s.Value)
	}
	return strings.Join(words, ","), true
}

func kind(n ast.Node) string {
	switch n.(type) {
	case *ast.MappingNode, *ast.MappingValueNode:
		return "a mapping"
	case *ast.SequenceNode:
		return "a list"
	case *ast.AnchorNode, *ast.AliasNode, *ast.MergeKeyNode:
		return "an anchor or alias"
	case *ast.TagNode:
		return "a tagged value"
	}
	return "a single value"
}
