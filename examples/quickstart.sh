#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
#
# The main job on a real file system, with real clients: freeze a live volume, overwrite all of it
# while a backup of the frozen image runs, and show that the backup is what the volume was.
# Needs Debian 12 (or a relative) and root or sudo, but only to install packages.

set -euo pipefail
cd "$(dirname "$0")/.."

readonly size=$((256 * 1024 * 1024))
readonly files_bytes=$((150 * 1024 * 1024))
readonly block=4096
readonly packages=(
	build-essential cmake ninja-build pkg-config libjansson-dev nbdkit nbdkit-plugin-dev
	libnbd-bin fio e2fsprogs jq socat
)
export PATH=$PATH:/usr/sbin:/sbin # for mke2fs, debugfs, e2fsck

. examples/show.sh

# write_randomly RESULT OPTION... - fio on the live volume; its report in JSON goes to RESULT
write_randomly() {
	local result=$1
	shift
	fio --name=writes --thread --ioengine=nbd --uri="$live" --rw=randwrite --bs=$block \
		--iodepth=16 --output-format=json --output="$work/$result" --directory="$work" "$@"
}

# iops RESULT - with threads, fio puts a line before its JSON
iops() {
	sed -n '/^{/,$p' "$work/$1" | jq -e '.jobs[0].write.iops | round'
}

install_and_build quickstart nbdkit-cowsnap-plugin

step "An ext4 file system of $((size >> 20)) MiB with files of this machine"
make_file_system "$work/image" "$size" "$files_bytes"
echo "$files files, $(($(stat -c %b "$work/image") / 2048)) MiB in use"

step "Serve a volume, write at random for 3 s, then put the file system on it: all over NBD"
truncate -s $size "$work/volume"
nbdkit --foreground --unix "$work/nbd" --pidfile "$work/pid" "./$plugin" file="$work/volume" \
	store=memory store-limit=512M control="$work/control" &
server=$!
live="nbd+unix:///?socket=$work/nbd"
frozen="nbd+unix:///@before?socket=$work/nbd"
wait_until 20 "nbdkit" test -s "$work/pid"
nbdcopy "$work/image" "$live"
write_randomly before.json --time_based --runtime=3
nbdcopy --flush "$work/image" "$live"
sum=$(sha256sum <"$work/volume")
[[ $sum == "$(sha256sum <"$work/image")" ]] || fail "the volume is not the file system"
echo "SHA-256 of the volume: ${sum%% *}"

step "Take a snapshot"
control take before

step "Overwrite every block of the live volume while the snapshot is backed up"
write_randomly during.json --buffer_pattern=0x4f5645525752540a &
load=$!
some_writes() {
	(($(status .stats.copied_chunks) > size / block / 20))
}
wait_until 60 "fio to write" some_writes
writes_before=$(status .stats.writes)
nbdcopy --progress "$frozen" "$work/backup"
writes_meanwhile=$(($(status .stats.writes) - writes_before))
((writes_meanwhile > 0)) || fail "no write came while the backup ran"
wait "$load" || fail "fio"
load=
copied=$(status .stats.copied_chunks)
echo "$writes_meanwhile writes came while the backup ran; $copied old blocks were kept in all"

step "Drop the snapshot, write at random for 3 s more"
nbdcopy --flush "$live" "$work/live"
control drop before
all_reclaimed() {
	(($(status .store.used_bytes) == 0))
}
wait_until 30 "the store to be empty" all_reclaimed
write_randomly after.json --time_based --runtime=3
before=$(iops before.json)
during=$(iops during.json)
after=$(iops after.json)
printf '%7d  %s\n' \
	"$before" "random writes of 4 KiB per second before the take" \
	"$during" "while old blocks were kept and the backup ran" \
	"$after" "after the drop"

step "Verify"
echo "backup SHA-256:        $(sha256sum <"$work/backup")"
[[ $(sha256sum <"$work/backup") == "$sum" ]] || fail "the backup is not the volume at the take"
overwritten=$(stat -c %s "$work/live")
cmp "$work/live" <(yes OVERWRT | head -c "$size") || fail "the live volume is not overwritten"
((overwritten == size)) || fail "the live volume has $overwritten bytes"
e2fsck -fn "$work/backup" >"$work/e2fsck.log" 2>&1 || {
	cat "$work/e2fsck.log"
	fail "e2fsck finds the backup damaged"
}
tail -n 1 "$work/e2fsck.log"
mkdir "$work/restored"
debugfs -R "rdump / $work/restored" "$work/backup" >"$work/debugfs.log" 2>&1
(cd "$work/restored" && sha256sum --quiet --check "$work/sums") ||
	fail "a file of the backup differs"
kill "$server"
wait "$server" || fail "nbdkit did not end cleanly"
server=
[[ ! -e $work/control ]] || fail "nbdkit left its control socket"

printf '\nverified: the backup is bit-identical to the volume at the take (%d MiB, SHA-256), ' \
	$((size >> 20))
printf 'e2fsck is clean, all %d files match, ' "$files"
printf 'and all %d live blocks were overwritten meanwhile\n' $((size / block))
