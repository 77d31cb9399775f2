# shellcheck shell=bash disable=SC2154
# Stage `memory`, sourced by tests/run: all of a board's work with little memory, under a kernel that counts every
# page, those of files that were just written included.

readonly MEMORY_BYTES=$((24 << 20))

stage_memory() {
    local group=
    check 'memory: build' 1800 cargo build --quiet --release --no-default-features \
        --features gateway --bin fieldgate || return
    group=$(memory_group) || {
        printf 'SKIP memory: %s\n' "$group"
        skipped=$((skipped + 1))
        return
    }
    # A `fieldgate status` beside it is somebody else's memory.
    cat >"$output/within" <<END
#!/bin/sh
[ "\$2" != run ] || echo \$\$ >$group/cgroup.procs
exec "\$@"
END
    chmod 755 "$output/within"
    NEXTEST_SUCCESS_OUTPUT=immediate FIELDGATE_RUNNER=$output/within \
        FIELDGATE_BIN=$(realpath "${CARGO_TARGET_DIR:-target}/release/fieldgate") \
        rust_tests "memory: $((MEMORY_BYTES >> 20)) MiB" 1200 fast board --test scenarios
    check 'memory: nothing was killed for want of it' 10 memory_sufficed "$group"
    rmdir "$group"
}

# Makes a control group of the first version and prints its directory, or why there is none.
memory_group() {
    local group=/sys/fs/cgroup/memory/fieldgate-$$
    if ! mkdir "$group" 2>"$output/group"; then
        echo "no memory controller of cgroup v1 that is ours to use: $(<"$output/group")"
        return 1
    fi
    echo "$MEMORY_BYTES" >"$group/memory.limit_in_bytes"
    echo "$group"
}

memory_sufficed() {
    local group=$1 killed
    killed=$(sed -n 's/^oom_kill //p' "$group/memory.oom_control")
    printf 'peak: %s of %s bytes, pages of files included; at the limit %s times\n' \
        "$(<"$group/memory.max_usage_in_bytes")" "$MEMORY_BYTES" "$(<"$group/memory.failcnt")"
    if [[ ${killed:-0} != 0 ]]; then
        echo "the kernel killed $killed"
        return 1
    fi
}
