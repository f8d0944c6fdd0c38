package ldapgroup

import "context"

// Resolve returns the name under which the directory keeps a group that the
// configuration allows. Who decides by names asks for it first: the directory
// may take a name for the group's that no comparison of names would.
func (e *Engine) Resolve(ctx context.Context, group string) (canonical string, err error) {
	const op = "find group"
	ctx, end, err := e.begin(ctx, op, group)
	if err != nil {
		return "", err
	}
	defer end()
	if _, refused := e.allowed(op, group); refused != nil {
		return "", refused
	}
	s := e.session(ctx)
	defer s.close()
	g, _, err := s.resolve(op, group)
	if err != nil {
		return "", err
	}
	return g.name.raw, nil
}
