#!/bin/sh
# Stops everything that RKE2 runs on this host and leaves its data alone (Infraflows lab distribution).
set -eu
[ "$(id -u)" = 0 ] || { echo "rke2-killall.sh must be run as root" >&2; exit 1; }

for unit in rke2-server.service rke2-agent.service; do
    if systemctl list-unit-files "$unit" >/dev/null 2>&1; then
        systemctl stop "$unit" 2>/dev/null || true
    fi
done

# Children die with rke2; what runs from our own directory all the same is ended by its path, not by its name.
for process in /proc/[0-9]*; do
    target=$(readlink "$process/exe" 2>/dev/null) || continue
    case "$target" in
    /usr/local/libexec/rke2/*) kill -KILL "${process#/proc/}" 2>/dev/null || true ;;
    esac
done
