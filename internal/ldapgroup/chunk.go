package ldapgroup

// op is one value on its way into or out of the group, for every member of
// every call that asks for it.
type op struct {
	name    name
	action  Action
	primary bool // the group is the member's primary group
	refs    []ref

	attempts int
	// lost: an earlier try had no certain answer, so the directory's "already
	// so" may speak of our own doing.
	lost    bool
	settled bool
}

// ref is a member of a call.
type ref struct {
	job   *job
	index int
}

// valueOverhead is what a value costs in a request beside its own bytes.
const valueOverhead = 6

// split cuts ops into requests of at most MaxChunkValues values and
// MaxChunkBytes bytes. The chunks share ops' memory.
func split(ops []*op) [][]*op {
	var chunks [][]*op
	for len(ops) > 0 {
		n, size := 0, 0
		for n < len(ops) && n < MaxChunkValues {
			size += len(ops[n].name.raw) + valueOverhead
			if size > MaxChunkBytes && n > 0 {
				break
			}
			n++
		}
		chunks = append(chunks, ops[:n:n])
		ops = ops[n:]
	}
	return chunks
}

// merge makes the ops of jobs: one for each value and action, in the order of
// first mention. A request that carries a value twice is refused by some
// servers and makes a corrupt group on others.
func merge(jobs []*job) (adds, removes []*op) {
	type key struct {
		name   string
		action Action
	}
	n := 0
	for _, j := range jobs {
		n += len(j.members)
	}
	seen := make(map[key]*op, n)
	// Nearly every member is an op of its own with one ref: two allocations
	// for all of them.
	ops, refs := make([]op, 0, n), make([]ref, n)
	for _, j := range jobs {
		for i, m := range j.members {
			if m.err != nil {
				continue
			}
			k := key{m.name.key, m.action}
			o := seen[k]
			if o == nil {
				at := len(ops)
				ops = append(ops, op{name: m.name, action: m.action, primary: m.primary, refs: refs[at : at : at+1]})
				o = &ops[at]
				seen[k] = o
				if m.action == Add {
					adds = append(adds, o)
				} else {
					removes = append(removes, o)
				}
			}
			o.refs = append(o.refs, ref{j, i})
		}
	}
	return adds, removes
}
