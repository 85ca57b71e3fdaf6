#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
#
# The second act of quickstart.sh: the snapshot outlives the server. A live file system is frozen
# into a persistent store; while its volume is overwritten and a backup runs, the server is killed
# with SIGKILL. It is started again, finds its snapshot, and the backup is what the volume was.
# Needs Debian 12 (or a relative) and root or sudo, but only to install packages.

set -euo pipefail
cd "$(dirname "$0")/.."

readonly size=$((128 * 1024 * 1024))
readonly files_bytes=$((60 * 1024 * 1024))
readonly block=4096
readonly blocks=$((size / block))
readonly packages=(
	build-essential cmake ninja-build pkg-config libjansson-dev nbdkit nbdkit-plugin-dev
	libnbd-bin fio e2fsprogs jq socat python3
)
export PATH=$PATH:/usr/sbin:/sbin # for mke2fs, debugfs, e2fsck

. examples/show.sh

# serve - the volume with its persistent store; the same command each time
serve() {
	rm -f "$work/pid" "$work/nbd" # of a server that was killed
	nbdkit --foreground --unix "$work/nbd" --pidfile "$work/pid" "./$plugin" \
		file="$work/volume" store="$work/store" store-format=dm control="$work/control" &
	server=$!
	wait_until 20 "nbdkit" test -s "$work/pid"
}

# overwrite - every block of the live volume once, in random order
overwrite() {
	fio --name=writes --thread --ioengine=nbd --uri="$live" --rw=randwrite --bs=$block \
		--iodepth=16 --buffer_pattern=0x4f5645525752540a --directory="$work" \
		--output="$work/fio.log"
}

# check_store OPTION... - by a reader of the format that shares no code with the library
check_store() {
	python3 -B tests/interop/dmstore.py check --origin-size $size "$@" "$work/store"
}

install_and_build survive nbdkit-cowsnap-plugin cowsnap-tool

step "An ext4 file system of $((size >> 20)) MiB with files of this machine, on a volume"
make_file_system "$work/volume" "$size" "$files_bytes"
sum=$(sha256sum <"$work/volume")
echo "$files files; SHA-256 of the volume: ${sum%% *}"

step "Serve it with a persistent store, and take a snapshot"
live="nbd+unix:///?socket=$work/nbd"
frozen="nbd+unix:///@before?socket=$work/nbd"
serve
control take before

step "Overwrite the volume, begin a backup, and kill the server in the middle of both"
overwrite >"$work/overwrite.log" 2>&1 &
load=$!
blocks_saved() {
	(($(status .stats.copied_chunks) > $1))
}
wait_until 60 "fio to write" blocks_saved $((blocks / 4))
nbdcopy --connections=1 --requests=1 --request-size=16384 "$frozen" "$work/partial" \
	>"$work/partial.log" 2>&1 &
backup=$!
backup_runs() {
	(($(status .stats.snapshot_reads) > 200))
}
wait_until 60 "the backup to read" backup_runs
saved=$(status .stats.copied_chunks)
kill -KILL "$server"
wait "$server" 2>/dev/null || true
server=
! wait "$backup" || fail "the backup was over before the server was killed"
backup=
! wait "$load" || fail "all was written before the server was killed"
load=
((saved < blocks)) || fail "every block was saved before the server was killed"
echo "killed with SIGKILL when $saved of $blocks old blocks had been saved;" \
	"the backup has $(($(stat -c %b "$work/partial") / 2048)) MiB"

step "Look at the store that is left: a reader without the library, and the tool cowsnap"
check_store
"$tool" export --no-progress --origin "$work/volume" "$work/store" "$work/export"
[[ $(sha256sum <"$work/export") == "$sum" ]] || fail "the export is another image"
echo "exported without the server: the same SHA-256"

step "Start the server again: back up the snapshot while all of the volume is overwritten"
serve
[[ $(control list | jq -r '.snapshots[] | .name + " " + .state') == "before active" ]] ||
	fail "the snapshot is not there: $(control list)"
found=$(status .store.records)
((found >= saved)) || fail "$saved blocks were saved, $found are there"
echo "snapshot \"before\" is there with $found saved blocks"
overwrite >"$work/overwrite.log" 2>&1 &
load=$!
wait_until 60 "fio to write" blocks_saved 1000
nbdcopy "$frozen" "$work/backup"
wait "$load" || fail "fio"
load=
nbdcopy --flush "$live" "$work/live"

step "Verify"
echo "backup SHA-256:        $(sha256sum <"$work/backup")"
[[ $(sha256sum <"$work/backup") == "$sum" ]] || fail "the backup is not the volume at the take"
cmp "$work/live" <(yes OVERWRT | head -c "$size") || fail "the live volume is not overwritten"
[[ $(stat -c %s "$work/live") == "$size" ]] || fail "the live volume has another size"
e2fsck -fn "$work/backup" >"$work/e2fsck.log" 2>&1 || {
	cat "$work/e2fsck.log"
	fail "e2fsck finds the backup damaged"
}
tail -n 1 "$work/e2fsck.log"
mkdir "$work/restored"
debugfs -R "rdump / $work/restored" "$work/backup" >"$work/debugfs.log" 2>&1
(cd "$work/restored" && sha256sum --quiet --check "$work/sums") ||
	fail "a file of the backup differs"
check_store --clean
control drop before
kill "$server"
wait "$server" || fail "nbdkit did not end cleanly"
server=

printf '\nverified: killed under load with %d blocks saved, the server found its snapshot again; ' \
	"$found"
printf 'the backup is bit-identical to the volume at the take (%d MiB, SHA-256), ' $((size >> 20))
printf 'e2fsck is clean, all %d files match, ' "$files"
printf 'and all %d live blocks were overwritten\n' "$blocks"
