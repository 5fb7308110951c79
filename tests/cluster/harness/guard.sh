#!/usr/bin/env bash
# Starts the cluster's namespaces and cleans what outlives them: it belongs to no terminal and does
# not die with the tests.
set -uo pipefail
trap '' HUP INT TERM
work=$1 link=$2 cgroup=$3
here=$(dirname "$0")

unshare --mount --uts --net --pid --fork --kill-child --mount-proc bash "$here/init.sh" "$work" <&0 &
echo $! >"$work/state/unshare.pid"
wait $!

# Killed processes leave their groups within milliseconds; the bound is for a machine under load.
groups() { find /sys/fs/cgroup -maxdepth 2 -type d -name "$cgroup" 2>/dev/null; }
for _ in $(seq 100); do
  [ -z "$(groups)" ] && break
  groups | while read -r top; do find "$top" -depth -type d -exec rmdir {} + 2>/dev/null; done
  [ -z "$(groups)" ] || sleep 0.1
done
ip link del "$link" 2>/dev/null
rm -rf "$work/state"
