#!/bin/bash
# SPDX-License-Identifier: MIT
# smoke.sh RUN: a tiny run of the comparison with the peers ends, with frozen images that are right,
# and gives a report with all its parts. What the figures are is not looked at. COWSNAP_PLUGIN
# names the plug-in. Without the peers there is nothing to do: 77.
set -u

run=$1
wanted= # what a refusal says

fail() {
	echo "smoke.sh: $1"
	exit 1
}

refused() {
	out=$("$run" --out "$work/refused" "$@" 2>&1) && fail "'$*' was not refused"
	grep -q "$wanted" <<<"$out" || fail "'$*' was refused with other words: $out"
	[[ ! -e $work/refused/peers.json ]] || fail "'$*' was refused, but there is a report"
}

for program in qemu-storage-daemon nbdkit nbdcopy fio gnuplot jq python3; do
	if ! command -v $program >/dev/null; then
		echo "no $program"
		exit 77
	fi
done
[[ -e $COWSNAP_PLUGIN ]] || fail "COWSNAP_PLUGIN=$COWSNAP_PLUGIN is not there"
work=$(mktemp -d "${TMPDIR:-/tmp}/cowsnap-peers-smoke.XXXXXX") || exit 2
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM

wanted="1 to 1000 rounds" refused --rounds 0
wanted="a size is" refused --size 3
wanted="MiB free" refused --size 1000000G
wanted="MiB free" refused --size tiny --work "$work/missing"

"$run" --quick --size tiny --out "$work" >"$work/log" 2>&1 || {
	cat "$work/log"
	fail "the run"
}
jq -e '
	.program == "cowsnap-peers" and .quick and .rounds == 1 and .machine.cores >= 1
	and ([.subjects[].key] | index("cowsnap") != null and index("qemu") != null)
	and (.samples | length == 20) and (.figures | length == 10)
	and all(.samples[]; .writes > 0 and .iops > 0 and .mean_us > 0 and .p99_us > 0)
	and ([.samples[] | select(.phase == "first") | .writes] | all(. == 1024))
	and all(.samples[] | select(.phase == "drained"); .drained_passes > 0)
	and all(.rows[]; .iops.min <= .iops.median and .iops.median <= .iops.max)
	and all(.figures[]; .median > 0 and (has("target") == has("met")))' \
	"$work/peers.json" >/dev/null || {
	cat "$work/log"
	jq -c ".samples[], .figures[]" "$work/peers.json"
	fail "the figures are not as they should be"
}
for picture in phases-16 drained many; do
	grep -q '</svg>' "$work/peers-$picture.svg" || fail "peers-$picture.svg is not a picture"
	grep -q "peers-$picture.svg" "$work/peers.md" || fail "peers.md does not show $picture"
done
