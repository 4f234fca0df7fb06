#!/bin/sh
# Sets a lean node of mest-fed up in Termux: setup.sh SOURCES. Not tried on a real phone; see README.md.
set -eu

sources=${1:?"usage: setup.sh SOURCES, the folder with the sources of mest-fed"}
[ -e "$sources/pyproject.toml" ] || { echo "setup.sh: $sources has no pyproject.toml" >&2; exit 2; }
command -v pkg >/dev/null || { echo "setup.sh: there is no pkg: this is for Termux" >&2; exit 2; }

echo "installing Termux's packages: Python, NumPy, gRPC, a compiler"
pkg update -y
# Compiled for Android by Termux; PyPI has no wheels for it.
pkg install -y python python-numpy python-grpcio clang cmake ninja termux-api
# Pure Python.
python -m pip install "protobuf>=6.31.1,<7"
echo "compiling and installing mest-fed from $sources (many minutes on a phone)"
# The native runtime is compiled here, by Clang; nothing of torch is fetched.
python -m pip install "scikit-build-core>=1.1" "nanobind>=3.1"
MEST_REQUIRE_NATIVE=1 python -m pip install --no-deps --no-build-isolation "$sources"
python -c 'from mest_fed.runtime.native_table import module; print("native runtime:", module().variant())'
