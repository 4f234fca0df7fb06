#!/bin/sh
# Installs a lean node of mest-fed on 64-bit Raspberry Pi OS (Bookworm, Trixie), as a systemd service.
#
#   sudo ./install.sh WHEEL          installs, or brings up to date
#   sudo ./install.sh --remove       takes all away but /etc/mest-fed and the data
#   sudo ./install.sh --purge        takes all away but the data
#
# WHEEL: mest_fed-*-linux_aarch64.whl of this system's Python (build-wheel.sh makes it), or a folder with
# the sources, which are compiled here then. README.md says what comes next.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
home=/opt/mest-fed
state=/var/lib/mest-fed
settings=/etc/mest-fed
unit=/etc/systemd/system/mest-fed-node.service
user=mest-fed

fail() {
    echo "install.sh: $1" >&2
    exit 2
}

remove() {
    systemctl disable --now mest-fed-node.service 2>/dev/null || true
    rm -f "$unit"
    systemctl daemon-reload
    rm -rf "$home"
}

usage="allowed: a wheel, a folder with the sources, --remove or --purge"
[ $# -eq 1 ] || fail "one argument is needed; $usage"
[ "$(id -u)" -eq 0 ] || fail "must be run as root: sudo ./install.sh $1"

case $1 in
    --remove)
        remove
        echo "removed; $settings and $state are still there"
        exit 0
        ;;
    --purge)
        remove
        rm -rf "$settings" "$state"
        if id "$user" >/dev/null 2>&1; then
            userdel "$user"
        fi
        echo "removed"
        exit 0
        ;;
    -*) fail "$1 is no option; $usage" ;;
esac

[ -e "$1" ] || fail "there is no $1; $usage"
[ "$(uname -m)" = aarch64 ] || fail "this machine is $(uname -m); allowed: aarch64, 64-bit Raspberry Pi OS"
python=$(command -v python3) || fail "there is no python3"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "$("$python" --version); allowed: Python 3.11 or newer (Bookworm has 3.11, Trixie 3.13)"
"$python" -c 'import ensurepip, venv' 2>/dev/null ||
    fail "python3-venv is missing: apt install python3-venv"

if ! id "$user" >/dev/null 2>&1; then
    useradd --system --home-dir "$state" --no-create-home --shell /usr/sbin/nologin "$user"
fi

# An environment of its own: the system's Python takes no packages from elsewhere (PEP 668). A new one
# is made beside the old one, which stays until the new one has proved that it imports.
echo "making an environment for Python in $home (a minute on a small board)"
install -d -m 0755 "$home"
rm -rf "$home/new"
"$python" -m venv "$home/new"
pip="$home/new/bin/python -m pip --disable-pip-version-check --no-input"
echo "installing what a node needs: NumPy, gRPC, protobuf, and what enrolment takes"
# The second file is for --enrol alone; see there.
$pip install --quiet --only-binary=:all: --requirement "$here/requirements.txt" \
    --requirement "$here/requirements-enrol.txt"
if [ -d "$1" ]; then
    echo "compiling and installing mest-fed from $1 (many minutes on a small board)"
else
    echo "installing $1"
fi
# Without its dependency, torch, which a lean node does without.
MEST_REQUIRE_NATIVE=1 $pip install --quiet --no-deps "$1"
"$home/new/bin/python" -c 'from mest_fed.runtime.native_table import module; module()' ||
    fail "the wheel has no native runtime for this system"

systemctl stop mest-fed-node.service 2>/dev/null || true
rm -rf "$home/venv"
# Its programs are run as `python -m`: nothing in it depends on its path.
mv "$home/new" "$home/venv"

install -d -m 0750 -o root -g "$user" "$settings" "$settings/certificates"
# systemd reads it as root, and it may hold a token.
if [ ! -e "$settings/node.env" ]; then
    install -m 0600 -o root -g root "$here/node.env.example" "$settings/node.env"
fi
chmod 0600 "$settings/node.env"
install -m 0644 "$here/mest-fed-node.service" "$unit"
systemctl daemon-reload

version=$("$home/venv/bin/python" -c 'import mest_fed; print(mest_fed.__version__)')
echo "mest-fed $version is installed in $home/venv"
if systemctl is-enabled --quiet mest-fed-node.service 2>/dev/null; then
    systemctl start mest-fed-node.service
    echo "the node was started again"
else
    echo "next: edit $settings/node.env, put certificates into $settings/certificates, then"
    echo "      systemctl enable --now mest-fed-node"
fi
