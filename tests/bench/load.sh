#!/bin/sh
# SPDX-License-Identifier: MIT
# load.sh BENCH: loads of all kinds run, and report what fio would. What the figures are is not
# looked at, only that they fit each other.
set -u

bench=$1
dir=$(mktemp -d "${TMPDIR:-/tmp}/cowsnap-load.XXXXXX") || exit 2
trap 'rm -rf "$dir"' EXIT
trap 'exit 130' INT TERM

fail() {
	echo "load.sh: $1"
	exit 1
}

refused() {
	out=$("$bench" "$@" 2>&1)
	status=$?
	[ "$status" -eq 64 ] || fail "'$*' ended with $status, not 64"
	echo "$out" | grep -q -e '--usage' || fail "'$*' was refused without a hint"
}

# load READS WRITES COPIES OPTION...: how many requests of each kind, how many chunks copied
load() {
	reads=$1
	writes=$2
	copies=$3
	shift 3
	"$bench" load "$@" --json >"$dir/json" || fail "'$*' ended with $?"
	jq -e --argjson reads "$reads" --argjson writes "$writes" --argjson copies "$copies" '
		def fits($n): .total_ios == $n and .io_bytes >= $n * 512
			and .clat_ns.N == $n and .lat_ns.N == $n
			and (if $n == 0 then .iops == 0 else .iops > 0 and .bw_bytes > 0
				and .clat_ns.min <= .clat_ns.percentile["50.000000"]
				and .clat_ns.percentile["50.000000"]
					<= .clat_ns.percentile["99.990000"]
				and .clat_ns.percentile["99.990000"] <= .clat_ns.max
				and .clat_ns.mean <= .clat_ns.max end);
		(.["fio version"] | startswith("cowsnap-bench")) and (.jobs | length == 1)
		and .jobs[0].error == 0 and (.jobs[0].read | fits($reads))
		and (.jobs[0].write | fits($writes)) and .cowsnap.copied_chunks == $copies' \
		"$dir/json" >/dev/null || {
		cat "$dir/json"
		fail "'$*': the report is not as it should be"
	}
}

load 0 256 256 --size=1m
load 0 256 256 --size=1m --engine=wait --numjobs=2
load 0 256 256 --size=1m --engine=workers --numjobs=2
load 0 256 0 --size=1m --hook=origin
load 0 256 0 --size=1m --hook=bare
load 256 0 0 --size=1m --rw=randread --hook=bare
load 0 4 256 --size=1m --rw=write --bs=256k
load 0 100 100 --size=1m --number_ios=50 --numjobs=2 --iodepth=4
load 0 256 256 --size=1m --target=sim --numjobs=2 --sim-latency=20000
load 0 256 256 --size=1m --target=sim --engine=workers --sim-latency=20000 --sim-jitter=50
load 0 64 64 --size=256k --target=sim --engine=wait --sim-latency=20000
load 0 256 0 --size=1m --target=sim --hook=bare --sim-depth=2 --sim-latency=20000
load 0 256 256 --size=1m --target="$dir/volume"
load 0 256 256 --shape=fio_origin_randwrite_throughput --size=1m --numjobs=2
load 256 0 0 --shape=fio_snapshot_randread_throughput --size=1m
load 4 0 0 --shape=fio_snapshot_seqread_throughput --size=1m

"$bench" load --size=1m --rw=randrw --rwmixread=30 --json="$dir/json" >"$dir/text" ||
	fail "randrw ended with $?"
grep -q 'read: IOPS=' "$dir/text" || fail "no line for the reads"
jq -e '.jobs[0] | .read.total_ios + .write.total_ios == 256 and .read.total_ios > 0' \
	"$dir/json" >/dev/null || fail "randrw: reads and writes are not all there are"
[ "$("$bench" load --shape=help | wc -l)" -ge 8 ] || fail "no list of shapes"

refused load --uring
refused load --uring --target=sim
refused load --shape=no-such-shape
refused load --rw=backwards
refused load --bs=0
refused load --bs=1x
refused load --numjobs=0
refused load --numjobs=65
refused load --iodepth=0
refused load --rwmixread=101
refused load --engine=steam
refused load --hook=crook
refused hook --numjobs=2
"$bench" load --size=4k --numjobs=2 >/dev/null 2>&1 && fail "two jobs on one block"
"$bench" load --size=1m --target=/no/such/place >/dev/null 2>&1 && fail "no such place"
exit 0
