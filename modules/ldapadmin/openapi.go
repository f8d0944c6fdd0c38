package ldapadmin

import (
	"bytes"
	_ "embed"
	"net/http"

	"github.com/nowconnect/nowconnect/internal/groupapi"
)

// specification is the OpenAPI document, for the default prefix.
//
//go:embed openapi.json
var specification []byte

// specResponse is the document for an API below prefix.
func specResponse(prefix string) *response {
	body := specification
	if prefix != defaultPrefix {
		body = bytes.Replace(body, []byte(`"url": "`+defaultPrefix+`"`), []byte(`"url": "`+prefix+`"`), 1)
	}
	return &response{status: http.StatusOK, header: http.Header{"Content-Type": {groupapi.TypeJSON}}, body: body}
}
