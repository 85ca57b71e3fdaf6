#!/bin/sh
# SPDX-License-Identifier: MIT
# check_run.sh MIN PROGRAM [ARGUMENT...]: run a test program and judge it.
#
# It passes if its exit status is 0, at least MIN cases ran, none failed, and no sanitizer printed a
# report. The count is needed because a filter that matches nothing is a success to Criterion; the
# look for reports, because not every report changes the exit status of its worker processes.
set -u

min=$1
shift
log=$(mktemp "${TMPDIR:-/tmp}/cowsnap-test.XXXXXX") || exit 2
trap 'rm -f "$log"' EXIT
trap 'exit 130' INT TERM

"$@" >"$log" 2>&1
status=$?

verdict() {
	cat "$log"
	echo "check_run: $1"
	exit 1
}

[ "$status" -eq 0 ] || verdict "exit status $status"
reports='ERROR: (Address|Leak|Thread)Sanitizer|WARNING: ThreadSanitizer|runtime error:'
if grep -qE "$reports" "$log"; then
	verdict "a sanitizer reported something"
fi
line=$(grep 'Synthesis: Tested: ' "$log" | tail -n 1)
[ -n "$line" ] || verdict "no closing line"
ran=$(echo "$line" | sed 's/\x1b\[[0-9;]*m//g' | sed -n 's/.*Tested: \([0-9]*\) .*/\1/p')
bad=$(echo "$line" | sed 's/\x1b\[[0-9;]*m//g' |
	sed -n 's/.*Failing: \([0-9]*\) .*Crashing: \([0-9]*\).*/\1 \2/p')
[ "${ran:-0}" -ge "$min" ] || verdict "${ran:-0} tests ran, at least $min must"
[ "$bad" = "0 0" ] || verdict "failing and crashing: $bad"
tail -n 3 "$log"
