#!/bin/sh
# Removes RKE2 and all of its data from this host (Infraflows lab distribution).
set -eu
[ "$(id -u)" = 0 ] || { echo "rke2-uninstall.sh must be run as root" >&2; exit 1; }

prefix=$(cd "$(dirname "$0")/.." && pwd)
"$prefix/bin/rke2-killall.sh"
for unit in rke2-server.service rke2-agent.service; do
    systemctl disable "$unit" 2>/dev/null || true
    rm -f "$prefix/lib/systemd/system/$unit" "/etc/systemd/system/$unit"
done
systemctl daemon-reload || true
rm -rf /etc/rancher/rke2 /etc/rancher/node /var/lib/rancher/rke2 "$prefix/libexec/rke2"
rmdir /etc/rancher /var/lib/rancher 2>/dev/null || true
rm -f "$prefix/bin/rke2" "$prefix/bin/rke2-killall.sh" "$prefix/bin/rke2-uninstall.sh"
