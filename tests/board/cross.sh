# shellcheck shell=bash disable=SC2154
# Stage `cross`, sourced by tests/run: the gateway for boards, without containers. Zig links, because it can link
# against an older glibc than this machine's; Debian's gcc compiles ring's C, because Zig's made TLS handshakes on
# armv7 four times slower. The programs are left in target/cross/TARGET/fieldgate.

readonly ZIG_VERSION=0.17.1 ZIGBUILD_VERSION=0.24.0
readonly BOARDS=(armv7-unknown-linux-gnueabihf aarch64-unknown-linux-gnu arm-unknown-linux-gnueabihf
    aarch64-unknown-linux-musl arm-unknown-linux-musleabihf)
# That of Debian 10; Raspberry Pi OS bullseye has 2.31, bookworm 2.36.
readonly GLIBC_FLOOR=2.28
readonly ARMV7_BYTES=3500000
readonly CROSS=${CARGO_TARGET_DIR:-target}/cross
readonly CROSS_TOOLS=${CARGO_TARGET_DIR:-target}/cross-tools

stage_cross() {
    local board
    cross_build "${BOARDS[@]}" || return
    cross_sizes
    check "cross: armv7 takes at most $ARMV7_BYTES bytes" 10 cross_fits
    for board in "${BOARDS[@]}"; do
        check "cross: $board: processor, C library and paths as meant" 10 cross_as_meant "$board"
        check "cross: $board: starts" 10 cross_starts "$board"
    done
    check 'cross: the emulated ARMv6 processor refuses code for ARMv7' 10 cross_armv6_is_armv6
    check 'cross: armv7: another directory and another cargo home make the same bytes' 1800 \
        cross_again_elsewhere
}

# cross_build TARGET…: one cargo for all whose standard library rustup has, one for those for which it is built:
# several targets in one keep all cores busy while one is in its last, serial step.
cross_build() {
    local board ready=() std=()
    need_cross_tools
    for board in "$@"; do
        if has_std "$board"; then ready+=("$board"); else std+=("$board"); fi
    done
    if ((${#ready[@]})); then
        check "cross: build ${ready[*]}" 2400 zigbuild "$PWD" "$CROSS-build/ready" "${ready[@]}" || return
    fi
    if ((${#std[@]})); then
        check "cross: build ${std[*]} and their standard library" 2400 \
            zigbuild "$PWD" "$CROSS-build/std" -Zbuild-std=std,panic_abort "${std[@]}" || return
    fi
    for board in "${ready[@]}"; do
        install -D "$CROSS-build/ready/$board/release/fieldgate" "$CROSS/$board/fieldgate"
    done
    for board in "${std[@]}"; do
        install -D "$CROSS-build/std/$board/release/fieldgate" "$CROSS/$board/fieldgate"
    done
}

# zigbuild SOURCES TARGET_DIRECTORY [-Zbuild-std=…] TARGET…
zigbuild() (
    local sources=$1 board arguments=() into tools sysroot rustflags
    into=$(realpath -m "$2") tools=$(realpath "$CROSS_TOOLS/venv/bin")
    shift 2
    sysroot=$(rustc --print sysroot)
    # Where things stand on this machine is nobody's business on a board, and would differ on the next one.
    rustflags="--remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=/cargo"
    rustflags+=" --remap-path-prefix=$sysroot/lib/rustlib/src/rust=/rustc"
    unset RUSTFLAGS CARGO_ENCODED_RUSTFLAGS RUSTC_BOOTSTRAP
    if [[ $1 == -Zbuild-std* ]]; then
        arguments+=("$1")
        export RUSTC_BOOTSTRAP=1
        shift
    fi
    for board in "$@"; do
        local name=${board//-/_} gcc=arm-linux-gnueabihf flags=$rustflags
        if [[ $board == aarch64-* ]]; then gcc=aarch64-linux-gnu; fi
        # rustc would look for musl in a standard library that nobody installed; Zig has one.
        if [[ $board == *musl* && -n ${RUSTC_BOOTSTRAP:-} ]]; then flags+=' -Clink-self-contained=no'; fi
        export "CC_$name=$gcc-gcc" "AR_$name=$gcc-ar" "CARGO_TARGET_${name^^}_RUSTFLAGS=$flags"
        case $board in
            *-gnu*) arguments+=(--target "$board.$GLIBC_FLOOR") ;;
            *) arguments+=(--target "$board") ;;
        esac
    done
    export PATH=$tools:$PATH
    cd "$sources" || return
    bounded 2400 cargo zigbuild --quiet --locked --release --no-default-features \
        --features gateway --bin fieldgate --target-dir "$into" "${arguments[@]}"
)

cross_sizes() {
    local board
    printf '\n%-32s %10s  %s\n' 'stripped gateway' bytes 'needs glibc'
    for board in "${BOARDS[@]}"; do
        printf '%-32s %10s  %s\n' "$board" "$(stat -c %s "$CROSS/$board/fieldgate")" \
            "$(needed_glibc "$board")"
    done
    echo
}

cross_fits() {
    local bytes
    bytes=$(stat -c %s "$CROSS/armv7-unknown-linux-gnueabihf/fieldgate")
    if ((bytes > ARMV7_BYTES)); then
        echo "it takes $bytes bytes"
        return 1
    fi
}

# Nothing above the floor, nothing above the processor, nothing that names this machine.
cross_as_meant() {
    local binary=$CROSS/$1/fieldgate needed wanted found
    needed=$(needed_glibc "$1")
    if [[ $1 == *musl* && -n $needed ]]; then
        echo "a static program that needs glibc $needed"
        return 1
    fi
    if [[ $(printf '%s\n' "$needed" "$GLIBC_FLOOR" | sort -V | tail -n 1) != "$GLIBC_FLOOR" ]]; then
        echo "it needs glibc $needed, more than $GLIBC_FLOOR"
        return 1
    fi
    case $1 in
        armv7-*) wanted='Tag_CPU_arch: v7' ;;
        arm-*) wanted='Tag_CPU_arch: v6' ;;
        *) wanted='Machine: AArch64' ;;
    esac
    found=$(readelf -hA "$binary" | sed 's/^ *//; s/:  */: /' | grep -E '^(Tag_CPU_arch|Machine):')
    if ! grep -qxF "$wanted" <<<"$found"; then
        printf 'wanted %s and got:\n%s\n' "$wanted" "$found"
        return 1
    fi
    if grep -aqF -e "$PWD" -e "$HOME/" "$binary"; then
        echo 'paths of this machine are in it:'
        grep -aoE "($PWD|$HOME/)[[:graph:]]{0,60}" "$binary" | sort -u | head -n 5
        return 1
    fi
}

cross_starts() {
    # shellcheck disable=SC2046
    [[ $($(runner "$1") "$CROSS/$1/fieldgate" --version) == "fieldgate $(package_version)" ]]
}

# What the programs for ARMv6 prove by starting hangs on this: Debian's C library, which is for ARMv7, must not.
cross_armv6_is_armv6() {
    local code=0 loader=/usr/arm-linux-gnueabihf/lib/ld-linux-armhf.so.3
    # In a shell of its own, because a shell reports the signal on its own standard error.
    (qemu-arm-static -cpu arm1176 "$loader" --version || exit "$?") >"$output/armv6" 2>&1 || code=$?
    # SIGILL.
    if ((code != 132)); then
        cat "$output/armv6"
        echo "$loader ended with $code, not with an illegal instruction"
        return 1
    fi
}

cross_again_elsewhere() {
    local elsewhere board=armv7-unknown-linux-gnueabihf code=0
    elsewhere=$(mktemp -d)
    mkdir "$elsewhere/sources" "$elsewhere/home"
    tar --exclude=./target --exclude=./.git -cf - . | tar -xf - -C "$elsewhere/sources"
    # What was downloaded need not be so twice; but it stands under another path.
    ln -s "${CARGO_HOME:-$HOME/.cargo}/registry" "$elsewhere/home/registry"
    CARGO_HOME=$elsewhere/home zigbuild "$elsewhere/sources" "$elsewhere/target" "$board" &&
        cmp "$CROSS/$board/fieldgate" "$elsewhere/target/$board/release/fieldgate" || code=$?
    rm -rf "$elsewhere"
    return "$code"
}

# The greatest version of glibc that a program asks for; nothing if it is static.
needed_glibc() {
    readelf -V "$CROSS/$1/fieldgate" | grep -o 'GLIBC_[0-9.]*' | cut -d_ -f2 | sort -uV | tail -n 1
}

# runner TARGET: the words that run its programs here. Debian's C library for armhf is ARMv7, so only a static
# program can run on an ARMv6 processor.
runner() {
    case $1 in
        arm-*musl*) echo 'qemu-arm-static -cpu arm1176' ;;
        arm*) echo 'qemu-arm-static -L /usr/arm-linux-gnueabihf' ;;
        aarch64-*) echo 'qemu-aarch64-static -L /usr/aarch64-linux-gnu' ;;
    esac
}

package_version() {
    sed -n 's/^version = "\(.*\)"$/\1/p' Cargo.toml | head -n 1
}

need_cross_tools() {
    local venv=$CROSS_TOOLS/venv
    need arm-linux-gnueabihf-gcc gcc-arm-linux-gnueabihf
    need aarch64-linux-gnu-gcc gcc-aarch64-linux-gnu
    need qemu-arm-static qemu-user-static
    if [[ ! -e /usr/arm-linux-gnueabihf/include/stdio.h ]]; then debian_install libc6-dev-armhf-cross; fi
    if [[ ! -e /usr/aarch64-linux-gnu/include/stdio.h ]]; then debian_install libc6-dev-arm64-cross; fi
    if "$venv/bin/python" -c "from importlib.metadata import version as v
assert (v('ziglang'), v('cargo-zigbuild')) == ('$ZIG_VERSION', '$ZIGBUILD_VERSION')" >"$output/zig" 2>&1; then
        return
    fi
    echo "installing ziglang $ZIG_VERSION and cargo-zigbuild $ZIGBUILD_VERSION into $venv"
    if ! python3 -c 'import venv, ensurepip' >"$output/python" 2>&1; then debian_install python3-venv; fi
    timeout 300 python3 -m venv --clear "$venv" &&
        timeout 600 "$venv/bin/pip" install --quiet --disable-pip-version-check \
            "ziglang==$ZIG_VERSION" "cargo-zigbuild==$ZIGBUILD_VERSION" || true
}

# Whether rustup has a standard library for the target; where it has not, its sources serve.
has_std() {
    local installed
    installed=$(rustup target list --installed)
    if grep -qxF "$1" <<<"$installed"; then return; fi
    timeout 300 rustup target add "$1" >"$output/rustup" 2>&1 && return
    timeout 300 rustup component add rust-src >"$output/rustup" 2>&1 || cat "$output/rustup"
    return 1
}
