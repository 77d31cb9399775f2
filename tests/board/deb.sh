# shellcheck shell=bash disable=SC2154
# Stage `deb`, sourced by tests/run: the packages and tarballs of systemd/package/build, for amd64 as built here, and for
# the ARM architectures where a board's binary stands in target/ (stage cross leaves them there) or is given by
# FIELDGATE_ARM64 or FIELDGATE_ARMHF.

readonly BOARD=target/board PACKAGES=target/board/packages PAGES=target/board/pages

# No unit may be more exposed than this, in tenths, by the count of systemd-analyze security.
readonly EXPOSURE_TENTHS=15

stage_deb() {
    need readelf binutils
    need lintian lintian
    need man man-db
    need systemd-analyze systemd
    build_packages || return
    local deb
    for deb in "$PACKAGES"/*.deb; do
        check "deb: lintian has nothing to say of $(basename "$deb")" 120 \
            lintian --allow-root --fail-on error,warning --tag-display-limit 0 "$deb"
        check "deb: what is in $(basename "$deb")" 60 right_contents "$deb"
    done
    check 'deb: the same input gives the same bytes' 60 packaged_again
    check 'deb: no package for another architecture than its binary' 60 refuses_other_architecture
    check 'deb: the tarball installs into an image, and leaves it as it was' 60 installed_in_image
    check 'deb: manual pages without a warning' 60 right_pages
    check 'deb: completions are valid bash' 60 right_completions
    local unit
    for unit in fieldgate fieldgate-hub; do
        check "deb: systemd knows every line of $unit.service" 60 verified_unit "$unit"
        check "deb: exposure of $unit.service is at most 1.5" 60 little_exposed "$unit"
    done
}

# Builds both programs and packages them; both stages need it.
build_packages() {
    mkdir -p "$BOARD/amd64" && rm -rf "$PACKAGES" "$PAGES" && mkdir -p "$PACKAGES" "$PAGES"
    local side built=${CARGO_TARGET_DIR:-target}/release
    for side in gateway:fieldgate hub:fieldgate-hub; do
        check "packages: build ${side#*:}" 1800 cargo build --quiet --release --no-default-features \
            --features "${side%:*}" --bin "${side#*:}" || return
        # Another stage builds the same program with more features.
        cp "$built/${side#*:}" "$BOARD/amd64/"
    done
    check 'packages: manual pages and completions' 1200 cargo run --quiet --example pages -- "$PAGES" \
        "$(git log -1 --format=%cs)" || return
    check 'packages: amd64' 120 package_architecture amd64 "$BOARD/amd64/fieldgate" "$BOARD/amd64/fieldgate-hub" ||
        return
    package_arm arm64 aarch64-unknown-linux-gnu "${FIELDGATE_ARM64:-}"
    package_arm armhf arm-unknown-linux-gnueabihf "${FIELDGATE_ARMHF:-}"
}

# package_arm ARCHITECTURE TRIPLE GIVEN: from the binary that is given, or that stands in target/.
package_arm() {
    local architecture=$1 triple=$2 binary=$3
    if [[ -z $binary ]]; then
        binary=$(find "${CARGO_TARGET_DIR:-target}"/{cross/,}"$triple" -maxdepth 2 -name fieldgate -type f \
            -printf '%T@ %p\n' 2>"$output/find" | sort -rn | head -n 1 | cut -d' ' -f2-)
    fi
    if [[ -z $binary ]]; then
        printf 'SKIP packages: %s: no binary for %s in target/; run the stage cross first\n' "$architecture" "$triple"
        skipped=$((skipped + 1))
        return
    fi
    check "packages: $architecture" 120 package_architecture "$architecture" "$binary" ''
}

# package_architecture ARCHITECTURE GATEWAY HUB
package_architecture() {
    systemd/package/build fieldgate "$1" "$2" "$PAGES" "$PACKAGES" || return
    if [[ -n $3 ]]; then systemd/package/build fieldgate-hub "$1" "$3" "$PAGES" "$PACKAGES"; fi
}

renewal_units() {
    printf -- '-rw-r--r-- root/root ./usr/lib/systemd/system/fieldgate-renew.%s\n' service timer
}

right_contents() {
    local deb=$1 package config path wrong=0
    package=$(dpkg-deb --field "$deb" Package)
    config=fieldgate.toml
    if [[ $package == fieldgate-hub ]]; then config=hub.toml; fi
    dpkg-deb --contents "$deb" | awk '{ print $1, $2, $6 }' >"$output/contents"
    while read -r path; do
        if [[ -z $path ]]; then continue; fi
        if ! grep -qxF -- "$path" "$output/contents"; then
            echo "is missing, or has another mode or owner: $path" && wrong=1
        fi
    done <<END
-rwxr-xr-x root/root ./usr/bin/$package
-rw-r--r-- root/root ./etc/fieldgate/$config
-rw-r--r-- root/root ./usr/lib/systemd/system/$package.service
-rw-r--r-- root/root ./usr/lib/sysusers.d/$package.conf
-rw-r--r-- root/root ./usr/lib/tmpfiles.d/$package.conf
-rw-r--r-- root/root ./usr/share/man/man1/$package.1.gz
-rw-r--r-- root/root ./usr/share/man/man5/$package.toml.5.gz
-rw-r--r-- root/root ./usr/share/bash-completion/completions/$package
-rw-r--r-- root/root ./usr/share/zsh/vendor-completions/_$package
-rw-r--r-- root/root ./usr/share/fish/vendor_completions.d/$package.fish
-rw-r--r-- root/root ./usr/share/doc/$package/copyright
-rw-r--r-- root/root ./usr/share/doc/$package/changelog.gz
-rw-r--r-- root/root ./usr/share/doc/$package/crates.gz
$(if [[ $package == fieldgate ]]; then renewal_units; fi)
END
    if grep -E '^-' "$output/contents" | grep -vE '^-rw(-r--r--|xr-xr-x) root/root \./(usr|etc)/'; then
        echo 'the above have no business in the package' && wrong=1
    fi
    if [[ $(dpkg-deb --info "$deb" conffiles) != "/etc/fieldgate/$config" ]]; then
        echo "the only configuration file of the package has to be $config" && wrong=1
    fi
    return "$wrong"
}

packaged_again() {
    local again=$output/again deb
    mkdir -p "$again"
    systemd/package/build fieldgate amd64 "$BOARD/amd64/fieldgate" "$PAGES" "$again" >"$output/made" || return
    for deb in "$again"/*; do
        cmp "$deb" "$PACKAGES/$(basename "$deb")" || return
    done
}

refuses_other_architecture() {
    local architecture
    for architecture in arm64 armhf; do
        if systemd/package/build fieldgate "$architecture" "$BOARD/amd64/fieldgate" "$PAGES" "$output/other" \
            >"$output/refused" 2>&1; then
            echo "an amd64 binary became a package for $architecture"
            return 1
        fi
    done
    # Where the stage cross left one.
    local armv7=${CARGO_TARGET_DIR:-target}/cross/armv7-unknown-linux-gnueabihf/fieldgate
    if [[ -e $armv7 ]] && systemd/package/build fieldgate armhf "$armv7" "$PAGES" "$output/other" >"$output/refused" 2>&1; then
        echo 'an ARMv7 binary became a package for armhf, which Raspbian would install on ARMv6'
        return 1
    fi
}

# The image of another system: nothing of it may run, and nothing of this machine may change.
installed_in_image() {
    local image=$output/image from=$output/tarball before
    mkdir -p "$image"/{etc,usr} "$from"
    printf 'root:x:0:0:root:/root:/bin/sh\n' >"$image/etc/passwd"
    printf 'root:x:0:\n' >"$image/etc/group"
    before=$(cd "$image" && find . -type f | sort)
    tar --extract --directory "$from" --strip-components 1 --file "$PACKAGES"/fieldgate-[0-9]*-amd64.tar.gz || return
    as_root env DESTDIR="$image" "$from/install.sh" || return
    if ! cmp "$image/usr/bin/fieldgate" "$BOARD/amd64/fieldgate" ||
        ! grep -q '^fieldgate:' "$image/etc/passwd" || ! [[ -d $image/etc/fieldgate/credentials ]] ||
        ! [[ -L $image/etc/systemd/system/multi-user.target.wants/fieldgate.service ]]; then
        echo 'the image lacks the program, the user, a folder or the service' && return 1
    fi
    as_root env DESTDIR="$image" "$from/install.sh" --purge || return
    # systemd-sysusers keeps the accounts as they were, and their shadows.
    diff <(echo "$before") <(cd "$image" && find . -type f ! -name '*shadow*' ! -name '*-' ! -name .pwd.lock | sort)
}

right_pages() {
    local page said wrong=0
    for page in "$PAGES"/*.[15]; do
        said=$(LC_ALL=C.UTF-8 MANROFFSEQ='' MANWIDTH=80 man --warnings -E UTF-8 -l "$page" 2>&1 >"$output/page")
        if [[ -n $said || ! -s $output/page ]]; then echo "$page: $said" && wrong=1; fi
    done
    # What the programs know, the pages tell.
    for page in fieldgate:'fieldgate reload' fieldgate-hub:'fieldgate-hub gateway add'; do
        if ! grep -qF "${page#*:}" <(sed 's/\\-/-/g' "$PAGES/${page%%:*}.1"); then
            echo "${page%%:*}.1 does not tell of: ${page#*:}" && wrong=1
        fi
    done
    return "$wrong"
}

right_completions() {
    local file
    for file in "$PAGES"/completions/bash/*.bash; do
        bash -n "$file" || return
    done
    grep -q 'reload' "$PAGES/completions/bash/fieldgate.bash"
}

# On a copy that names the binary built here: on this machine nothing is installed.
verified_unit() {
    local unit=$1 copy=$output/$1.service said
    sed "s|/usr/bin/$unit |$PWD/$BOARD/amd64/$unit |" "systemd/$unit.service" >"$copy"
    said=$(systemd-analyze verify --man=no --recursive-errors=no "$copy" 2>&1) || { echo "$said" && return 1; }
    # Verify warns of an unknown key, and is content.
    if [[ -n $said ]]; then echo "$said" && return 1; fi
}

little_exposed() {
    local code=0
    systemd-analyze security --no-pager --offline=yes --threshold="$EXPOSURE_TENTHS" "systemd/$1.service" \
        >"$output/exposure" 2>&1 || code=$?
    if ((code)); then grep -v '^✓' "$output/exposure"; else tail -n 1 "$output/exposure"; fi
    return "$code"
}
