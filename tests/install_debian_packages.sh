#!/bin/sh
# Installs what the slow tests need beside Python: a browser and its driver, a font with Chinese characters, Redis 7,
# an SFTP server (the program, no daemon), what makes faults: strace (slow and failing system calls), faketime (a clock
# that jumps), ip (networks), mount; nginx, which the benchmarks download from, and which stands before the servers as in
# deploy/; Caddy, for the same; wrk, which sends the requests of make bench-queue; and systemd, which checks the units.
# Quick when everything is there. Needs root only when something is missing.
set -eu

missing=
command -v chromium >/dev/null || missing="$missing chromium"
command -v chromedriver >/dev/null || missing="$missing chromium-driver"
[ -n "$(find /usr/share/fonts -iname '*noto*cjk*' -print -quit 2>/dev/null)" ] || missing="$missing fonts-noto-cjk"

command -v redis-check-rdb >/dev/null || missing="$missing redis-tools"
command -v strace >/dev/null || missing="$missing strace"
command -v faketime >/dev/null || missing="$missing faketime"
command -v ip >/dev/null || missing="$missing iproute2"
command -v mount >/dev/null || missing="$missing mount"
[ -x /usr/lib/openssh/sftp-server ] || missing="$missing openssh-sftp-server"
command -v nginx >/dev/null || missing="$missing nginx-light"
command -v wrk >/dev/null || missing="$missing wrk"
command -v caddy >/dev/null || missing="$missing caddy"
command -v systemd-analyze >/dev/null || missing="$missing systemd"
command -v unshare >/dev/null || missing="$missing util-linux"

[ -n "$missing" ] || exit 0
if [ "$(id -u)" != 0 ]; then
    echo "The slow tests need these packages; install them as root: apt-get install$missing" >&2
    exit 1
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
# shellcheck disable=SC2086 # a list of names
apt-get install -y -qq --no-install-recommends $missing >/dev/null
