#!/bin/sh
# In the guest of one power cut: attaches and detaches pods, with the leases on the disk /dev/ubda, and reports each step by an
# empty directory in REPORT, which the host sees at once. usage: guest.sh REPORT PLUGIN
set -eu
report=$1 plugin=$2
config='{"cniVersion":"1.0.0","name":"pods","type":"edge-cni","stateDir":"/mnt/disk/state","agentSocket":"/run/none","segments":["10.77.3.0/29"]}'

say() { mkdir "$report/$1"; }

call() { # VERB POD
    printf '%s' "$config" | CNI_COMMAND=$1 CNI_CONTAINERID=$2 CNI_NETNS=/run/netns/$2 CNI_IFNAME=eth0 CNI_PATH=/ "$plugin" >"/run/$2.json"
}

fail() { # VERB POD
    cp "/run/$2.json" "$report/failure"
    sync "$report/failure"
    say "failed-$1-$2"
    exit 1
}

attach() {
    ip netns add "$1"
    call ADD "$1" || fail ADD "$1"
    address=$(tr -d ' \n' <"/run/$1.json" | sed -n 's|.*"address":"\([0-9.]*\)/.*|\1|p')
    say "attached-$1"
    say "address-$address-$1"
}

detach() {
    say "detaching-$1"
    call DEL "$1" || fail DEL "$1"
    say "detached-$1"
}

mkdir -p /mnt/disk
mount -t ext4 /dev/ubda /mnt/disk
# The journal as the cut before left it. Its copy must be whole at the host before anything else happens.
if [ -e /mnt/disk/state/leases ]; then
    cp /mnt/disk/state/leases "$report/journal"
    sync "$report/journal"
fi
say mounted
for pod in stays-1 stays-2 goes early-1 early-2; do
    attach "$pod"
done
say full
detach early-1
detach early-2
attach late-1 &
attach late-2 &
detach goes &
wait
say ended
# Until the cut.
exec sleep infinity
