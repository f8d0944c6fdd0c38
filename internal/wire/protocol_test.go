package wire

import (
	"bytes"
	"encoding/hex"
	"flag"
	"fmt"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// These tests hold docs/protocol.md to the code: its tables, and the hex dumps
// of its worked example. After a change run with -update to rewrite the dumps,
// and read the difference.

var update = flag.Bool("update", false, "rewrite the hex dumps in docs/protocol.md")

const specFile = "../../docs/protocol.md"

func readSpec(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile(specFile)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// exampleFrames is the worked example: the label of each dump and its frame.
func exampleFrames(t *testing.T) (labels []string, frames [][]byte) {
	t.Helper()
	add := func(label string, b []byte) {
		labels, frames = append(labels, label), append(frames, b)
	}
	msg := func(typ Type, cid CID, m validator, max int) []byte {
		b, err := AppendMessage(nil, typ, cid, m, max)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	add("agent→hub HELLO", msg(TypeHello, 0, &Hello{
		Version: Version, AgentID: "premise-1", Instance: "f3a91c", Connectors: []string{"addomain"}, Window: 65536, Software: "demo/1",
	}, MaxHello))
	add("hub→agent HELLO_ACK", msg(TypeHelloAck, 0, &HelloAck{
		Version: Version, Accepted: []string{"addomain"}, PingInterval: 20000, PingTimeout: 20000, MaxSessions: 20000, Hub: "hub-1",
	}, MaxHello))
	add("hub→agent OPEN", msg(TypeOpen, 1, &Open{
		Connector: "addomain", Session: "s-7k2", Window: 65536, ConnectTimeout: 3000, Client: "10.1.2.3:50112",
	}, MaxData))
	add("hub→agent DATA", AppendFrame(nil, TypeData, 1, []byte{0x30, 0x05, 0x02, 0x01, 0x03, 0x42, 0x00}))
	add("agent→hub OPENED", AppendFrame(nil, TypeOpened, 1, nil))
	add("hub→agent FIN", AppendFrame(nil, TypeFin, 1, nil))
	add("agent→hub DATA", AppendFrame(nil, TypeData, 1, []byte("bye\n")))
	add("agent→hub FIN", AppendFrame(nil, TypeFin, 1, nil))
	add("hub→agent CREDIT", AppendCredit(nil, 2, 16384))
	add("agent→hub RST", AppendReason(nil, 2, ReasonConnectFailed, "connection refused"))
	add("agent→hub AUTH", AppendFrame(nil, TypeAuth, 0, []byte("eyJhbGciOiJFUzI1NiJ9.e30.c2ln")))
	add("hub→agent AUTH_ACK", msg(TypeAuthAck, 0, &AuthAck{ExpiresIn: 3600000, Accepted: []string{"addomain"}}, MaxData))
	add("hub→agent PING", AppendPing(nil, TypePing, 0x0102030405060708))
	add("agent→hub PONG", AppendPing(nil, TypePong, 0x0102030405060708))
	add("hub→agent DRAIN", AppendFrame(nil, TypeDrain, 0, []byte("upgrade")))
	add("hub→agent CLOSE", AppendReason(nil, 0, ReasonShutdown, ""))
	return labels, frames
}

var hexBlock = regexp.MustCompile("(?s)```hex ([^\n]*)\n(.*?)```")

// TestProtocolExample checks that each dump in the document is what the code
// encodes, and that decoding the document's bytes gives the same frame back.
func TestProtocolExample(t *testing.T) {
	spec := readSpec(t)
	labels, frames := exampleFrames(t)
	if *update {
		i := -1
		spec = hexBlock.ReplaceAllStringFunc(spec, func(string) string {
			i++
			return fmt.Sprintf("```hex %s\n%s```", labels[i], dump(frames[i]))
		})
		if err := os.WriteFile(specFile, []byte(spec), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	blocks := hexBlock.FindAllStringSubmatch(spec, -1)
	if len(blocks) != len(frames) {
		t.Fatalf("the document has %d dumps, the example %d frames", len(blocks), len(frames))
	}
	for i, b := range blocks {
		if b[1] != labels[i] {
			t.Errorf("dump %d is %q, want %q", i, b[1], labels[i])
		}
		got := undump(t, b[2])
		if !bytes.Equal(got, frames[i]) {
			t.Errorf("%s: the document has\n%s\nthe code encodes\n%s", labels[i], dump(got), dump(frames[i]))
		}
		decodeExample(t, labels[i], got)
	}
}

// decodeExample decodes one frame as a receiver does and encodes it again.
func decodeExample(t *testing.T, label string, b []byte) {
	t.Helper()
	if len(b) < HeaderLen {
		t.Fatalf("%s: %d bytes", label, len(b))
	}
	h, p := ParseHeader(b), b[HeaderLen:]
	if !strings.HasSuffix(label, " "+h.Type.String()) || int(h.Length) != len(p) {
		t.Fatalf("%s: header says %v with %d bytes, the payload has %d", label, h.Type, h.Length, len(p))
	}
	again := AppendFrame(nil, h.Type, h.CID, p)
	decode := func(m validator, max int) {
		if err := Decode(p, m); err != nil {
			t.Fatalf("%s: %v", label, err)
		}
		var err error
		if again, err = AppendMessage(nil, h.Type, h.CID, m, max); err != nil {
			t.Fatalf("%s: %v", label, err)
		}
	}
	switch h.Type {
	case TypeHello:
		decode(new(Hello), MaxHello)
	case TypeHelloAck:
		decode(new(HelloAck), MaxHello)
	default:
		if err := h.Check(); err != nil {
			t.Fatalf("%s: %v", label, err)
		}
	}
	switch h.Type {
	case TypeOpen:
		decode(new(Open), MaxData)
	case TypeAuthAck:
		decode(new(AuthAck), MaxData)
	case TypeCredit:
		again = AppendCredit(nil, h.CID, ParseCredit(p))
	case TypePing, TypePong:
		again = AppendPing(nil, h.Type, ParsePing(p))
	case TypeRst, TypeClose:
		r, msg := ParseReason(p)
		again = AppendReason(nil, h.CID, r, msg)
	}
	if !bytes.Equal(again, b) {
		t.Errorf("%s: decoded and encoded again it is\n%s", label, dump(again))
	}
}

// dump writes the header on a line of its own and then 16 bytes per line, with
// printable bytes at the side.
func dump(b []byte) string {
	var out strings.Builder
	line := func(p []byte) {
		side := strings.Map(func(r rune) rune {
			if r < ' ' || r > '~' {
				return '.'
			}
			return r
		}, string(bytesToRunes(p)))
		fmt.Fprintf(&out, "%-47s  %s\n", strings.TrimSpace(fmt.Sprintf("% x", p)), "# "+side)
	}
	n := min(len(b), HeaderLen)
	h := ParseHeader(append(slices.Clone(b[:n]), make([]byte, HeaderLen)...))
	fmt.Fprintf(&out, "%-47s  # %v, %d bytes, cid %d\n", fmt.Sprintf("% x", b[:n]), h.Type, h.Length, h.CID)
	for p := range slices.Chunk(b[n:], 16) {
		line(p)
	}
	return out.String()
}

// bytesToRunes takes each byte for a character of its own.
func bytesToRunes(p []byte) []rune {
	out := make([]rune, len(p))
	for i, c := range p {
		out[i] = rune(c)
	}
	return out
}

func undump(t *testing.T, s string) []byte {
	t.Helper()
	var out []byte
	for line := range strings.Lines(s) {
		line, _, _ = strings.Cut(line, "#")
		b, err := hex.DecodeString(strings.Join(strings.Fields(line), ""))
		if err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		out = append(out, b...)
	}
	return out
}

// specTable returns the rows of the table marked with this name, without
// header and rule.
func specTable(t *testing.T, name string) [][]string {
	t.Helper()
	_, rest, ok := strings.Cut(readSpec(t), "<!-- checked: "+name+" -->\n")
	body, _, ok2 := strings.Cut(rest, "<!-- end -->")
	if !ok || !ok2 {
		t.Fatalf("the document has no table %q", name)
	}
	var rows [][]string
	for line := range strings.Lines(body) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		for i := range cells {
			cells[i] = strings.Trim(strings.TrimSpace(cells[i]), "`")
		}
		rows = append(rows, cells)
	}
	return rows[2:]
}

// TestProtocolFrameTable compares numbers, names, bounds and the place of the
// cid.
func TestProtocolFrameTable(t *testing.T) {
	rows := specTable(t, "frames")
	if want := int(TypeAuthAck); len(rows) != want {
		t.Fatalf("%d types in the document, %d in the code", len(rows), want)
	}
	for i, row := range rows {
		typ := Type(i + 1)
		if row[0] != strconv.Itoa(int(typ)) || row[1] != typ.String() {
			t.Errorf("row %d is %v, want %d %v", i, row, typ, typ)
			continue
		}
		lo, hi := bounds(t, row[4])
		session := row[3] == "session"
		if typ == TypeHello || typ == TypeHelloAck {
			if hi != MaxHello || session {
				t.Errorf("%v: %v", typ, row)
			}
			continue
		}
		var cid, other CID
		if session {
			cid = 1
		} else {
			other = 1
		}
		for _, c := range []struct {
			h  Header
			ok bool
		}{
			{Header{typ, lo, cid}, true},
			{Header{typ, hi, cid}, true},
			{Header{typ, hi + 1, cid}, false},
			{Header{typ, lo, other}, false},
			{Header{typ, lo - 1, cid}, false},
		} {
			if lo == 0 && c.h.Length == lo-1 {
				continue
			}
			if err := c.h.Check(); (err == nil) != c.ok {
				t.Errorf("the document says that %+v is ok: %v; the code says %v", c.h, c.ok, err)
			}
		}
	}
}

func bounds(t *testing.T, s string) (lo, hi uint32) {
	t.Helper()
	a, b, isRange := strings.Cut(s, "–")
	if !isRange {
		b = a
	}
	x, err1 := strconv.ParseUint(a, 10, 32)
	y, err2 := strconv.ParseUint(b, 10, 32)
	if err1 != nil || err2 != nil {
		t.Fatalf("bounds %q", s)
	}
	return uint32(x), uint32(y)
}

func TestProtocolReasonTable(t *testing.T) {
	known := map[Reason]string{}
	for r := range 256 {
		if Reason(r).Known() {
			known[Reason(r)] = Reason(r).String()
		}
	}
	for _, row := range specTable(t, "reasons") {
		n, err := strconv.Atoi(row[0])
		if err != nil || known[Reason(n)] != row[1] {
			t.Errorf("row %v, the code has %q", row, known[Reason(n)])
		}
		delete(known, Reason(n))
	}
	if len(known) > 0 {
		t.Errorf("not in the document: %v", known)
	}
}

// TestProtocolFieldTables compares names, kinds and optionality of JSON
// fields, and the numbers in the bounds.
func TestProtocolFieldTables(t *testing.T) {
	for name, m := range map[string]any{"hello": Hello{}, "hello_ack": HelloAck{}, "open": Open{}, "auth_ack": AuthAck{}} {
		typ := reflect.TypeOf(m)
		rows := specTable(t, name)
		if len(rows) != typ.NumField() {
			t.Errorf("%s: %d fields in the document, %d in the code", name, len(rows), typ.NumField())
			continue
		}
		for i, row := range rows {
			f := typ.Field(i)
			key, opts, _ := strings.Cut(f.Tag.Get("json"), ",")
			kind, opt, _ := strings.Cut(row[1], ", ")
			if row[0] != key || (opt == "optional") != (opts == "omitempty") || !slices.Contains(kinds(f.Type), kind) {
				t.Errorf("%s: the document has %v, the code %s %s %q", name, row, f.Name, f.Type, f.Tag)
			}
		}
	}
	ok := func(v validator) bool { return v.Validate() == nil }
	hello := func(f func(*Hello)) *Hello {
		h := &Hello{Version: 1, AgentID: "a", Instance: "i", Window: 1}
		f(h)
		return h
	}
	many := make([]string, 1025)
	for i := range many {
		many[i] = fmt.Sprint("c", i)
	}
	for _, c := range []struct {
		what string
		v    validator
		ok   bool
	}{
		{"link 15", hello(func(h *Hello) { h.Link = 15 }), true},
		{"link 16", hello(func(h *Hello) { h.Link = 16 }), false},
		{"window 67108864", hello(func(h *Hello) { h.Window = 67108864 }), true},
		{"window 67108865", hello(func(h *Hello) { h.Window = 67108865 }), false},
		{"window 0", hello(func(h *Hello) { h.Window = 0 }), false},
		{"version 2", hello(func(h *Hello) { h.Version = 2 }), false},
		{"1024 connectors", hello(func(h *Hello) { h.Connectors = many[:1024] }), true},
		{"1025 connectors", hello(func(h *Hello) { h.Connectors = many }), false},
		{"name of 64 bytes", hello(func(h *Hello) { h.AgentID = strings.Repeat("x", 64) }), true},
		{"name of 65 bytes", hello(func(h *Hello) { h.AgentID = strings.Repeat("x", 65) }), false},
		{"name with a leading hyphen", hello(func(h *Hello) { h.Instance = "-x" }), false},
		{"open window 67108864", &Open{Connector: "c", Window: 67108864}, true},
		{"open window 67108865", &Open{Connector: "c", Window: 67108865}, false},
		{"session of 64 bytes", &Open{Connector: "c", Window: 1, Session: strings.Repeat("x", 64)}, true},
		{"session of 65 bytes", &Open{Connector: "c", Window: 1, Session: strings.Repeat("x", 65)}, false},
		{"message of 512 bytes", &AuthAck{Message: strings.Repeat("x", 512)}, true},
		{"message of 513 bytes", &AuthAck{Message: strings.Repeat("x", 513)}, false},
		{"negative expiry", &AuthAck{ExpiresIn: -1}, false},
		{"negative wait", &AuthAck{RetryAfter: -1}, false},
		{"negative expiry in HELLO_ACK", &HelloAck{Version: 1, ExpiresIn: -1}, false},
		{"negative timeout", &Open{Connector: "c", Window: 1, ConnectTimeout: -1}, false},
	} {
		if ok(c.v) != c.ok {
			t.Errorf("%s: the document says %v, the code %v", c.what, c.ok, c.v.Validate())
		}
	}
}

// kinds are the words that the document may use for a Go type.
func kinds(t reflect.Type) []string {
	switch t.Kind() {
	case reflect.String:
		return []string{"string", "name"}
	case reflect.Slice:
		return []string{"array of strings", "array of names"}
	case reflect.Bool:
		return []string{"boolean"}
	}
	return []string{"number"}
}
