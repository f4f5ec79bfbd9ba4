#!/bin/sh
# Installs what the lab, the scenarios and the demo need from Debian; does nothing, and quickly, where all of it is there.
set -eu

# To build the lab kernel; to lay out its networks; the peers; what the scenarios look with.
packages="gcc make flex bison bc libelf-dev libc6-dev xz-utils bzip2 ca-certificates
iproute2 nftables iptables util-linux procps
charon-systemd strongswan-swanctl strongswan-pki strongswan-libcharon libstrongswan-standard-plugins libstrongswan-extra-plugins libcharon-extra-plugins
iputils-ping iputils-arping tcpdump jq"

if ! command -v dpkg-query >/dev/null; then
    echo "install.sh: this is not Debian or a derivative; please install the equivalent of:" $packages >&2
    exit 1
fi

missing=
for package in $packages; do
    state=$(dpkg-query -W -f='${db:Status-Abbrev}' "$package" 2>/dev/null || true)
    case $state in
        ii*) ;;
        *) missing="$missing $package" ;;
    esac
done
[ -n "$missing" ] || exit 0

if [ "$(id -u)" -ne 0 ]; then
    echo "install.sh: these packages are missing and we are not root:$missing" >&2
    echo "run as root: apt-get install --no-install-recommends$missing" >&2
    exit 1
fi

echo "installing:$missing" >&2
# A peer that starts as a service on this machine would take IKE's ports and write kernel states: the lab starts its own.
policy=/usr/sbin/policy-rc.d
made=
if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
    made=$policy
fi
trap '[ -z "$made" ] || rm -f "$made"' EXIT
export DEBIAN_FRONTEND=noninteractive
apt-get -q -o Acquire::Check-Valid-Until=false update >&2
# shellcheck disable=SC2086 # one word a package
apt-get -q -y install --no-install-recommends $missing >&2
