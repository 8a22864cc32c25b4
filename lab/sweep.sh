#!/usr/bin/env bash
# Removes whatever a killed lab left on the machine: processes, mounts, loop devices, namespaces,
# cgroups, files. For one instance only, told by its name and its home; other labs are not touched.
# Deleting the absent succeeds, so it is safe to run on a clean machine. `infraflows-lab down --purge`
# is the orderly way; this one needs no Python environment and trusts no record of the lab.
#
#   lab/sweep.sh INSTANCE HOME
set -uo pipefail

instance=${1:?instance} home=${2:?home}
namespace=infraflows-$instance
[[ $instance =~ ^[a-z][a-z0-9-]{0,14}$ ]] || { echo "Not an instance name: $instance" >&2; exit 2; }
[[ $home == /*/*[!/] ]] || { echo "Not a lab's home: $home" >&2; exit 2; }

# Processes: inside the lab's network namespace, with the instance in their environment, or with a
# file system of the lab as their root (a guest whose nspawn was killed).
lab_processes() {
    local process pid
    ip netns pids "$namespace" 2>/dev/null
    for process in /proc/[0-9]*; do
        pid=${process#/proc/}
        [[ $pid == "$$" || $pid == "$BASHPID" || $pid == "$PPID" ]] && continue
        if grep -qsxz "INFRAFLOWS_LAB_INSTANCE=$instance" "$process/environ" &&
            grep -qsxz "INFRAFLOWS_LAB_HOME=$home" "$process/environ"; then
            echo "$pid"
        elif awk -v home="$home/" '$5 == "/" && index($0, home) { found = 1; exit } END { exit !found }' \
            "$process/mountinfo" 2>/dev/null; then
            echo "$pid"
        fi
    done
}

thaw() { # a frozen process cannot die
    local file
    find /sys/fs/cgroup -type f \( -name freezer.state -o -name cgroup.freeze \) -path "*/$namespace/*" 2>/dev/null |
        while read -r file; do
            case $file in
            */freezer.state) echo THAWED >"$file" ;;
            *) echo 0 >"$file" ;;
            esac
        done 2>/dev/null
}

kill_processes() {
    local round pids
    for round in 1 2 3 4 5; do
        thaw
        mapfile -t pids < <(lab_processes | sort -un)
        ((${#pids[@]})) || return 0
        kill -KILL "${pids[@]}" 2>/dev/null
        sleep 0.3
    done
    echo "Unable to end these processes of lab $instance: ${pids[*]}" >&2
}

unmount_all() {
    local round point
    for round in 1 2 3; do
        # The deepest first. A mount is the lab's if it lies in its home or run directory.
        awk -v a="$home/" -v b="/run/$namespace/" 'index($5, a) == 1 || index($5, b) == 1 { print $5 }' \
            /proc/self/mountinfo | sort -r | while read -r point; do
            umount -l "$(printf '%b' "$point")" 2>/dev/null
        done
    done
}

detach_loops() {
    local device file
    losetup --list --noheadings --output NAME,BACK-FILE 2>/dev/null | while read -r device file; do
        [[ $file == "$home"/* ]] && losetup --detach "$device" 2>/dev/null
    done
}

remove_namespaces() {
    local name
    # The lab's own, and its guests' which carry its name and a separator in front.
    for name in $(ip netns list 2>/dev/null | awk '{ print $1 }'); do
        [[ $name == "$namespace" || $name == "$namespace".* || $name == "$namespace"_* ]] &&
            ip netns delete "$name" 2>/dev/null
    done
    # A name without a namespace behind it (its mount is gone) is only a file.
    [[ -e /run/netns/$namespace ]] && { umount -l "/run/netns/$namespace" 2>/dev/null; rm -f "/run/netns/$namespace"; }
    return 0
}

remove_cgroups() {
    local folder
    find /sys/fs/cgroup -depth -type d \( -name "$namespace" -o -path "*/$namespace/*" \) 2>/dev/null |
        while read -r folder; do rmdir "$folder" 2>/dev/null; done
}

kill_processes
unmount_all
detach_loops
remove_namespaces
remove_cgroups
rm -rf "/run/$namespace" "/run/$namespace.lock"
rm -rf --one-file-system "$home"
[[ ! -e $home ]] || { echo "Unable to remove $home" >&2; exit 1; }
