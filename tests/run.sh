#!/usr/bin/env bash
# Runs the checks one after another, goes on after a failed one, and ends with a table.
#
#   tests/run.sh [part...]
#     parts:  format lint types layers go unit lab chaos
#     groups: fast (all that needs no lab), all (the default)
#
# The parts `lab` and `chaos` run against a lab of their own: instance `test`, own home, own port.
# What an earlier, killed run left of it is removed first. Full output: test-results/<part>.log.
set -uo pipefail

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$top" || exit 1

readonly instance=test
readonly lock=/run/lock/infraflows-test-run.lock
if [[ ${1:-} != --locked ]]; then
    mkdir -p "$(dirname "$lock")"
    flock --nonblock "$lock" true || echo "Another run of the tests is under way on this machine; waiting for it."
    # --close: what the tests start must not inherit the lock and hold it after a kill.
    exec flock --close "$lock" "${BASH_SOURCE[0]}" --locked "$@"
fi
shift

export INFRAFLOWS_CACHE=${INFRAFLOWS_CACHE:-/var/cache/infraflows}
export LANG=C.UTF-8 LC_ALL=C.UTF-8 HOME=${HOME:-/root} NO_COLOR=1 TERM=dumb
export PATH=$top/.venv/bin:$PATH:/usr/sbin:/sbin
export PREFECT_SERVER_ANALYTICS_ENABLED=false DO_NOT_TRACK=1
# The tests' environment is theirs: nothing of a person's shell may steer them.
unset PREFECT_API_URL PREFECT_API_AUTH_STRING PREFECT_PROFILE VIRTUAL_ENV TF_CLI_CONFIG_FILE REQUESTS_CA_BUNDLE
unset INFRAFLOWS_LAB_HOME INFRAFLOWS_LAB_INSTANCE INFRAFLOWS_UI_PORT

home=/var/lib/infraflows-lab-$instance
scratch=/var/tmp/infraflows-$instance # pytest's temporary files; short, sockets lie in it
results=$top/test-results
mkdir -p "$results"

all_parts=(format lint types layers go unit lab chaos)
fast_parts=(format lint types layers go unit)
parts=()
for argument in "${@:-all}"; do
    case $argument in
    all) parts+=("${all_parts[@]}") ;;
    fast) parts+=("${fast_parts[@]}") ;;
    format | lint | types | layers | go | unit | lab | chaos) parts+=("$argument") ;;
    *)
        echo "Unknown part: $argument. Known: ${all_parts[*]} fast all." >&2
        exit 2
        ;;
    esac
done

budget_seconds=${INFRAFLOWS_TEST_BUDGET_SECONDS:-4950} # of all parts together; usually a third of it
rows=()
failed=0
lab_is_up=false

seconds_since() { awk -v a="$1" -v b="$EPOCHREALTIME" 'BEGIN { printf "%.1f", b - a }'; }

record() { rows+=("$(printf '%-8s  %-7s  %7s s  %s' "$1" "$2" "$3" "$4")"); }

# run_part NAME LIMIT_SECONDS COMMAND...: quiet when it passes, the end of its output when not.
run_part() {
    local name=$1 limit=$2 since=$EPOCHREALTIME rc last left=$((budget_seconds - SECONDS))
    shift 2
    ((left < 30)) && left=30
    ((limit > left)) && limit=$left
    echo "== $name"
    # `timeout` ends the whole group of the part, and what ignores TERM is killed.
    timeout --kill-after=30 "$limit" "$@" >"$results/$name.log" 2>&1 </dev/null
    rc=$?
    last=$(grep -v '^[[:space:]]*$' "$results/$name.log" | tail -n 1 | cut -c1-100)
    if ((rc == 0)); then
        record "$name" passed "$(seconds_since "$since")" "$last"
    else
        failed=1
        ((rc == 124 || rc == 137)) && last="ended after the limit of $limit s"
        record "$name" FAILED "$(seconds_since "$since")" "$last"
        echo "-- $name failed ($rc); the end of test-results/$name.log:"
        tail -n 120 "$results/$name.log" | cut -c1-400
    fi
    return $rc
}

pytest_part() { # NAME LIMIT MARKER [pytest argument...]
    local name=$1 limit=$2 marker=$3 inside=()
    shift 3
    # A test of the lab stands where an operator's workstation would: inside the lab's network.
    $lab_is_up && [[ $name != unit* ]] && inside=(infraflows-lab exec --)
    # A traceback of every thread is written when one test takes this long: a hang explains itself.
    run_part "$name" "$limit" "${inside[@]}" python -m pytest -q --tb=short --durations=8 --color=no -m "$marker" \
        -o "cache_dir=$results/cache-$name" -o faulthandler_timeout=420 --basetemp="$scratch/$name" --junit-xml="$results/$name.xml" "$@"
}

retried_part() { # NAME LIMIT MARKER [pytest argument...]: once more for what failed, and loudly if that helps
    local name=$1 limit=$2 marker=$3 count
    shift 3
    rm -rf "$results/cache-$name"
    local before=$failed rc=0
    pytest_part "$name" "$limit" "$marker" "$@" || rc=$?
    ((rc == 1)) || return $rc # passed, or it did not come as far as a verdict on tests
    cp "$results/$name.log" "$results/$name-first.log"
    if pytest_part "$name-2" "$limit" "$marker" -o "cache_dir=$results/cache-$name" --last-failed --last-failed-no-failures=none; then
        failed=$before
        count=$(grep -c '^FAILED\|^ERROR' "$results/$name-first.log")
        echo "!! FLAKY: $count test(s) of $name failed first and passed when run again:"
        grep '^FAILED\|^ERROR' "$results/$name-first.log" | cut -c1-200
        rows[-2]=${rows[-2]/FAILED /FLAKY  }
    fi
}

lab_part() { # NAME LIMIT MARKER
    start_lab || { record "$1" FAILED 0.0 "not run: the lab did not start"; failed=1; return 1; }
    retried_part "$@"
}

lab_down() { # INSTANCE HOME [--purge]: finds what is left in the kernel, not in the lab's own records
    env INFRAFLOWS_LAB_INSTANCE="$1" INFRAFLOWS_LAB_HOME="$2" timeout --kill-after=10 180 \
        .venv/bin/infraflows-lab down ${3:+"$3"} >"$results/down-$1.log" 2>&1 </dev/null ||
        echo "-- the clean-up of lab $1 complains: $(tail -n 5 "$results/down-$1.log" | cut -c1-300)"
}

purge_lab() {
    lab_down "$instance" "$home" --purge
    # A home that was killed before it was marked as one: the path is the tests' own.
    rm -rf --one-file-system "$home"
    [[ ! -e $home ]]
}

purge_scratch() { # single tests make small labs of their own, named test-<pid of pytest>
    local entry pid
    for entry in /run/netns/infraflows-test-* /run/infraflows-test-* /sys/fs/cgroup/{,*/}infraflows-test-*; do
        pid=${entry##*-}
        [[ -e $entry && $pid =~ ^[0-9]+$ ]] || continue
        grep -qs pytest "/proc/$pid/cmdline" && continue # a person's own pytest, at work
        lab_down "test-$pid" "$scratch"
    done
    if grep -qF " $scratch/" /proc/self/mountinfo; then lab_down "$instance" "$scratch"; fi
    rm -rf --one-file-system "$scratch"
    mkdir -p "$scratch"
}

start_lab() {
    $lab_is_up && return 0
    purge_lab
    export INFRAFLOWS_LAB_INSTANCE=$instance INFRAFLOWS_LAB_HOME=$home INFRAFLOWS_UI_PORT=14200
    lab_is_up=true # what is half up has to be taken down too
    if ! run_part lab-up 240 bash -c 'infraflows-lab up && infraflows-lab exec -- infraflows setup'; then
        lab_is_up=false
        keep_lab_logs
        return 1
    fi
}

keep_lab_logs() {
    [[ -d $home/log ]] || return 0
    rm -rf "$results/lab-log"
    cp -r "$home/log" "$results/lab-log" 2>/dev/null || true
}

finish() {
    local rc=$?
    trap - EXIT
    if [[ -e $home || -e /run/infraflows-$instance || -e /run/netns/infraflows-$instance ]]; then
        keep_lab_logs
        purge_lab || failed=1
    fi
    purge_scratch
    rmdir "$scratch" 2>/dev/null
    exit "$((rc != 0 ? rc : failed))"
}
trap finish EXIT
trap 'exit 130' INT TERM HUP

go_checks() {
    local go
    go=$(python -c 'from lab.toolchain.gobuild import find_go; print(find_go())') || return 1
    (cd lab/rke2 && export CGO_ENABLED=0 GOFLAGS=-buildvcs=false && "$go" vet ./... && "$go" test ./...)
}
export -f go_checks

lint_checks() {
    local script
    ruff check . || return 1
    for script in .ci/run lab/*.sh tests/*.sh lab/toolchain/guest/*.sh; do bash -n "$script" || return 1; done
}
export -f lint_checks

began=$EPOCHREALTIME
[[ -x .venv/bin/python ]] || { echo "No Python environment. Run lab/setup.sh --tests first." >&2; exit 1; }
purge_scratch
for part in "${parts[@]}"; do
    case $part in
    format) run_part format 60 ruff format --check . ;;
    lint) run_part lint 60 bash -c lint_checks ;;
    types) run_part types 300 mypy ;;
    layers) run_part layers 120 lint-imports ;;
    go) run_part go 400 bash -c go_checks ;;
    # Two processes, a folder in one of them: most of these tests wait for real servers.
    unit) retried_part unit 2400 "not lab and not chaos" --numprocesses=2 --dist=loadscope ;;
    lab) lab_part lab 2100 "lab and not chaos" ;;
    chaos) lab_part chaos 3000 chaos ;;
    esac
done

echo
echo "part      result         time  last words"
printf '%s\n' "${rows[@]}"
echo "total $(seconds_since "$began") s"
((failed)) && echo "FAILED" || echo "passed"
exit "$failed"
