#!/bin/sh
# SPDX-License-Identifier: MIT
# check.sh SOURCE BUILD CC [jemalloc]: install the library, move the installed tree, and build an
# outside project against it through find_package and through pkg-config; run what comes out.
set -eu

source=$1
build=$2
cc=$3
jemalloc=${4:-}

work=$(mktemp -d "${TMPDIR:-/tmp}/cowsnap-install.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM
log=$work/log
complain() {
	cat "$log"
	echo "install: $1"
	exit 1
}

cmake --install "$build" --prefix "$work/first" >"$log" 2>&1 || complain "cmake --install"
# An installed tree that knows its own place cannot be copied into a package.
mv "$work/first" "$work/prefix"
prefix=$work/prefix
libdir=$(dirname "$(find "$prefix" -name libcowsnap.so)")
find "$prefix" \( -name '*.cmake' -o -name '*.pc' \) -exec \
	grep -l -e "$work/first" -e "$source" '{}' + >"$log" || true
if [ -s "$log" ]; then
	complain "names of this machine in the installed files"
fi
(cd "$source/include" && find . -name '*.h' ! -name 'cowsnap-jemalloc.h' | sort) >"$work/declared"
(cd "$prefix/include" && find . -name '*.h' ! -name 'cowsnap-jemalloc.h' | sort) >"$work/installed"
diff "$work/declared" "$work/installed" >"$log" || complain "installed headers differ from include/"

# It must find its library where the tree is now.
if [ -f "$build/examples/cli/cowsnap" ]; then
	"$prefix/bin/cowsnap" --version >"$log" 2>&1 || complain "run the installed cowsnap"
	grep -q '^cowsnap [0-9.]*$' "$log" || complain "cowsnap --version"
	ldd "$prefix/bin/cowsnap" | grep -q "$work/prefix/.*/libcowsnap" ||
		complain "the tool does not use the library that it was installed with"
	echo "install: $(cat "$log")"
fi

cp -r "$source/tests/install/outside" "$work/outside"
cmake -S "$work/outside" -B "$work/build" -DCMAKE_C_COMPILER="$cc" -DCMAKE_PREFIX_PATH="$prefix" \
	-DOUTSIDE_JEMALLOC="${jemalloc:+ON}" >"$log" 2>&1 || complain "find_package(cowsnap)"
cmake --build "$work/build" >"$log" 2>&1 || complain "build through find_package"
for program in "$work"/build/outside*; do
	if [ ! -f "$program" ] || [ ! -x "$program" ]; then
		continue
	fi
	"$program" >"$log" 2>&1 || complain "run $(basename "$program"), built through find_package"
	echo "install: find_package: $(basename "$program"): $(cat "$log")"
done
if readelf -d "$work/build/outside" | grep -q jemalloc; then
	complain "a program that did not ask for jemalloc is linked with it"
fi

PKG_CONFIG_PATH=$libdir/pkgconfig
LD_LIBRARY_PATH=$libdir
export PKG_CONFIG_PATH LD_LIBRARY_PATH
by_pkg_config() { # OUTPUT SOURCE PACKAGE [FLAG...]
	output=by-pkg-config-$1
	input=$2
	package=$3
	shift 3
	flags=$(pkg-config --cflags --libs "$package") || complain "pkg-config $package"
	# shellcheck disable=SC2086
	"$cc" -o "$work/$output" "$@" "$input" $flags >"$log" 2>&1 ||
		complain "compile $input with $flags"
	"$work/$output" >"$log" 2>&1 || complain "run $output, built through pkg-config"
	echo "install: $output: $(tail -n 1 "$log")"
}
by_pkg_config outside "$work/outside/main.c" cowsnap
# What README quotes must work for those who only have the package.
by_pkg_config minimal "$source/examples/minimal.c" cowsnap
by_pkg_config loop "$source/examples/loop.c" cowsnap
if [ -n "$jemalloc" ]; then
	by_pkg_config outside-jemalloc "$work/outside/main.c" cowsnap-jemalloc -DOUTSIDE_JEMALLOC
	# It must be there when the program starts: too late for its TLS afterwards.
	ldd "$work/by-pkg-config-outside-jemalloc" | grep -q libjemalloc ||
		complain "the program does not bring jemalloc"
fi
