#!/usr/bin/env bash
# One CI run: everything that `cargo xtask test` holds to be true, with the machine's own settings.
set -eu
cd "$(dirname "$0")/.."
export CARGO_TERM_COLOR=never CARGO_INCREMENTAL=0 INSTA_UPDATE=no
command -v cargo >/dev/null || { echo "ci: no cargo on PATH: install Rust 1.88 or newer" >&2; exit 1; }
exec cargo xtask test
