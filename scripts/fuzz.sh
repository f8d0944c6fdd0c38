#!/bin/sh
# fuzz.sh [TIME]: runs every fuzz target of the module for TIME (60s), two at a
# time with one worker each, which keeps two cores busy and halves the wait. A
# package counts when one of its tests declares a target; go test itself lists
# them. What a target prints comes whole, when it is done. All run, also when one
# has failed.
set -eu
cd "$(dirname "$0")/.."
time=${1:-60s}
export time
targets=
for dir in $(grep -rl --include='*_test.go' '^func Fuzz' internal modules caddyfile cmd 2>/dev/null | xargs -n1 dirname | sort -u); do
	# A list of its own, so that a package that does not compile ends the script.
	listed=$(go test -list '^Fuzz' "./$dir")
	for target in $(echo "$listed" | grep '^Fuzz'); do
		targets="$targets $dir $target"
	done
done
# Finding none would look like passing.
[ -n "$targets" ] || { echo "fuzz: no targets found" >&2; exit 1; }
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
export logs
# shellcheck disable=SC2016,SC2086 # the script's own arguments; a list of words
printf '%s\n' $targets | xargs -n 2 -P 2 sh -c '
	log=$logs/$2
	result=0
	# Coverage depends on the order of goroutines too: go test would try for a
	# minute to shorten each new input, and run nothing else meanwhile.
	go test -run "^$" -fuzz "^$2\$" -fuzztime "$time" -fuzzminimizetime 100x -parallel 1 "./$1" >"$log" 2>&1 || result=1
	# go test can miss its own end (golang/go#75804, fixed in Go 1.27): it calls it a
	# failure that the time is up, in these words and without an input. What a target
	# finds has another text, and the input that it fails with.
	if [ $result = 1 ] && [ "$(grep -A1 -e "^--- FAIL" "$log" | tail -n 1)" = "    context deadline exceeded" ] &&
		! grep -q -e "Failing input" -e "^panic" -e "DATA RACE" "$log"; then
		echo "fuzz: the time was up while a worker answered; no input failed" >>"$log"
		result=0
	fi
	{ echo "fuzz: ./$1 $2 for $time"; cat "$log"; } >"$log.whole"
	cat "$log.whole"
	exit $result
' fuzz || { echo "fuzz: a target failed, see above" >&2; exit 1; }
echo "fuzz: $(($(echo $targets | wc -w) / 2)) targets ran"
