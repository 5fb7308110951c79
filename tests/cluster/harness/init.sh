#!/usr/bin/env bash
# PID 1 of the cluster's own mount, network, process and host-name namespaces.
# It lives as long as its standard input, whose other end the test process holds: when that closes,
# also because the tests were killed, the kernel kills everything in here and drops every mount.
set -euo pipefail
work=$1

mount --make-rprivate /
mount --make-rshared /
# Programs with paths of their own (CNI, shims, kubelet) write into these and never into the host's.
resolv=$(readlink -m /etc/resolv.conf)
for dir in /run /var/lib /var/log; do mount -t tmpfs -o mode=0755 tmpfs "$dir"; done
mkdir -p /var/lib/kubelet /var/lib/containerd /var/log/pods /run/lock
mount --bind "$work/state/kubelet" /var/lib/kubelet
mount --bind "$work/containerd" /var/lib/containerd
mount --bind "$work/state/pod-logs" /var/log/pods
if [ ! -e "$resolv" ]; then mkdir -p "${resolv%/*}" && : >"$resolv"; fi
# No name server but the cluster's: nothing in here asks the outside.
mount --bind "$work/state/resolv.conf" "$resolv"
mount --bind "$work/state/hosts" /etc/hosts
hostname node1
ip link set lo up
echo up >"$work/state/init.up"
while read -r _; do :; done
