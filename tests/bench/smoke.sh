#!/bin/sh
# SPDX-License-Identifier: MIT
# smoke.sh BENCH SCENARIO: a quick run gives well-formed JSON with figures in every group. What the
# figures are is not looked at.
# smoke.sh BENCH arguments: wrong arguments end with status 64 and a hint, and nothing is measured.
set -u

bench=$1
scenario=$2

fail() {
	echo "smoke.sh: $1"
	exit 1
}

refused() {
	out=$("$bench" "$@" 2>&1)
	status=$?
	[ "$status" -eq 64 ] || fail "'$*' ended with $status, not 64"
	echo "$out" | grep -q -e '--usage' || fail "'$*' was refused without a hint"
}

if [ "$scenario" = arguments ]; then
	refused
	refused no-such-scenario
	refused hook take
	refused hook --no-such-option
	refused hook --repeat=0
	refused hook --repeat=-1
	refused hook --repeat=1x
	refused hook --repeat=
	refused hook --threads=1
	refused hook --threads=99999999999999999999
	refused hook --allocator=none
	"$bench" hook --quick --variant=matches-nothing >/dev/null 2>&1 &&
		fail "no variant, but status 0"
	"$bench" hook --quick --variant=no-snapshot --ops=10 --json=/ >/dev/null 2>&1 &&
		fail "the report cannot be written, but status 0"
	exit 0
fi

file=$(mktemp "${TMPDIR:-/tmp}/cowsnap-bench.XXXXXX") || exit 2
trap 'rm -f "$file"' EXIT
trap 'exit 130' INT TERM
"$bench" "$scenario" --quick --json >"$file" || fail "status $?"
jq -e --arg scenario "$scenario" '
	.program == "cowsnap-bench" and .machine.cores >= 1 and .quick
	and (.command | contains($scenario))
	and (.groups | length > 0)
	and all(.groups[]; .scenario == $scenario and (.variants | length > 0))
	and all(.groups[].variants[], .groups[].ratios[];
		.samples > 0 and .min <= .median and .median <= .max and .max > 0
		and (has("target") == has("met")))' "$file" >/dev/null || {
	cat "$file"
	fail "the report is not as it should be"
}
