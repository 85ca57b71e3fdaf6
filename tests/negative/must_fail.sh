#!/bin/sh
# SPDX-License-Identifier: MIT
# must_fail.sh REGEX PROGRAM [ARGUMENT...]: passes if the program fails and prints the regex.
set -u

regex=$1
shift
output=$("$@" 2>&1)
status=$?
if [ "$status" -eq 0 ]; then
	printf '%s\n' "$output" "must_fail: the planted fault was not reported"
	exit 1
fi
if ! printf '%s\n' "$output" | grep -qE "$regex"; then
	printf '%s\n' "$output" "must_fail: it failed ($status), but not with: $regex"
	exit 1
fi
echo "reported, as it must be: $regex"
