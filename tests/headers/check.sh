#!/bin/sh
# SPDX-License-Identifier: MIT
# check.sh INCLUDE_DIR "CC..." "CXX..." HEADER...: each public header, as the first and only thing
# in a source file, as C and as C++, without a warning.
set -u

include=$1
cc=$2
cxx=$3
shift 3
failed=0
count=0
strict="-Wall -Wextra -Wpedantic -Wshadow -Wundef -Wstrict-prototypes -Werror"
strict_cxx="-Wall -Wextra -Wpedantic -Wundef -Wold-style-cast -Werror"

compile() {
	count=$((count + 1))
	# Twice, because an include guard may be missing.
	printf '#include <%s>\n#include <%s>\n' "$header" "$header" |
		"$@" -fsyntax-only -I"$include" - || {
		echo "headers: <$header> does not compile alone with: $*"
		failed=1
	}
}

for header; do
	for compiler in $cc; do
		for standard in c99 c11 c17; do
			# shellcheck disable=SC2086
			compile "$compiler" -x c -std=$standard $strict
		done
	done
	for compiler in $cxx; do
		for standard in c++11 c++20; do
			# shellcheck disable=SC2086
			compile "$compiler" -x c++ -std=$standard $strict_cxx
		done
	done
done
echo "headers: $count compilations"
[ "$count" -ge 5 ] || failed=1
exit "$failed"
