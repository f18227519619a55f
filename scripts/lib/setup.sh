# shellcheck shell=bash
# What the scripts need on a bare Debian with rustup's toolchain. To be sourced.

step() { printf '\n== %s\n' "$*"; }
loud() { printf '\n*** NOT CHECKED: %s ***\n\n' "$*" >&2; skipped+=("$*"); }
skipped=()

# packages NAME...: installs Debian packages, if this user may; quiet, and no error if that fails.
packages() {
    local as=()
    if [[ $(id -u) != 0 ]]; then
        sudo -n true 2>/dev/null || return 0
        as=(sudo -n)
    fi
    command -v apt-get >/dev/null || return 0
    if [[ -z ${apt_updated:-} ]]; then
        apt_updated=yes
        "${as[@]}" timeout 120 apt-get update -qq || true
    fi
    "${as[@]}" env DEBIAN_FRONTEND=noninteractive timeout 300 \
        apt-get install -y -qq --no-install-recommends "$@" >/dev/null || true
}

# want COMMAND PACKAGE WHAT: gets a command that WHAT needs; says loudly that WHAT is skipped if it cannot.
want() {
    command -v "$1" >/dev/null || packages "$2"
    command -v "$1" >/dev/null || loud "$3 ($1 is missing: apt-get install $2)"
}

# toolchain: finds cargo, and the C compiler and headers that ring is built with and programs are linked by.
toolchain() {
    if ! command -v cargo >/dev/null && [[ -f $HOME/.cargo/env ]]; then
        # shellcheck source=/dev/null
        source "$HOME/.cargo/env"
    fi
    if ! command -v cargo >/dev/null; then
        echo "$0: no cargo: install Rust from https://rustup.rs" >&2
        return 1
    fi
    if ! command -v cc >/dev/null || [[ ! -e /usr/include/assert.h ]]; then
        packages gcc libc6-dev
    fi
    if ! command -v cc >/dev/null; then
        echo "$0: no C compiler: apt-get install gcc libc6-dev" >&2
        return 1
    fi
}
