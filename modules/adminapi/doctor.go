package adminapi

import (
	"encoding/json"
	"errors"
	"net/http"

	"github.com/nowconnect/nowconnect/modules/nowconnect"
)

// diagnosis tells whether what the configuration leads to is as it says.
type diagnosis struct {
	OK       bool                 `json:"ok"` // all findings are
	Findings []nowconnect.Finding `json:"findings"`
}

// doctor looks now; it may take until directories that do not answer are given
// up.
func doctor(app *nowconnect.App, r *http.Request) (any, error) {
	d := diagnosis{OK: true, Findings: app.Diagnose(r.Context())}
	for _, f := range d.Findings {
		d.OK = d.OK && f.OK
	}
	return d, nil
}

var errNotWell = errors.New("not everything is as the configuration says: see the findings that are not ok")

// wellness makes an error of a diagnosis that is not good.
func wellness(answer []byte) error {
	var d diagnosis
	if err := json.Unmarshal(answer, &d); err != nil {
		return err
	}
	if !d.OK {
		return errNotWell
	}
	return nil
}
