#!/bin/sh
# SPDX-License-Identifier: MIT
# check.sh LIBRARY [HOST]: can the library be loaded by a program that was not made for it? With
# HOST it is also loaded, by that program and by Python, and may need nothing but libc
# and liburing.
set -u

library=$1
host=${2:-}
failed=0

fail() {
	echo "load: $1"
	failed=1
}

dynamic=$(readelf -dW "$library") || exit 1
# Initial-exec TLS makes dlopen fail when the host's spare TLS is used up.
echo "$dynamic" | grep -q STATIC_TLS && fail "it has the flag STATIC_TLS"
readelf -lW "$library" | grep -q ' TLS ' && fail "it has thread-local data"
# Two mallocs in one process free each other's memory.
ldd "$library" | grep -E 'jemalloc|tcmalloc|mimalloc' && fail "it brings its own malloc"
if [ -z "$host" ]; then
	exit "$failed"
fi

# The dynamic linker is a part of libc: it holds the area of restartable sequences.
others=$(echo "$dynamic" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p' |
	grep -vE '^(libc|liburing|ld-linux[-a-z0-9]*)\.so')
[ -z "$others" ] || fail "it needs $others"
"$host" "$library" || fail "a C host could not use it"
python3 -c "import ctypes, sys
f = ctypes.CDLL(sys.argv[1]).cowsnap_version
f.restype = ctypes.c_char_p
sys.exit(not f().startswith(b'0.'))" "$library" || fail "Python could not use it"
exit "$failed"
