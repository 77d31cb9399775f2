# shellcheck shell=bash disable=SC2154
# Stage `systemd`, sourced by tests/run: the packages in a machine of their own, a booted container without a network. Its
# plain file system is made once, in target/; each run has a fresh copy of it.

readonly MIRROR=${DEBIAN_MIRROR:-http://deb.debian.org/debian}
readonly STARTS=100

# For script: with hub.pem in /etc/fieldgate and its key among the credentials that root keeps.
readonly HUB_SERVES_TLS='cat >>/etc/fieldgate/hub.toml <<END
bind = "127.0.0.1:8443"
[tls]
cert_file = "hub.pem"
key_file = "/run/credentials/fieldgate-hub.service/cred_hub.key"
END
        systemctl restart fieldgate-hub'

# The machine that runs: its files, its systemd-nspawn, and its first process.
machine='' machine_runner='' machine_leader=''

stage_systemd() {
    need debootstrap debootstrap
    need systemd-nspawn systemd-container
    need nsenter util-linux
    need pgrep procps
    if ((EUID)); then
        echo 'SKIP systemd: a machine can be booted by root only' && skipped=$((skipped + 1))
        return
    fi
    if ! compgen -G "$PACKAGES/fieldgate-hub_*_amd64.deb" >"$output/glob"; then build_packages || return; fi
    trap 'halt_machine; rm -rf "$output"' EXIT
    if check 'systemd: a machine boots' 600 boot_machine bookworm; then life_of_a_service; fi
    halt_machine
    if check 'systemd: a machine with a newer systemd boots' 600 boot_machine trixie; then
        check 'systemd: newer: the packages are installed and run' 120 installs amd64
        check 'systemd: newer: one command enrols a packaged board, and its certificate is renewed' 120 enrols
        check 'systemd: newer: reload by notify-reload, waits that grow' 60 newer_systemd
        check 'systemd: newer: a stopped process is replaced by the watchdog' 60 watchdog_replaces
        check 'systemd: newer: a working process is left alone by the watchdog' 60 watchdog_is_fed
        check 'systemd: newer: purge leaves nothing' 60 purge_leaves_nothing
    fi
    halt_machine
    if ! compgen -G "$PACKAGES/fieldgate_*_armhf.deb" >"$output/glob" || ! emulates_arm; then
        echo 'SKIP systemd: armhf: no such package (stages cross and deb make it), or no emulation of ARM'
        skipped=$((skipped + 1))
    elif check 'systemd: armhf: a machine boots' 600 boot_machine bookworm; then
        life_on_arm
    fi
    halt_machine
}

life_of_a_service() {
    check 'systemd: installed, both services are ready and start at boot' 120 installs amd64 || return
    check 'systemd: users, folders and modes' 60 right_modes
    check 'systemd: out of the box a publish is safe without a hub' 60 works_out_of_the_box
    check 'systemd: nothing to say about the installed units' 60 units_verified
    check 'systemd: starts at boot, without any network' 120 starts_at_boot
    check 'systemd: telemetry to the hub, with credentials that root keeps' 60 connects_with_credentials
    check 'systemd: a token that only this machine can decrypt' 60 connects_with_encrypted_token
    check 'systemd: kill -9: started again, nothing acknowledged is lost' 60 kill_loses_nothing
    check 'systemd: the hub after kill -9 as well' 60 hub_comes_back
    check 'systemd: a stopped process is replaced by the watchdog' 60 watchdog_replaces
    check 'systemd: a working process is left alone by the watchdog' 60 watchdog_is_fed
    check 'systemd: a faulty configuration ends it with 78, told and not tried again' 60 bad_configuration
    check 'systemd: reload takes over what it can and names the rest' 60 reloads
    check 'systemd: reload of a faulty file fails, and the service goes on' 60 reload_of_a_faulty_file
    check "systemd: ready $STARTS times in a row" 300 starts_in_a_row
    check 'systemd: upgrade keeps configuration, spool and token' 120 upgrade_keeps
    check 'systemd: remove stops it and keeps what is not replaceable' 60 remove_keeps
    check 'systemd: purge leaves nothing' 60 purge_leaves_nothing
    check 'systemd: the tarball installs, upgrades, uninstalls and purges' 120 tarball_lives
}

# The program of the armhf package, emulated, under the systemd of this machine and a hub of this processor.
life_on_arm() {
    script 'mkdir -p /etc/systemd/system/fieldgate.service.d
        # An emulator makes code while it runs.
        printf "[Service]\nMemoryDenyWriteExecute=no\n" >/etc/systemd/system/fieldgate.service.d/emulated.conf'
    check 'systemd: armhf: the package is installed and runs' 120 installs armhf || return
    check 'systemd: armhf: out of the box a publish is safe without a hub' 60 works_out_of_the_box
    check 'systemd: armhf: telemetry to the hub, with credentials that root keeps' 60 connects_with_credentials
    check 'systemd: armhf: kill -9: started again, nothing acknowledged is lost' 60 kill_loses_nothing
    check 'systemd: armhf: a stopped process is replaced by the watchdog' 60 watchdog_replaces
    check 'systemd: armhf: a working process is left alone by the watchdog' 60 watchdog_is_fed
    check 'systemd: armhf: a faulty configuration ends it with 78, told and not tried again' 60 bad_configuration
    check 'systemd: armhf: purge leaves nothing' 60 purge_leaves_nothing
}

# Whether the kernel hands ARM programs to an emulator, in the machine as well.
emulates_arm() {
    local handlers=/proc/sys/fs/binfmt_misc
    need qemu-arm-static qemu-user-static
    if [[ ! -e $handlers/status ]]; then mount -t binfmt_misc none "$handlers" || return; fi
    [[ -e $handlers/qemu-arm ]] || cat /usr/lib/binfmt.d/qemu-arm.conf >"$handlers/register"
}

# --- the machine -------------------------------------------------------------------------------------------------

boot_machine() {
    local release=$1 base=$PWD/$BOARD/$1
    if [[ ! -d $base ]]; then
        rm -rf "$base.new"
        timeout 560 debootstrap --variant=minbase \
            --include=systemd,systemd-sysv,dbus,libpam-systemd,ca-certificates,procps,iproute2,mosquitto-clients \
            "$release" "$base.new" "$MIRROR" >"$output/debootstrap" 2>&1 ||
            { tail -n 5 "$output/debootstrap" && return 1; }
        if [[ $release == bookworm ]]; then arm_libraries "$base.new" || return; fi
        rm -f "$base.new"/var/cache/apt/archives/*.deb "$base.new/etc/machine-id"
        # Each machine is another one, and nobody is asked for anything at the first boot.
        echo uninitialized >"$base.new/etc/machine-id"
        echo '127.0.0.1 localhost' >"$base.new/etc/hosts"
        ln -s /dev/null "$base.new/etc/systemd/system/systemd-firstboot.service"
        mv "$base.new" "$base"
    fi
    machine=$(mktemp -d)
    cp -a --reflink=auto "$base/." "$machine" && mkdir "$machine/packages" &&
        cp "$PACKAGES"/* "$machine/packages" && start_machine
}

# The C library for the armhf package, beside that of this processor.
arm_libraries() {
    {
        timeout 60 chroot "$1" dpkg --add-architecture armhf &&
            timeout 120 chroot "$1" apt-get --quiet=2 update &&
            timeout 120 chroot "$1" apt-get --quiet=2 --yes --no-install-recommends install libc6:armhf
    } >"$output/libraries" 2>&1 || { tail -n 5 "$output/libraries" && return 1; }
}

start_machine() {
    setsid timeout --kill-after=5 900 systemd-nspawn --quiet --directory "$machine" --machine "fieldgate-$$" \
        --boot --register=no --keep-unit --private-network --console=pipe >"$output/console" 2>&1 </dev/null &
    local timer=$!
    if ! eventually 60 machine_runs "$timer"; then
        tail -n 20 "$output/console"
        return 1
    fi
}

machine_runs() {
    machine_runner=$(pgrep -P "$1" -x systemd-nspawn) && machine_leader=$(pgrep -P "$machine_runner" -x systemd) &&
        inside systemctl is-system-running 2>"$output/running" | grep -qx 'running\|degraded'
}

stop_machine() {
    inside systemctl poweroff >"$output/poweroff" 2>&1
    eventually 30 runner_is_gone
}

runner_is_gone() {
    ! kill -0 "$machine_runner" 2>"$output/kill"
}

halt_machine() {
    if [[ -n $machine_runner ]]; then
        stop_machine || kill -KILL "$machine_leader" "$machine_runner" 2>"$output/kill" || true
    fi
    # Never in a folder that is still in use.
    if [[ -n $machine ]] && ! grep -q " $machine" /proc/mounts; then rm -rf "$machine"; fi
    machine='' machine_runner='' machine_leader=''
}

# Runs a command in the machine.
inside() {
    timeout --kill-after=5 60 nsenter -t "$machine_leader" -m -u -i -n -p -C -- "$@"
}

# Runs a script in the machine. `no COMMAND…` is its way to say that something must fail: `!` would end no script.
script() {
    inside bash -euo pipefail -c 'no() { if "$@"; then echo "and yet it is so: $*"; return 1; fi; }
'"$1"
}

# eventually SECONDS COMMAND…: asks until it succeeds.
eventually() {
    local deadline=$((SECONDS + $1))
    shift
    until "$@"; do
        if ((SECONDS >= deadline)); then
            echo "not in time: $*"
            return 1
        fi
        sleep 0.1
    done
}

property() {
    inside systemctl show --value --property "$1" "${2:-fieldgate}"
}

restarts() {
    (($(property NRestarts "${2:-fieldgate}") > $1)) && inside systemctl --quiet is-active "${2:-fieldgate}"
}

# logged SINCE PATTERN
logged() {
    inside journalctl --quiet --no-pager --unit fieldgate --boot --output cat --since "@$1" >"$output/log"
    grep -qE -- "$2" "$output/log" || { echo "not in the log: $2" && return 1; }
}

# --- what is claimed ---------------------------------------------------------------------------------------------

# installs ARCHITECTURE: of the gateway.
installs() {
    script "dpkg --install /packages/fieldgate_*-1_$1.deb /packages/fieldgate-hub_*-1_amd64.deb" \
        >"$output/dpkg" 2>&1 || { tail -n 20 "$output/dpkg" && return 1; }
    script 'for unit in fieldgate fieldgate-hub; do
        systemctl is-active $unit
        systemctl is-enabled $unit
    done' >"$output/active" || { inside systemctl --no-pager --lines 20 status fieldgate fieldgate-hub && return 1; }
    inside fieldgate status | grep '^uplink' && inside fieldgate --version
}

right_modes() {
    script 'stat --format "%A %U %n" /var/lib/fieldgate /var/lib/fieldgate-hub /etc/fieldgate/credentials \
        /etc/fieldgate/hub-credentials /etc/fieldgate/fieldgate.toml /run/fieldgate' >"$output/modes"
    diff - "$output/modes" <<'END'
drwx------ fieldgate /var/lib/fieldgate
drwx------ fieldgate-hub /var/lib/fieldgate-hub
drwx------ root /etc/fieldgate/credentials
drwx------ root /etc/fieldgate/hub-credentials
-rw-r--r-- root /etc/fieldgate/fieldgate.toml
drwxr-x--- fieldgate /run/fieldgate
END
}

# publish COUNT FROM: numbered readings, each of them acknowledged.
publish() {
    inside bash -c "seq $2 $(($2 + $1 - 1)) | sed 's/.*/{\"n\":&}/' |
        mosquitto_pub -h 127.0.0.1 -q 1 -l -t devices/plc-01/telemetry"
}

works_out_of_the_box() {
    publish 5 1 && inside fieldgate status | grep -x 'telemetry  *5 records held, 0 lost since start'
}

units_verified() {
    local said
    said=$(inside systemd-analyze verify --man=no fieldgate.service fieldgate-hub.service 2>&1)
    if [[ -n $said ]]; then echo "$said" && return 1; fi
    script 'for unit in fieldgate fieldgate-hub; do
        systemd-analyze security --no-pager --threshold=15 $unit | tail -n 1
    done'
}

starts_at_boot() {
    stop_machine && start_machine &&
        inside systemctl is-active fieldgate fieldgate-hub &&
        ! property After | grep -qw 'network-online.target\|time-sync.target' &&
        inside fieldgate status | grep -x 'telemetry  *5 records held, 0 lost since start'
}

# The hub has its key, and the gateway its token, as a copy that systemd made.
connects_with_credentials() {
    script '
        fieldgate-hub demo-ca --dir /root/ca --host localhost
        install -m644 /root/ca/ca.pem /root/ca/hub.pem /etc/fieldgate
        install -m600 /root/ca/hub.key /etc/fieldgate/hub-credentials/hub.key
        '"$HUB_SERVES_TLS"'
        cd /var/lib/fieldgate-hub
        runuser -u fieldgate-hub -- fieldgate-hub gateway add gw-1 --token-file token
        install -m600 -o root token /etc/fieldgate/credentials/token
        rm token
        # As README.md has it, and what a test wants of the rest.
        sed -i -e "s/^#id = .*/id = \"gw-1\"/" \
            -e "s|^#\(url = .wss://\)hub.example.com|\1localhost:8443|" -e "s/^#token_file/token_file/" \
            -e "s/^#ca_file = .hub-ca.*/ca_file = \"ca.pem\"/" \
            -e "s/^#backoff_m.*/#&/; s/^##\(backoff_m...=.\).*/\1\"200ms\"/" /etc/fieldgate/fieldgate.toml
        grep -x "backoff_max = \"200ms\"" /etc/fieldgate/fieldgate.toml
        systemctl restart fieldgate' >"$output/connect" 2>&1 || { cat "$output/connect" && return 1; }
    publish 5 6 && eventually 20 hub_has 10
}

# The hub's own authority, a code, one command and a restart, as README.md has it; no edit of the board's configuration.
enrols() {
    script '
        cd /var/lib/fieldgate-hub
        hub() { runuser -u fieldgate-hub -- fieldgate-hub "$@"; }
        hub ca init
        hub ca issue-server --host localhost --dir .
        install -m644 hub.pem /etc/fieldgate
        install -m600 hub.key /etc/fieldgate/hub-credentials/hub.key
        rm hub.pem hub.key
        '"$HUB_SERVES_TLS"'
        fieldgate enroll "$(hub enroll-code --gateway gw-1 --host localhost:8443 | tail -n 1)"
        systemctl restart fieldgate
        systemctl is-active fieldgate-renew.timer' >"$output/enrol" 2>&1 || { cat "$output/enrol" && return 1; }
    # The service that renews, as it is but for its question whether that is due yet.
    publish 5 1 && eventually 20 hub_has 5 && script '
        before=$(sha256sum </var/lib/fieldgate/identity/gateway.pem)
        mkdir -p /run/systemd/system/fieldgate-renew.service.d
        printf "[Service]\nExecCondition=\n" >/run/systemd/system/fieldgate-renew.service.d/now.conf
        systemctl daemon-reload
        systemctl start fieldgate-renew.service
        no test "$before" = "$(sha256sum </var/lib/fieldgate/identity/gateway.pem)"
        rm -r /run/systemd/system/fieldgate-renew.service.d
        systemctl daemon-reload' >"$output/renew" 2>&1 || { cat "$output/renew" && return 1; }
}

# The drop-in as it is shipped, with its own words, and back to the token in the folder.
connects_with_encrypted_token() {
    script '
        cd /etc/fieldgate
        systemd-creds encrypt --name=token credentials/token token.cred
        no grep -qF "$(cat credentials/token)" token.cred
        mv credentials/token /root/token
        install -Dm644 /usr/share/doc/fieldgate/examples/encrypted-token.conf \
            -t /etc/systemd/system/fieldgate.service.d
        sed -i "s|cred_token|token|" fieldgate.toml
        systemctl daemon-reload
        systemctl restart fieldgate' >"$output/encrypted" 2>&1 || { cat "$output/encrypted" && return 1; }
    eventually 20 is_connected && script '
        mv /root/token /etc/fieldgate/credentials/token
        rm /etc/fieldgate/token.cred
        rm -r /etc/systemd/system/fieldgate.service.d
        sed -i "s|^token_file.*|token_file = \"\$CREDENTIALS_DIRECTORY/cred_token\"|" /etc/fieldgate/fieldgate.toml
        systemctl daemon-reload
        systemctl restart fieldgate' && eventually 20 is_connected
}

is_connected() {
    script 'CREDENTIALS_DIRECTORY=/run/credentials/fieldgate.service fieldgate status --json' >"$output/status" &&
        grep -q '"state": *"connected"' "$output/status"
}

# Whether the hub has each of the readings 1 to COUNT, once.
hub_has() {
    inside runuser -u fieldgate-hub -- fieldgate-hub records tail --gateway gw-1 --stream telemetry --after 0 \
        --no-follow 2>"$output/tail" >"$output/records" || return
    grep -o '"n":[0-9]*' "$output/records" | cut -d: -f2 | sort -n | cmp --silent - <(seq "$1")
}

kill_loses_nothing() {
    local before
    before=$(property NRestarts)
    inside systemctl stop fieldgate-hub && publish 20 11 && inside systemctl kill --signal KILL fieldgate &&
        eventually 20 restarts "$before" && inside systemctl start fieldgate-hub && eventually 20 hub_has 30
}

hub_comes_back() {
    local before
    before=$(property NRestarts fieldgate-hub)
    inside systemctl kill --signal KILL fieldgate-hub && eventually 20 restarts "$before" fieldgate-hub &&
        publish 5 31 && eventually 20 hub_has 35
}

# With a patience that a test has: the drop-in is all that differs.
watchdog_replaces() {
    local before start
    start=$(date +%s)
    script 'mkdir -p /run/systemd/system/fieldgate.service.d
        printf "[Service]\nWatchdogSec=2\n" >/run/systemd/system/fieldgate.service.d/watchdog.conf
        systemctl daemon-reload
        systemctl restart fieldgate' || return
    before=$(property NRestarts)
    inside systemctl kill --signal STOP fieldgate && eventually 30 restarts "$before" &&
        logged "$start" 'Watchdog timeout'
}

# Time itself is the subject: three times the watchdog's patience, idle, and nothing is to happen.
watchdog_is_fed() {
    local before
    before=$(property MainPID)
    sleep 6
    [[ $(property MainPID) == "$before" && $(property WatchdogUSec) == 2s ]] &&
        script 'rm -r /run/systemd/system/fieldgate.service.d
            systemctl daemon-reload && systemctl restart fieldgate' &&
        [[ $(property WatchdogUSec) == 30s ]]
}

# SubState `failed` says that no restart is due: that would be `auto-restart`.
bad_configuration() {
    local start
    start=$(date +%s)
    script 'cp /etc/fieldgate/fieldgate.toml /root/good.toml
        sed -i "s|^url = .wss|url = \"http|" /etc/fieldgate/fieldgate.toml
        no systemctl restart fieldgate' 2>"$output/restart" || return
    local state
    state="$(property SubState) $(property ExecMainStatus) $(property NRestarts)"
    if [[ $state != 'failed 78 0' ]]; then echo "SubState, exit code, restarts: $state" && return 1; fi
    logged "$start" 'fieldgate.toml:[0-9]+: uplink.url: scheme "http" is not a WebSocket scheme; use wss://' &&
        script 'cp /root/good.toml /etc/fieldgate/fieldgate.toml && systemctl start fieldgate'
}

reloads() {
    local before start
    before=$(property MainPID) start=$(date +%s)
    script 'sed -i -e "s/^#connect_timeout.*/connect_timeout = \"3s\"/" \
            -e "s/^#ping_interval.*/ping_interval = \"5s\"/" /etc/fieldgate/fieldgate.toml
        systemctl reload fieldgate' || return
    logged "$start" 'changed: uplink.connect_timeout' && logged "$start" 'needs a restart: uplink.ping_interval' &&
        [[ $(property MainPID) == "$before" && $(property SubState) == running ]] || return
    script 'cp /root/good.toml /etc/fieldgate/fieldgate.toml && systemctl kill --signal HUP fieldgate' &&
        eventually 10 logged "$start" 'the configuration is read anew changed=.*"uplink.connect_timeout"' \
            >"$output/waited" && publish 5 36 && eventually 20 hub_has 40
}

reload_of_a_faulty_file() {
    local before start
    before=$(property MainPID) start=$(date +%s)
    script 'sed -i "s/^ca_file/ca_fil/; s/^backoff_min.*/backoff_min = 7/" /etc/fieldgate/fieldgate.toml
        no systemctl reload fieldgate
        systemctl kill --signal HUP fieldgate' 2>"$output/reload" || return
    eventually 10 logged "$start" 'not taken over: /etc/fieldgate/fieldgate.toml:[0-9]+: uplink.ca_fil:' \
        >"$output/waited" && logged "$start" 'not taken over: .*:[0-9]+: uplink.backoff_min:' &&
        script 'cp /root/good.toml /etc/fieldgate/fieldgate.toml' &&
        [[ $(property MainPID) == "$before" && $(property SubState) == running ]] &&
        publish 5 41 && eventually 20 hub_has 45
}

# Between the process and its READY=1, by systemd's own clock.
starts_in_a_row() {
    script "for _ in \$(seq $STARTS); do
        systemctl restart fieldgate
        systemctl show --property ExecMainStartTimestampMonotonic --property ActiveEnterTimestampMonotonic \
            --property SubState fieldgate | sort | cut -d= -f2 | tr '\n' ' '
        echo
    done" >"$output/starts" || return
    awk '$3 == "running" && $1 > $2 { print ($1 - $2) / 1000 }' "$output/starts" | sort -n >"$output/times"
    awk -v wanted="$STARTS" '
        { times[NR] = $1 }
        END {
            printf "ready %d times of %d; ms from the process to READY: median %.0f, most %.0f\n",
                NR, wanted, times[int((NR + 1) / 2)], times[NR]
            exit NR != wanted
        }' "$output/times"
}

upgrade_keeps() {
    local before
    before=$(property MainPID)
    PACKAGE_REVISION=2 systemd/package/build fieldgate amd64 "$BOARD/amd64/fieldgate" "$PAGES" \
        "$machine/packages" >"$output/built" &&
        inside systemctl stop fieldgate-hub && publish 10 46 &&
        script 'dpkg --install /packages/fieldgate_*-2_amd64.deb </dev/null' >"$output/dpkg" 2>&1 &&
        [[ $(property MainPID) != "$before" && $(property SubState) == running ]] &&
        script 'dpkg-query --show --showformat "\${Version}\n" fieldgate | grep -q -- "-2$"
            cmp /root/good.toml /etc/fieldgate/fieldgate.toml
            systemctl start fieldgate-hub' && eventually 20 hub_has 55
}

remove_keeps() {
    inside systemctl stop fieldgate-hub && publish 10 56 &&
        script 'dpkg --remove fieldgate
            no systemctl --quiet is-active fieldgate
            no test -e /usr/bin/fieldgate
            cmp /root/good.toml /etc/fieldgate/fieldgate.toml
            test -s /etc/fieldgate/credentials/token
            dpkg --install /packages/fieldgate_*-2_amd64.deb
            systemctl start fieldgate-hub' >"$output/dpkg" 2>&1 &&
        eventually 20 hub_has 65
}

purge_leaves_nothing() {
    script 'dpkg --purge fieldgate fieldgate-hub' >"$output/dpkg" 2>&1 || { cat "$output/dpkg" && return 1; }
    # What the test itself put there, and what the kernel shows of this machine, is not the package.
    leaves_nothing 'rm -rf /etc/fieldgate/ca.pem /etc/fieldgate/hub.pem /etc/systemd/system/fieldgate.service.d
        if [ -e /etc/fieldgate ]; then rmdir /etc/fieldgate; fi'
}

leaves_nothing() {
    local left
    left=$(script "$1
        find / -path /proc -prune -o -path /sys -prune -o -path /packages -prune -o -path /tmp -prune -o \
            -name '*fieldgate*' -print")
    if [[ -n $left ]]; then printf 'left behind:\n%s\n' "$left" && return 1; fi
}

tarball_lives() {
    script 'tar --extract --directory /tmp --file /packages/fieldgate-[0-9]*-amd64.tar.gz
        cd /tmp/fieldgate-*
        ./install.sh
        systemctl is-active fieldgate
        systemctl is-enabled fieldgate
        fieldgate send --device plc-01 1 | grep -x safe
        echo "# mine" >>/etc/fieldgate/fieldgate.toml
        ./install.sh
        systemctl is-active fieldgate
        tail -n 1 /etc/fieldgate/fieldgate.toml | grep -x "# mine"
        ./install.sh --uninstall
        no systemctl --quiet is-active fieldgate
        no test -e /usr/bin/fieldgate
        test -s /etc/fieldgate/fieldgate.toml
        test -d /var/lib/fieldgate
        ./install.sh
        systemctl is-active fieldgate
        ./install.sh --purge' >"$output/installed" 2>&1 || { tail -n 20 "$output/installed" && return 1; }
    leaves_nothing ''
}

newer_systemd() {
    local start
    start=$(date +%s)
    script 'mkdir -p /etc/systemd/system/fieldgate.service.d
        cp /usr/share/doc/fieldgate/examples/newer-systemd.conf /etc/systemd/system/fieldgate.service.d
        systemctl daemon-reload
        systemctl restart fieldgate
        systemctl show --property Type --value fieldgate | grep -x notify-reload
        systemctl show --property RestartSteps --value fieldgate | grep -x 6
        systemctl reload fieldgate
        systemctl is-active fieldgate
        rm -r /etc/systemd/system/fieldgate.service.d
        systemctl daemon-reload
        systemctl restart fieldgate' >"$output/newer" 2>&1 || { cat "$output/newer" && return 1; }
    logged "$start" 'the configuration is read anew'
}
