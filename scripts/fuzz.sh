#!/bin/sh
# fuzz.sh [TIME]: runs every fuzz target of the module for TIME (60s), one
# after the other. A package counts when one of its tests declares a target;
# go test itself lists them.
set -eu
cd "$(dirname "$0")/.."
time=${1:-60s}
ran=0
for dir in $(grep -rl --include='*_test.go' '^func Fuzz' internal modules caddyfile cmd 2>/dev/null | xargs -n1 dirname | sort -u); do
	# A list of its own, so that a package that does not compile ends the script.
	listed=$(go test -list '^Fuzz' "./$dir")
	for target in $(echo "$listed" | grep '^Fuzz'); do
		# Coverage depends on the order of goroutines too: go test would try for a
		# minute to shorten each new input, and run nothing else meanwhile.
		echo "fuzz: ./$dir $target for $time"
		go test -run '^$' -fuzz "^$target\$" -fuzztime "$time" -fuzzminimizetime 100x "./$dir"
		ran=$((ran + 1))
	done
done
# Finding none would look like passing.
[ "$ran" -gt 0 ] || { echo "fuzz: no targets found" >&2; exit 1; }
echo "fuzz: $ran targets ran"
