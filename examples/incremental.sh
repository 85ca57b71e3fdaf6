#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
#
# The third act of quickstart.sh: an incremental backup. A live file system is backed up in full
# from snapshot "monday", which then keeps what has changed since, and no data. Files are written
# and removed, and of snapshot "tuesday" only what has changed is copied. Put together, the two
# backups are the volume as it was on tuesday.
# Needs Debian 12 (or a relative) and root or sudo, but only to install packages.

set -euo pipefail
cd "$(dirname "$0")/.."

readonly size=$((256 * 1024 * 1024))
readonly files_bytes=$((120 * 1024 * 1024))
readonly packages=(
	build-essential cmake ninja-build pkg-config libjansson-dev nbdkit nbdkit-plugin-dev
	libnbd-bin python3 python3-libnbd e2fsprogs jq socat
)
export PATH=$PATH:/usr/sbin:/sbin # for mke2fs, debugfs, e2fsck
python=/usr/bin/python3           # the one that Debian's python3-libnbd is for

. examples/show.sh

# use_file_system COMMAND... - what debugfs commands do to the file system goes to the live volume,
# a block at a time, as a kernel that had it mounted would write it
use_file_system() {
	nbdcopy "$live" "$work/mounted"
	printf '%s\n' "$@" >"$work/commands"
	cp "$work/mounted" "$work/before"
	debugfs -w -f "$work/commands" "$work/mounted" >"$work/debugfs.log" 2>&1
	"$python" - "$work/before" "$work/mounted" "$live" <<-'END'
		import sys
		import nbd
		before, after, uri = sys.argv[1:]
		live = nbd.NBD()
		live.connect_uri(uri)
		with open(before, "rb") as old, open(after, "rb") as new:
		    for number in range(live.get_size() // 4096):
		        was, now = old.read(4096), new.read(4096)
		        if was != now:
		            live.pwrite(now, number * 4096)
		live.flush()
		live.shutdown()
	END
	rm "$work/before" "$work/mounted"
}

install_and_build incremental nbdkit-cowsnap-plugin cowsnap-tool

step "An ext4 file system of $((size >> 20)) MiB with files of this machine, on a volume"
make_file_system "$work/volume" "$size" "$files_bytes"
used=$(($(stat -c %b "$work/volume") * 512))
echo "$files files, $((used >> 20)) MiB in use"

step "Serve it, and back up snapshot monday in full"
live="nbd+unix:///?socket=$work/nbd"
nbdkit --foreground --unix "$work/nbd" --pidfile "$work/pid" "./$plugin" file="$work/volume" \
	store=memory store-limit=512M control="$work/control" &
server=$!
wait_until 20 "nbdkit" test -s "$work/pid"
control take monday
nbdcopy "nbd+unix:///@monday?socket=$work/nbd" "$work/backup"
full=$(($(stat -c %b "$work/backup") * 512))
echo "copied $full bytes; the rest of the volume is holes"

step "From here on monday keeps which blocks have changed, and no data"
control downgrade monday
! nbdinfo "nbd+unix:///@monday?socket=$work/nbd" >"$work/nbdinfo.log" 2>&1 ||
	fail "monday can be read"
head -c 5000000 /dev/urandom >"$work/new"
removed=$(sed -n 10p "$work/list")
use_file_system "mkdir /tuesday" "write $work/new /tuesday/new" "rm /$removed" \
	"write $work/list /tuesday/list"
echo "wrote two files, removed one; the store has $(status .store.used_bytes) bytes"
(($(status .store.used_bytes) == 0)) || fail "the store has old data that nobody needs"

step "Take snapshot tuesday, go on writing, and copy what differs between the two"
control take tuesday
use_file_system "rm /tuesday/new" "rm /tuesday/list" "rmdir /tuesday"
"$tool" changes "$work/control" monday tuesday >"$work/changes"
cp "$work/backup" "$work/restored"
copied=$("$python" examples/copy_extents.py "nbd+unix:///@tuesday?socket=$work/nbd" \
	"$work/restored" <"$work/changes")
echo "$(($(wc -l <"$work/changes") - 1)) extents, $copied bytes"

step "Now monday is not needed any more, and tuesday is what the next backup begins with"
nbdcopy "nbd+unix:///@tuesday?socket=$work/nbd" "$work/tuesday"
control downgrade tuesday
control drop monday
all_reclaimed() {
	(($(status .store.used_bytes) == 0))
}
wait_until 30 "the store to be empty" all_reclaimed

step "Verify"
cmp "$work/restored" "$work/tuesday" || fail "the two backups together are not tuesday"
! cmp -s "$work/backup" "$work/tuesday" || fail "nothing was written"
nbdcopy "$live" "$work/now"
! cmp -s "$work/now" "$work/tuesday" || fail "nothing was written after the second snapshot"
e2fsck -fn "$work/restored" >"$work/e2fsck.log" 2>&1 || {
	cat "$work/e2fsck.log"
	fail "e2fsck finds the restored file system damaged"
}
tail -n 1 "$work/e2fsck.log"
debugfs -R "dump /tuesday/new $work/new.restored" "$work/restored" >"$work/debugfs.log" 2>&1
cmp "$work/new" "$work/new.restored" || fail "the file of tuesday is another"
[[ -z $(debugfs -R "stat /$removed" "$work/restored" 2>/dev/null) ]] ||
	fail "a file that was removed is there"
((copied < full / 4)) || fail "$copied bytes were copied, $full in full"
kill "$server"
wait "$server" || fail "nbdkit did not end cleanly"
server=

printf '\nverified: full backup of monday plus the changes are bit-identical to tuesday '
printf '(%d MiB), e2fsck is clean; ' $((size >> 20))
printf 'the second backup copied %d bytes instead of %d\n' "$copied" "$full"
