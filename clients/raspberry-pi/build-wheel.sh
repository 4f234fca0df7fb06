#!/bin/sh
# Builds a wheel of mest-fed for 64-bit Raspberry Pi OS on an x86-64 machine with Debian or Ubuntu, and
# tries it under emulation: an import, some training, and a comparison with this machine.
#
#   build-wheel.sh [OUT]     OUT: where the wheel goes (dist)
#
# Environment: SUITE (bookworm; trixie for Python 3.13), MIRROR (of Debian), PYTHON (of SUITE's version,
# with the package `build`'s way to pip), ROOT (where the arm64 files are kept: build/arm64-SUITE).
#
# Needs root once, for debootstrap, and: apt install g++-aarch64-linux-gnu qemu-user-static debootstrap
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
project=$(CDPATH='' cd -- "$here/../.." && pwd)
out=${1:-$project/dist}
suite=${SUITE:-bookworm}
mirror=${MIRROR:-http://deb.debian.org/debian}
root=${ROOT:-$project/build/arm64-$suite}

case $suite in
    bookworm) version=3.11 ;;
    trixie) version=3.13 ;;
    *) echo "build-wheel.sh: SUITE = $suite; allowed: bookworm, trixie" >&2; exit 2 ;;
esac
python=${PYTHON:-python$version}
emulator=$(command -v qemu-aarch64-static || command -v qemu-aarch64 || true)

for tool in aarch64-linux-gnu-g++ debootstrap dpkg "$python" "${emulator:-qemu-aarch64-static}"; do
    if ! command -v "$tool" >/dev/null; then
        echo "build-wheel.sh: there is no $tool" >&2
        exit 2
    fi
done
if ! "$python" -c "import sys; sys.exit('%d.%d' % sys.version_info[:2] != '$version')"; then
    echo "build-wheel.sh: $python is another Python than $suite's $version" >&2
    exit 2
fi

# The files of the system that the wheel is for: packages unpacked, none of which is run or set up.
if [ ! -e "$root/.ready" ]; then
    rm -rf "$root"
    mkdir -p "$root"
    debootstrap --arch=arm64 --foreign --variant=minbase \
        --include="python3,libpython$version-dev,libstdc++6" "$suite" "$root" "$mirror"
    for package in "$root"/var/cache/apt/archives/*.deb; do
        dpkg -x "$package" "$root"
    done
    rm -rf "$root/var/cache/apt/archives"
    touch "$root/.ready"
fi

# CPython's headers are the target's; the interpreter that runs the build is this machine's.
headers=$root/usr/include
abi=cpython-$(echo $version | tr -d .)-aarch64-linux-gnu
export _PYTHON_HOST_PLATFORM=linux-aarch64
export SETUPTOOLS_EXT_SUFFIX=".$abi.so"
export CC=aarch64-linux-gnu-gcc CXX=aarch64-linux-gnu-g++
export CXXFLAGS="-I$headers/aarch64-linux-gnu -I$headers"
export MEST_REQUIRE_NATIVE=1
options="-DCMAKE_SYSTEM_NAME=Linux;-DCMAKE_SYSTEM_PROCESSOR=aarch64"
options="$options;-DPython_INCLUDE_DIR=$headers/python$version;-DPython_SOABI=$abi"
export SKBUILD_CMAKE_ARGS="$options"
# Into a folder of its own: in OUT there may be wheels of other Pythons, also newer ones.
made=$root/wheel
rm -rf "$made"
"$python" -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir "$made" "$project"
unset _PYTHON_HOST_PLATFORM SETUPTOOLS_EXT_SUFFIX CC CXX CXXFLAGS SKBUILD_CMAKE_ARGS
set -- "$made"/mest_fed-*aarch64.whl
wheel=$out/$(basename "$1")
mkdir -p "$out"
mv "$1" "$wheel"
echo "wheel: $wheel"

# What a device has: the wheel without torch, NumPy, gRPC, protobuf.
site=$root/site
rm -rf "$site"
"$python" -m pip install --quiet --disable-pip-version-check --no-compile --target "$site" \
    --platform manylinux2014_aarch64 --platform manylinux_2_28_aarch64 --python-version $version \
    --only-binary=:all: --requirement "$here/requirements.txt"
"$python" -m zipfile -e "$wheel" "$site"
PYTHONPATH=$site PYTHONDONTWRITEBYTECODE=1 "$emulator" -L "$root" "$root/usr/bin/python$version" \
    "$here/try_wheel.py" "$root/trained.json"

# The same here, where mest-fed is installed: the numbers must agree within rounding.
if "$python" -c "import mest_fed.runtime._native" 2>/dev/null; then
    "$python" "$here/try_wheel.py" "$root/here.json" "$root/trained.json"
else
    echo "not compared: mest-fed is not installed for $python"
fi
