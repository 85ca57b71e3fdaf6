#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
#
# Fuzzes the opening of persistent stores, with clang's libFuzzer, in build/fuzz.
#
#   tests/fuzz/run.sh SECONDS [LIBFUZZER-OPTION...]
#
# The corpus grows in build/fuzz/corpus from run to run. What is found is left in build/fuzz as
# crash-*, timeout-* or oom-*; run it again with build/fuzz/tests/fuzz/fuzz_dm_open FILE.

set -euo pipefail
cd "$(dirname "$0")/../.."

[[ ${1:-} =~ ^[1-9][0-9]*$ ]] || {
	sed -n '4,9s/^# \{0,1\}//p' "$0"
	exit 2
}
seconds=$1
shift

cmake --preset fuzz >/dev/null
cmake --build --preset fuzz --target fuzz_dm_open
tests/fuzz/make_corpus.py build/fuzz/seeds
mkdir -p build/fuzz/corpus
exec build/fuzz/tests/fuzz/fuzz_dm_open build/fuzz/corpus build/fuzz/seeds \
	-dict=tests/fuzz/dm.dict -max_len=25000 -timeout=10 -rss_limit_mb=1024 \
	-artifact_prefix=build/fuzz/ -print_final_stats=1 -max_total_time="$seconds" "$@"
