#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
#
# The nbdkit plug-in side by side with QEMU's copy-before-write filter and nbdkit's cow filter, in
# one run. Installs and builds what is missing; writes peers.md, peers.json and pictures to
# docs/bench.
#
# run.sh [--quick] [--rounds N] [--size SIZE] [--work DIR] [--out DIR]
# COWSNAP_PLUGIN names a plug-in that is already built.

set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
top=$(cd "$here/../.." && pwd)
readonly packages=(
	build-essential cmake ninja-build pkg-config libjansson-dev nbdkit nbdkit-plugin-dev
	libnbd-bin fio qemu-system-common qemu-utils gnuplot-nox jq python3
)

plugin=${COWSNAP_PLUGIN:-}
if [[ -z $plugin ]]; then
	. "$top/tests/support/apt.sh"
	cowsnap_apt_install "${packages[@]}"
	plugin=$top/build/release/examples/nbdkit/nbdkit-cowsnap-plugin.so
	(cd "$top" && cmake --preset release &&
		cmake --build --preset release --target nbdkit-cowsnap-plugin) >&2
	cd "$top"
fi
exec python3 -B "$here/peers.py" --plugin "$plugin" "$@"
