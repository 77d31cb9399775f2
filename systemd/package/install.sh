#!/bin/sh
# Installs fieldgate from this folder on a board without apt, or brings it up to date; may be run
# again at any time.
#
#   ./install.sh               install, or upgrade: configuration, spool and keys stay
#   ./install.sh --uninstall   remove the programs; configuration, spool and keys stay
#   ./install.sh --purge       remove everything, records that were not delivered and keys included
#
# DESTDIR=FOLDER installs into the root of another system (an image) and starts nothing.
set -eu

package=@PACKAGE@
credentials=@CREDENTIALS@
root=${DESTDIR:-}
here=$(CDPATH='' cd "$(dirname "$0")" && pwd)

main() {
    if [ "$(id -u)" != 0 ]; then fail "this needs root; run it with sudo"; fi
    case ${1:-} in
        '') install_all ;;
        --uninstall) uninstall ;;
        --purge) uninstall && purge ;;
        *) fail "usage: $0 [--uninstall | --purge]" ;;
    esac
}

install_all() {
    if [ -e "$root/var/lib/dpkg/info/$package.list" ]; then
        fail "the Debian package $package is installed here; remove it first, or upgrade it with apt"
    fi
    files usr | while read -r file; do
        mode=644
        if [ -x "$here/$file" ]; then mode=755; fi
        put "$file" "$root/$file" $mode
    done
    files etc | while read -r file; do
        if [ ! -e "$root/$file" ]; then
            put "$file" "$root/$file" 644
        elif ! cmp -s "$here/$file" "$root/$file"; then
            put "$file" "$root/$file.new" 644
            echo "$file is kept as it is; the new one is $file.new"
        fi
    done
    if [ -n "$root" ]; then
        systemd-sysusers --root="$root" "$package.conf"
        systemd-tmpfiles --root="$root" --create "$package.conf"
        mkdir -p "$root/etc/systemd/system/multi-user.target.wants"
        ln -sf "/usr/lib/systemd/system/$package.service" \
            "$root/etc/systemd/system/multi-user.target.wants/$package.service"
        echo "$package is installed in $root; it starts when that system boots"
    elif has_systemd; then
        systemd-sysusers "$package.conf"
        systemd-tmpfiles --create "$package.conf"
        systemctl daemon-reload
        systemctl enable --quiet "$package.service"
        # A configuration that is not finished yet is no failed installation.
        systemctl restart "$package.service" || echo "see: journalctl -u $package"
        echo "$package is installed and started; it starts at boot"
    else
        echo "$package is installed; without systemd it is yours to start: $package run"
    fi
}

uninstall() {
    if [ -z "$root" ] && has_systemd; then
        systemctl disable --quiet --now "$package.service" || true
    fi
    rm -f "$root/etc/systemd/system/multi-user.target.wants/$package.service"
    files usr | while read -r file; do
        rm -f "$root/$file"
    done
    rm -rf "$root/usr/share/doc/$package"
    if [ -z "$root" ] && has_systemd; then systemctl daemon-reload; fi
    echo "the programs are removed"
}

purge() {
    rm -rf "$root/var/lib/$package" "$root/etc/fieldgate/$credentials"
    files etc | while read -r file; do
        rm -f "$root/$file" "$root/$file.new"
    done
    rmdir "$root/etc/fieldgate" 2>/dev/null || true
    echo "configuration, records and keys are removed; the user $package stays"
}

# The files below a folder of this package, by their paths in it.
files() {
    (cd "$here" && find "$1" -type f)
}

# A program that runs can't be written to, but its name can be given to another.
put() {
    mkdir -p "$(dirname "$2")"
    cp "$here/$1" "$2.installing"
    chmod "$3" "$2.installing"
    mv -f "$2.installing" "$2"
}

has_systemd() {
    [ -d /run/systemd/system ]
}

fail() {
    echo "install.sh: $*" >&2
    exit 1
}

main "$@"
