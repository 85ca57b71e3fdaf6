#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
#
# All tests, from a bare Debian 12 to one closing line. Root or sudo is needed only to install
# packages that are missing.
#
#   tests/run.sh              everything, as CI runs it
#   tests/run.sh --quick      the unit tests and tidy alone, one build
#   tests/run.sh --repeat N   the concurrent tests N times under ThreadSanitizer
#
# Builds are kept in build/PRESET, with run.log for what was printed; build/dev is yours to use.

set -uo pipefail
cd "$(dirname "$0")/.." || exit
export LC_ALL=C

readonly packages=(
	build-essential
	clang
	clang-format
	cmake
	e2fsprogs
	file
	fio
	gnuplot-nox
	jq
	libclang-rt-dev
	libcriterion-dev
	libjansson-dev
	libjemalloc-dev
	libnbd-bin
	liburcu-dev
	liburing-dev
	nbdkit
	nbdkit-plugin-dev
	ninja-build
	pkg-config
	python3
	python3-libnbd
	qemu-system-common
	qemu-utils
	socat
	universal-ctags
	valgrind
)

jobs=$(nproc)
failures=()
skipped=()
total=0
planted=0

usage() {
	sed -n '3,12s/^# \{0,1\}//p' "$0"
	exit 2
}

# show_log FILE - what a reader needs of a failed step: not the tests that passed
show_log() {
	local noise='^ *[0-9]+/[0-9]+ Test .* Passed |^ *Start +[0-9]+:|^\[[0-9]+/[0-9]+\] '
	noise+='|^-- |^Preset CMake|^  [A-Z_]+=|^$'
	grep -vE "$noise" "$1" | tail -n 200
}

# build PRESET - returns 1 and says why if it does not build
build() {
	local preset=$1 log=build/$1/run.log
	mkdir -p "build/$preset"
	cmake --preset "$preset" >"$log" 2>&1 &&
		cmake --build --preset "$preset" -j "$jobs" >>"$log" 2>&1 && return
	show_log "$log"
	echo "$preset: does not build"
	failures+=("$preset build")
	return 1
}

# check PRESET [CTEST-OPTION...] - build and test; one line if all is well
check() {
	local preset=$1 log=build/$1/run.log start=$SECONDS result summary count
	shift
	build "$preset" || return
	ctest --preset "$preset" -j "$jobs" "$@" >"$log" 2>&1
	result=$?
	summary=$(grep -E 'tests passed, .* out of ' "$log")
	if ((result != 0)) || [[ -z $summary ]]; then
		show_log "$log"
		failures+=("$preset")
	fi
	echo "$preset: ${summary:-no summary of ctest} ($((SECONDS - start)) s)"
	count=${summary##*out of }
	total=$((total + ${count:-0}))
	planted=$((planted + $(grep -cE 'Test .* negative_.* Passed' "$log")))
	planted=$((planted - $(grep -cE 'Test .* negative_.*_clean .* Passed' "$log")))
	mapfile -t -O "${#skipped[@]}" skipped < <(
		sed -n "s|^ *[0-9]*/[0-9]* Test .*: \([^ ]*\) .*Skipped.*|$preset/\1|p" "$log")
}

# fuzz SECONDS - the fuzzer, for that long
fuzz() {
	local log=build/fuzz/run.log start=$SECONDS runs
	mkdir -p build/fuzz
	if ! tests/fuzz/run.sh "$1" >"$log" 2>&1; then
		show_log "$log"
		failures+=("fuzz")
	fi
	runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
	echo "fuzz: ${runs:-no} hostile images opened ($((SECONDS - start)) s)"
}

finish() {
	((${#skipped[@]} == 0)) || echo "skipped: ${skipped[*]}"
	if ((${#failures[@]} > 0)); then
		echo "cowsnap: FAILED: ${failures[*]} ($SECONDS s)"
		exit 1
	fi
	echo "cowsnap: $1 ($SECONDS s)"
	exit 0
}

repeat=0
quick=
while (($# > 0)); do
	case $1 in
	--quick) quick=yes ;;
	--repeat)
		repeat=${2:-}
		[[ $repeat =~ ^[1-9][0-9]*$ ]] || usage
		shift
		;;
	*) usage ;;
	esac
	shift
done

. tests/support/apt.sh
cowsnap_apt_install "${packages[@]}" || exit 1

if [[ -n $quick ]]; then
	check dev -L 'unit|tidy'
	finish "$total unit tests passed, nothing else was run"
elif ((repeat > 0)); then
	check tsan -L concurrent --repeat "until-fail:$repeat"
	finish "$total concurrent tests passed $repeat times each under ThreadSanitizer"
fi
check dev
check asan
check tsan
check clang-tsa
fuzz 10
((planted == 17)) || failures+=("$planted planted faults were reported, not 17")
finish "all of $total tests passed: plain with clients, budgets and style, under ASan+UBSan with\
 leaks, concurrent under TSan, thread-safety analysis, fuzzed; $planted planted faults reported"
