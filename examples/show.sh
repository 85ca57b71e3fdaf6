# SPDX-License-Identifier: MIT
# shellcheck shell=bash
# What the scripts that show the plug-in share. To be sourced by bash from the top of the tree, by a
# script of eight steps; it keeps its files in $work and its processes in the variables below.

build=build/quickstart
plugin=$build/examples/nbdkit/nbdkit-cowsnap-plugin.so
tool=$build/examples/cli/cowsnap # if it is a target
work=
files=
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

# install_and_build NAME TARGET... - the first two steps: what is in $packages, and the targets;
# from then on there is $work
install_and_build() {
	local name=$1
	shift
	step "Packages"
	. tests/support/apt.sh
	cowsnap_apt_install "${packages[@]}"
	echo "all there"

	step "Build"
	work=$(mktemp -d "${TMPDIR:-/tmp}/cowsnap-$name.XXXXXX")
	if ! cmake --preset release -B "$build" -DCOWSNAP_BUILD_BENCH=OFF >"$work/build.log" 2>&1 ||
		! cmake --build "$build" --target "$@" >>"$work/build.log" 2>&1; then
		cat "$work/build.log"
		fail "the build"
	fi
	echo "$plugin"
}

# make_file_system FILE SIZE BYTES - ext4 on FILE of SIZE bytes, with about so many BYTES of files
# of this machine; their checksums are in $work/sums, how many in $files
make_file_system() {
	mkdir "$work/tree"
	(cd / && find usr/share usr/lib -xdev -type f -readable -size -8M \
		! -path '*[[:cntrl:]\\]*' -printf '%s %p\n') |
		LC_ALL=C sort -k 2 |
		awk -v limit="$3" \
			'{ used += $1 + 4096 } used <= limit { sub(/^[0-9]+ /, ""); print }' \
			>"$work/list"
	tar --create --file=- --directory=/ --verbatim-files-from --files-from="$work/list" |
		tar --extract --file=- --directory="$work/tree" --no-same-owner
	(cd "$work/tree" && find . -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum) \
		>"$work/sums"
	files=$(wc -l <"$work/sums")
	((files > 100)) || fail "this machine has only $files files to use"
	truncate -s "$2" "$1"
	mke2fs -q -t ext4 -F -d "$work/tree" "$1"
	rm -rf "$work/tree"
}
