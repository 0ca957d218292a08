#!/bin/sh
# Run README's commands on a new machine: a minimal Debian 12 in a folder, with a clone of this checkout's HEAD in it.
#
#   scripts/fresh.sh           make the machine anew and run COMMAND in it
#   scripts/fresh.sh remove    remove the folder
#
# FRESH    the folder (default: build/fresh); it stays until it is removed, and is all that stays
# COMMAND  what to run in the clone (default: make demo && make test, with nothing skipped)
# REUSE    yes: use the machine that is there, with what earlier runs have installed on it
#
# This machine's ways to packages are copied in: the configuration of apt and pip, certificates, names and proxies. The
# command has mounts and processes of its own, sees no other file of this machine, and ends with all that it started.
set -eu
cd "$(dirname "$0")/.."

FRESH=${FRESH:-build/fresh}
COMMAND=${COMMAND:-make demo && ASTORE_REQUIRE_ALL=1 make test}
REUSE=${REUSE:-no}
release=bookworm
mark=$FRESH/made-by-astore

say() { echo "fresh: $*"; }

fail() {
    echo "fresh: $*" >&2
    exit 1
}

remove() {
    if [ -e "$mark" ]; then rm -rf --one-file-system "$FRESH"; fi
}

# Print the file with this machine's sources of the release; if there is none, mmdebstrap uses its own default.
sources() {
    for file in /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list; do
        if grep -qsw "$release" "$file"; then
            echo "$file"
            return
        fi
    done
}

# copy CP_OPTION FILE_OR_FOLDER…: copy those that exist to the same place in the new machine.
copy() {
    option=$1
    shift
    for path in "$@"; do
        if [ -e "$path" ]; then
            mkdir -p "$root$(dirname "$path")"
            cp "$option" --remove-destination "$path" "$root$(dirname "$path")/"
        fi
    done
}

make_machine() {
    remove
    if [ -e "$FRESH" ]; then fail "$FRESH exists and is no folder of make fresh; set FRESH to another one"; fi
    mkdir -p "$FRESH"
    touch "$mark"
    say "making a minimal Debian ($release) in $FRESH"
    apt-config dump Acquire >"$FRESH/apt.conf"
    # shellcheck disable=SC2046
    mmdebstrap --quiet --mode=root --variant=minbase --include=ca-certificates,git,make,python3 \
        --setup-hook='mkdir -p "$1/etc/apt/apt.conf.d"; cp "'"$FRESH"'/apt.conf" "$1/etc/apt/apt.conf.d/99this-machine"' \
        --setup-hook='for path in auth.conf auth.conf.d; do if [ -e "/etc/apt/$path" ]; then cp -R "/etc/apt/$path" "$1/etc/apt/"; fi; done' \
        "$release" "$root" $(sources)
    copy -R /etc/ssl/certs /usr/local/share/ca-certificates
    copy -RL /etc/resolv.conf /etc/pip.conf /etc/xdg/pip
    for folder in .pip .config/pip; do
        if [ -e "${HOME:-/root}/$folder" ]; then
            mkdir -p "$root/root/$(dirname "$folder")"
            cp -RL "${HOME:-/root}/$folder" "$root/root/$(dirname "$folder")/"
        fi
    done
    touch "$FRESH/complete"
}

# Put the commit that is checked out here into the new machine.
clone() {
    commit=$(git rev-parse HEAD)
    if [ ! -e "$root/root/astore/.git" ]; then git clone -q --no-checkout --no-hardlinks . "$root/root/astore"; fi
    git -C "$root/root/astore" fetch -q "$PWD" HEAD
    git -C "$root/root/astore" checkout -q --force --detach "$commit"
}

if [ "${1:-}" = remove ]; then
    remove
    exit 0
fi
[ $# = 0 ] || fail "usage: scripts/fresh.sh [remove]"
[ "$(id -u)" = 0 ] || fail "it needs root"
command -v mmdebstrap >/dev/null || fail "there is no mmdebstrap (Debian package mmdebstrap)"
command -v unshare >/dev/null || fail "there is no unshare (Debian package util-linux)"
mkdir -p "$(dirname "$FRESH")"
FRESH=$(cd "$(dirname "$FRESH")" && pwd -P)/$(basename "$FRESH")
mark=$FRESH/made-by-astore
root=$FRESH/root
if [ "$REUSE" != yes ] || [ ! -e "$FRESH/complete" ]; then make_machine; fi
clone

# The environment is that of a new login, with the settings of pip, proxies and certificates.
set -- HOME=/root PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin TERM="${TERM:-dumb}"
for name in $(env | sed -nE 's/^(PIP_[A-Z_]+|[a-zA-Z]+_(proxy|PROXY)|SSL_CERT_[A-Z]+|REQUESTS_CA_BUNDLE)=.*/\1/p'); do
    set -- "$@" "$name=$(printenv "$name")"
done
say "running in it: $COMMAND"
# Two shells. A signal ends the outer one as usual. The inner one is the first process of the machine: it dies with the
# outer one, and every other process of the machine with it. It also reaps the processes that lose their parents.
ENTER='
mount --bind "$ROOT" "$ROOT"
cd "$ROOT"
mount -t proc proc proc
mount -t sysfs sysfs sys
mount --rbind /dev dev
mount -t tmpfs tmpfs dev/shm
mount -t tmpfs -o mode=755 tmpfs run
pivot_root . .
umount -l .
cd "$HOME/astore"
unset ROOT ENTER
result=0
sh -c "unset COMMAND; $COMMAND" || result=$?
exit "$result"
'
exec env -i "$@" ROOT="$root" COMMAND="$COMMAND" ENTER="$ENTER" unshare --mount --pid --ipc --uts --propagation private \
    sh -c 'setpriv --pdeathsig KILL sh -ec "$ENTER"; exit $?'
