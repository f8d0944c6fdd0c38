package wire

import (
	"errors"
	"strings"
	"testing"
)

func TestHeaderCheck(t *testing.T) {
	for _, c := range []struct {
		h    Header
		want error
	}{
		{Header{TypeData, 1, 1}, nil},
		{Header{TypeData, MaxData, 1}, nil},
		{Header{TypeData, MaxData + 1, 1}, ErrFrameTooLong},
		{Header{TypeData, 0, 1}, ErrBadFrame},
		{Header{TypeData, 1, 0}, ErrBadFrame},
		{Header{TypeFin, 0, 1}, nil},
		{Header{TypeFin, 1, 1}, ErrBadFrame},
		{Header{TypePing, 8, 0}, nil},
		{Header{TypePing, 8, 1}, ErrBadFrame},
		{Header{TypeHello, 10, 0}, ErrBadFrame},
		{Header{0, 0, 0}, ErrUnknownFrame},
		{Header{0x7f, 0, 0}, ErrUnknownFrame},
		{Header{0x80, 100, 0}, nil},
		{Header{0xff, MaxData, 9}, nil},
		{Header{0xff, MaxData + 1, 9}, ErrFrameTooLong},
		{Header{TypeRst, 1 + MaxMessage, 9}, nil},
		{Header{TypeRst, 2 + MaxMessage, 9}, ErrBadFrame},
	} {
		if err := c.h.Check(); !errors.Is(err, c.want) {
			t.Errorf("%+v: %v, want %v", c.h, err, c.want)
		}
	}
}

func TestCheckNameRefusesWhatCouldConfuse(t *testing.T) {
	for _, s := range []string{"addomain", "AD.domain-1_x", "a", strings.Repeat("x", MaxName), "_x"} {
		if err := CheckName(s); err != nil {
			t.Errorf("%q: %v", s, err)
		}
	}
	for _, s := range []string{"", ".", "-x", "a b", "a/b", "ä", "a\x00", "a\n", "аdmin", "a:b", "[::1]", strings.Repeat("x", MaxName+1)} {
		if CheckName(s) == nil {
			t.Errorf("%q is accepted", s)
		}
	}
}

func TestHelloNamesTheFaultyField(t *testing.T) {
	good := Hello{Version: 1, AgentID: "a", Instance: "i", Window: 1, Connectors: []string{"c"}}
	if err := good.Validate(); err != nil {
		t.Fatal(err)
	}
	for field, spoil := range map[string]func(*Hello){
		"version":    func(h *Hello) { h.Version = 2 },
		"agent_id":   func(h *Hello) { h.AgentID = "" },
		"instance":   func(h *Hello) { h.Instance = "a b" },
		"link":       func(h *Hello) { h.Link = MaxLinks },
		"window":     func(h *Hello) { h.Window = 0 },
		"connectors": func(h *Hello) { h.Connectors = []string{"c", "c"} },
	} {
		h := good
		spoil(&h)
		if err := h.Validate(); err == nil || !strings.Contains(err.Error(), field) {
			t.Errorf("%s: %v", field, err)
		}
	}
}

func TestReasonsAreAClosedSet(t *testing.T) {
	want := "fin rst no_agent denied pdp_error connect_failed connect_timeout limit draining link_lost overflow idle revoked shutdown"
	var got []string
	for _, r := range SessionReasons() {
		got = append(got, r.String())
	}
	if s := strings.Join(got, " "); s != want {
		t.Errorf("session reasons %q, want %q", s, want)
	}
	if r, msg := ParseReason([]byte{200, 'x'}); r != ReasonUnknown || msg != "x" {
		t.Errorf("got %v %q", r, msg)
	}
	if b := AppendReason(nil, 1, ReasonRst, strings.Repeat("m", 9999)); ParseHeader(b).Check() != nil {
		t.Error("a long message makes an illegal frame")
	}
}

func TestCodecDoesNotAllocate(t *testing.T) {
	b := make([]byte, 0, 64)
	n := testing.AllocsPerRun(1000, func() {
		b = AppendCredit(b[:0], 7, 1<<20)
		h := ParseHeader(b)
		if h.Check() != nil || ParseCredit(b[HeaderLen:]) != 1<<20 {
			t.Error("credit")
		}
		Header{Type: TypeData, Length: 9, CID: 3}.Put(b[:HeaderLen])
	})
	if n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkHeader(b *testing.B) {
	buf := make([]byte, HeaderLen)
	b.ReportAllocs()
	for b.Loop() {
		Header{Type: TypeData, Length: MaxData, CID: 3}.Put(buf)
		if h := ParseHeader(buf); h.Check() != nil {
			b.Fatal("bad")
		}
	}
}

// frames are what moves all the time, and OPEN, which comes once per session.
var frames = []struct {
	name   string
	encode func(b []byte) []byte
	decode func(p []byte) bool
}{
	{"data", func(b []byte) []byte { return AppendHeader(b, Header{Type: TypeData, Length: 0, CID: 3}) }, func([]byte) bool { return true }},
	{"credit", func(b []byte) []byte { return AppendCredit(b, 7, 1<<20) }, func(p []byte) bool { return ParseCredit(p) == 1<<20 }},
	{"fin", func(b []byte) []byte { return AppendHeader(b, Header{Type: TypeFin, CID: 3}) }, func([]byte) bool { return true }},
	{"ping", func(b []byte) []byte { return AppendPing(b, TypePing, 42) }, func(p []byte) bool { return ParsePing(p) == 42 }},
	{"rst", func(b []byte) []byte { return AppendReason(b, 3, ReasonRst, "") }, func(p []byte) bool { r, _ := ParseReason(p); return r == ReasonRst }},
}

func TestFramesDoNotAllocate(t *testing.T) {
	b := make([]byte, 0, 64)
	for _, f := range frames {
		n := testing.AllocsPerRun(1000, func() {
			b = f.encode(b[:0])
			if h := ParseHeader(b); h.CID == 0 && f.name != "ping" || !f.decode(b[HeaderLen:]) {
				t.Error(f.name)
			}
		})
		if n != 0 {
			t.Errorf("%s: %v allocations", f.name, n)
		}
	}
}

func BenchmarkFrames(b *testing.B) {
	for _, f := range frames {
		b.Run("encode "+f.name, func(b *testing.B) {
			buf := make([]byte, 0, 64)
			b.ReportAllocs()
			for b.Loop() {
				buf = f.encode(buf[:0])
			}
		})
		b.Run("decode "+f.name, func(b *testing.B) {
			buf := f.encode(nil)
			b.ReportAllocs()
			for b.Loop() {
				if h := ParseHeader(buf); h.HeaderTooLong() || !f.decode(buf[HeaderLen:]) {
					b.Fatal("bad")
				}
			}
		})
	}
	open := &Open{Connector: "addomain", Session: "hub-1/123456", Window: 64 << 10, Client: "192.0.2.7:51234"}
	b.Run("encode open", func(b *testing.B) {
		buf := make([]byte, 0, 512)
		b.ReportAllocs()
		for b.Loop() {
			if _, err := AppendMessage(buf[:0], TypeOpen, 3, open, MaxData); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("decode open", func(b *testing.B) {
		buf, err := AppendMessage(nil, TypeOpen, 3, open, MaxData)
		if err != nil {
			b.Fatal(err)
		}
		b.ReportAllocs()
		for b.Loop() {
			var o Open
			if err := Decode(buf[HeaderLen:], &o); err != nil {
				b.Fatal(err)
			}
		}
	})
}
