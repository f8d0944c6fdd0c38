package tunnel

import (
	"errors"
	"fmt"
	"strings"

	"github.com/nowconnect/nowconnect/internal/wire"
)

// SendAuth offers the hub a fresh bearer token for the agent's link. The
// caller sees to it that the hub wants such frames and has answered the one
// before. It fails when the token is too long for a frame or the link is over.
func (l *Link) SendAuth(token string) error {
	if n := len(token); n == 0 || n > wire.MaxData {
		return fmt.Errorf("send AUTH: token of %d bytes: %w", n, wire.ErrFrameTooLong)
	}
	return l.out.frame(soon, func(b []byte) []byte { return wire.AppendFrame(b, wire.TypeAuth, 0, []byte(token)) })
}

// AnswerAuth answers an AUTH frame on the hub. Names of connectors that do
// not fit into the answer are left out. It may be called on the link's reader.
func (l *Link) AnswerAuth(a wire.AuthAck) error {
	// A cut character would grow in JSON.
	a.Message = strings.ToValidUTF8(a.Message[:min(len(a.Message), wire.MaxMessage)], "")
	b, err := wire.AppendMessage(nil, wire.TypeAuthAck, 0, &a, wire.MaxData)
	if errors.Is(err, wire.ErrFrameTooLong) {
		a.Accepted, a.Refused = nil, nil
		b, err = wire.AppendMessage(nil, wire.TypeAuthAck, 0, &a, wire.MaxData)
	}
	if err != nil {
		return fmt.Errorf("answer AUTH: %w", err)
	}
	return l.out.frame(soon, func(out []byte) []byte { return append(out, b...) })
}
