# SPDX-License-Identifier: MIT
# shellcheck shell=bash
# What the scripts that show the plug-in share. To be sourced by bash from the top of the tree, by a
# script of eight steps; it keeps its files in $work and its processes in the variables below.

work=
server=
load=
backup=

cleanup() {
	local pid
	for pid in $load $backup $server; do
		kill "$pid" 2>/dev/null || true
		wait "$pid" || true
	done
	[[ -z $work ]] || rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

step_number=0
step() {
	step_number=$((step_number + 1))
	printf '\n[%d/8] %s\n' "$step_number" "$*"
}

fail() {
	echo "FAILED: $*" >&2
	exit 1
}

# control COMMAND - one line to the control socket, its answer to standard output
control() {
	local answer
	answer=$(socat -t 30 - "UNIX-CONNECT:$work/control" <<<"$*")
	jq -e .ok <<<"$answer" >/dev/null || fail "$*: $answer"
	echo "$answer"
}

status() {
	control status | jq "$1"
}

# wait_until SECONDS WHAT COMMAND... - try until it succeeds
wait_until() {
	local end=$((SECONDS + $1)) what=$2
	shift 2
	until "$@"; do
		((SECONDS < end)) || fail "waited in vain for $what"
		sleep 0.02
	done
}
