#!/bin/sh
# Boots systemd in a copy of this machine's system: machine.sh NAME PACKAGES, the directory of the Debian packages, which is then
# /packages. Runs in mount, network, process, UTS, IPC and cgroup namespaces of its own. What is written goes to memory.
set -eu
name=$1 packages=$2

layers=$(mktemp -d)
mount -t tmpfs layers "$layers"
mkdir "$layers/upper" "$layers/work" "$layers/root"
mount -t overlay system -o "lowerdir=/,upperdir=$layers/upper,workdir=$layers/work" "$layers/root"
cd "$layers/root"
mount -t tmpfs -o mode=1777 tmp tmp
cp -r "$packages" packages
chmod -R a+rX packages
mount -t proc proc proc
# The settings of the network belong to the namespace. All others are this machine's, so they cannot be written.
mkdir tmp/proc
mount -t proc proc tmp/proc
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount --bind tmp/proc/sys/net proc/sys/net
umount tmp/proc
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755 run run
mount -t tmpfs -o mode=755 dev dev
for node in null:3 zero:5 full:7 random:8 urandom:9; do
    mknod -m 666 "dev/${node%:*}" c 1 "${node#*:}"
done
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=666 devpts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd

# This machine may have been a node, and what it starts itself is left out.
rm -rf etc/edge-cni etc/edge-controller var/lib/edge-cni var/lib/edge-controller etc/systemd/system/*.wants etc/cni opt/cni
: >etc/fstab
for unit in systemd-sysctl systemd-modules-load systemd-udevd systemd-udev-trigger systemd-logind getty@tty1 console-getty; do
    ln -sf /dev/null "etc/systemd/system/$unit.service"
done
echo "$name" >etc/hostname
mkdir old
pivot_root . old
umount -l /old
exec env -i container=edge-cni-test PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd --unit=multi-user.target
