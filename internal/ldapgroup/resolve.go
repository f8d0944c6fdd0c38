package ldapgroup

import (
	"context"
	"errors"
)

// Resolve returns the name under which the directory keeps a group that the
// configuration allows.
func (e *Engine) Resolve(ctx context.Context, group string) (string, error) {
	return "", errors.ErrUnsupported
}
