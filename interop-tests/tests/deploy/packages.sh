#!/bin/sh
# Installs, runs, upgrades, removes and purges the Debian packages in a copy of this machine's system: packages.sh OLD NEW, the
# directories of two versions. Runs in mount and network namespaces of its own. What is written goes to memory.
set -eu
old=$1 new=$2
fail() {
    echo "$*" >&2
    exit 1
}

layers=$(mktemp -d)
mount -t tmpfs layers "$layers"
mkdir "$layers/upper" "$layers/work" "$layers/root"
mount -t overlay system -o "lowerdir=/,upperdir=$layers/upper,workdir=$layers/work" "$layers/root"
root=$layers/root
mount -t tmpfs run "$root/run"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount -t tmpfs tmp "$root/tmp"
cp -r "$old" "$root/tmp/old"
cp -r "$new" "$root/tmp/new"
export DEBIAN_FRONTEND=noninteractive LC_ALL=C
inside() {
    chroot "$root" "$@"
}
# What the layer has, without what dpkg notes for itself. A character device marks a deletion from the lower layer.
written() {
    (cd "$layers/upper" && find . ! -type d ! -type c | grep -vE '^\./var/(lib/dpkg|log|cache)/' | sort)
}
until_it_answers() {
    tries=0
    until inside "$@" >"$layers/said" 2>&1; do
        tries=$((tries + 1))
        [ $tries -lt 600 ] || fail "$* does not answer: $(cat "$layers/said")"
        sleep 0.2
    done
}

# This machine may have been a node.
(cd "$root" && rm -rf etc/edge-cni etc/edge-controller var/lib/edge-cni var/lib/edge-controller)
before=$(written)
inside sh -c 'dpkg --install /tmp/old/edge-agent_1_*.deb /tmp/old/edge-controller_1_*.deb'
[ "$(inside dpkg-query --show --showformat '${Version}' edge-agent)" = 1 ] || fail "edge-agent 1 is not installed"
inside edge-cni --version
for program in edge-agent edge-cni edge-controller; do
    zcat "$root/usr/share/man/man8/$program.8.gz" | grep -q '^\.SH NAME' || fail "$program has no manual page"
done
for program in edge-agent edge-controller; do
    # shellcheck disable=SC2016
    completed=$(inside bash -c 'source "/usr/share/bash-completion/completions/$1"
        function=$(complete -p "$1" | sed "s/.* -F \([^ ]*\) .*/\1/")
        COMP_WORDS=("$1" stat) COMP_CWORD=1
        "$function" "$1" stat "$1"
        echo "${COMPREPLY[@]}"' bash "$program")
    [ "$completed" = status ] || fail "bash completes stat of $program as: $completed"
    for file in zsh/vendor-completions/_$program fish/vendor_completions.d/$program.fish; do
        [ -s "$root/usr/share/$file" ] || fail "$file is missing"
    done
done
# The keys that the files of the packages show are the right ones.
sed -i 's/^#\([a-z[]\)/\1/' "$root/etc/edge-controller/controller.toml"
mkdir "$root/etc/edge-cni"
cp "$root/usr/share/doc/edge-agent/examples/agent.toml" "$root/etc/edge-cni/"
printf 'correct horse battery staple\n' >"$root/etc/edge-cni/moon.psk"
chmod 600 "$root/etc/edge-cni/moon.psk"
inside edge-agent check

ip link set lo up
ip link add uplink type veth peer name wire
ip link set wire up
ip address add 192.0.2.1/24 dev uplink
ip link set uplink up
chroot "$root" edge-controller run --config /etc/edge-controller/controller.toml >"$layers/controller.log" 2>&1 &
controller=$!
chroot "$root" edge-agent run --config /etc/edge-cni/agent.toml >"$layers/agent.log" 2>&1 &
agent=$!
until_it_answers edge-controller node list
until_it_answers edge-agent status
grep -q moon "$layers/said" || fail "status does not name the peer: $(cat "$layers/said")"

# An upgrade keeps what the operator wrote, and the programs that run.
inside sh -c 'dpkg --install /tmp/new/edge-agent_2_*.deb /tmp/new/edge-controller_2_*.deb'
[ "$(inside dpkg-query --show --showformat '${Version}' edge-controller)" = 2 ] || fail "edge-controller 2 is not installed"
grep -q '^cluster_ranges' "$root/etc/edge-controller/controller.toml" || fail "the upgrade has changed controller.toml"
inside edge-agent status >/dev/null
kill -TERM $agent $controller
wait $agent || fail "the agent ended with $?: $(cat "$layers/agent.log")"
wait $controller || fail "the controller ended with $?: $(cat "$layers/controller.log")"

# While a pod is attached, the runtime needs the conflist to remove the pod.
conflist=$root/etc/cni/net.d/10-edge-cni.conflist
mkdir -p "${conflist%/*}"
echo '{}' >"$conflist"
ip link add ecni0 type bridge
ip link set dev ecni0 alias 'edge-cni bridge'
ip link add ecni0123456789a master ecni0 type veth peer name pod
ip link set dev ecni0123456789a alias 'edge-cni pod-1 eth0'

# Removing leaves configuration and identity; purging leaves nothing.
inside dpkg --remove edge-agent edge-controller >"$layers/removed" 2>&1
grep -q 'pods are attached: ecni0123456789a. The runtime needs /etc/cni/net.d/10-edge-cni.conflist' "$layers/removed" ||
    fail "the pod that keeps the conflist is not named: $(cat "$layers/removed")"
[ -e "$conflist" ] || fail "the conflist is removed while a pod is attached"
grep -q 'held sockets: [1-9]' "$layers/removed" || fail "what the agent left is not removed: $(cat "$layers/removed")"
[ -s "$root/etc/edge-cni/agent.toml" ] && [ -d "$root/var/lib/edge-cni" ] || fail "removing has removed the configuration or the state"
# Without pods, the conflist goes.
ip link del ecni0123456789a
inside sh -c 'dpkg --install /tmp/new/edge-agent_2_*.deb'
inside dpkg --remove edge-agent
[ ! -e "$conflist" ] || fail "the conflist is left, although no pod is attached"
inside dpkg --purge edge-agent edge-controller
after=$(written)
[ "$before" = "$after" ] || fail "purged, there is still:
$after"
for directory in etc/edge-cni etc/edge-controller var/lib/edge-cni var/lib/edge-controller usr/share/doc/edge-agent; do
    [ ! -e "$root/$directory" ] || fail "purged, there is still /$directory"
done
echo "packages: all done"
