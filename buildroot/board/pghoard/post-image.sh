#!/bin/bash
# The appliance's disk image, by the builder that also makes it of a distribution's packages.
#
# Buildroot runs this at its end: post-image.sh BINARIES_DIR. The folder pghoard/ in there already
# has the program, e2fsck, the boot loader, its stub and packages.json, put there by the packages;
# the kernel and the list of what is built into it are added here.
set -euo pipefail

binaries=${1:?usage: post-image.sh BINARIES_DIR}
inputs=$binaries/pghoard

for kernel in bzImage Image; do
    if [ -e "$binaries/$kernel" ]; then cp "$binaries/$kernel" "$inputs/vmlinuz"; fi
done
# Everything is built in; the builder looks there for what it would else want as a module.
mkdir -p "$inputs/modules"
cp "$TARGET_DIR"/lib/modules/*/modules.builtin "$inputs/modules/"

# It asks cargo for the crates' licences, without a network.
CARGO_HOME=$(cat "$inputs/cargo-home")
export CARGO_HOME
exec "$HOST_DIR/bin/firmware-image" compose --inputs "$inputs" --program "$inputs/program" \
    --out "$binaries/pghoard.img"
