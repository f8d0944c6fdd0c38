package groupapi

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"unicode/utf8"
)

// MaxSegment bounds a path segment as sent, in bytes. Every byte of the longest
// DN may be encoded as three.
const MaxSegment = 3 * maxDN

// maxDN is the longest DN that the API takes, in bytes.
const maxDN = 2048

// DecodeSegment decodes one path segment. What still looks encoded afterwards was
// encoded twice, and guessing which layer is meant would be a way around the
// allow-lists of whatever stands in front.
func DecodeSegment(s string) (string, error) {
	if len(s) > MaxSegment {
		return "", errors.New("too long")
	}
	v, err := url.PathUnescape(s)
	switch {
	case err != nil:
		return "", errors.New("not percent-encoded")
	case v == "":
		return "", errors.New("empty")
	case !utf8.ValidString(v):
		return "", errors.New("not UTF-8")
	case encodedAgain(v):
		return "", errors.New("percent-encoded twice")
	}
	return v, nil
}

// encodedAgain reports whether v holds a percent sign with two hex digits.
func encodedAgain(v string) bool {
	for i := 0; i+2 < len(v); i++ {
		if v[i] == '%' && isHex(v[i+1]) && isHex(v[i+2]) {
			return true
		}
	}
	return false
}

func isHex(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'f' || 'A' <= c && c <= 'F'
}

// DecodeLists reads an object of lists of strings into the fields of those
// names; what the object does not have stays nil. Unlike encoding/json alone
// it refuses fields twice, in another case, null, what is not UTF-8, and anything
// after the object: what is misread here adds or removes somebody. More than max
// strings in all are [ErrTooMany] before they are held: a few bytes of a body
// make ten times as many of memory.
func DecodeLists(body []byte, fields map[string]*[]string, max int) error {
	if !utf8.Valid(body) { // else the decoder would put another character in its place
		return errors.New("the body is not UTF-8")
	}
	d := json.NewDecoder(bytes.NewReader(body))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return errors.New("the body is not a JSON object")
	}
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return errors.New("the body is not JSON")
		}
		name, _ := t.(string)
		to := fields[name]
		if to == nil {
			return fmt.Errorf("the body has an unknown field %q", name)
		}
		if *to != nil {
			return fmt.Errorf("the body has the field %q twice", name)
		}
		if *to, err = decodeList(d, max); errors.Is(err, ErrTooMany) {
			return err
		}
		if err != nil {
			return fmt.Errorf("the field %q is not a list of strings", name)
		}
		max -= len(*to)
	}
	if _, err := d.Token(); err != nil {
		return errors.New("the body is not JSON")
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("the body goes on after the object")
	}
	return nil
}

// ErrTooMany is a body with more strings than allowed.
var ErrTooMany = errors.New("more strings than allowed")

var errNoList = errors.New("not a list of strings")

// decodeList reads a list, which is not nil, of at most max strings.
func decodeList(d *json.Decoder, max int) ([]string, error) {
	if t, err := d.Token(); err != nil || t != json.Delim('[') {
		return nil, errNoList
	}
	list := []string{}
	for d.More() {
		if len(list) == max {
			return nil, ErrTooMany
		}
		t, err := d.Token()
		s, ok := t.(string)
		if err != nil || !ok {
			return nil, errNoList
		}
		list = append(list, s)
	}
	_, err := d.Token()
	return list, err
}
