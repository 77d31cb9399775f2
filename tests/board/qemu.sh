# shellcheck shell=bash
# Stage `qemu`, sourced by tests/run: the gateways of stage `cross` on their processors, emulated, against a hub of
# this machine; and the tests of what counts in 64 bits, with 32.

readonly QEMU_ROOMS=(record:: topic:: command:: protocol:: spool:: gateway::)

stage_qemu() {
    local board boards=(armv7-unknown-linux-gnueabihf arm-unknown-linux-musleabihf
        arm-unknown-linux-gnueabihf aarch64-unknown-linux-gnu)
    cross_build "${boards[@]}" || return
    for board in "${boards[@]}"; do
        NEXTEST_SUCCESS_OUTPUT=immediate FIELDGATE_BIN=$PWD/$CROSS/$board/fieldgate \
            FIELDGATE_RUNNER=$(runner "$board") \
            rust_tests "qemu: $board" 1200 fast board --test scenarios
    done
    check_counted 'qemu: unit tests with 32 bits' 2400 qemu_unit_tests
}

qemu_unit_tests() {
    local board=armv7-unknown-linux-gnueabihf
    local gcc=arm-linux-gnueabihf-gcc name=ARMV7_UNKNOWN_LINUX_GNUEABIHF
    # So many seeds reach every step with 32 bits; the unit stage runs many times as many, and a whole week.
    bounded 2400 env FIELDGATE_TEST_SEEDS=50 "CC_${name,,}=$gcc" "CARGO_TARGET_${name}_LINKER=$gcc" \
        "CARGO_TARGET_${name}_RUNNER=$(runner "$board")" \
        cargo test --quiet --locked --target "$board" --target-dir "$CROSS-build/tests" \
        --no-default-features --features gateway --lib -- "${QEMU_ROOMS[@]}" --skip a_normal_week
}
