#!/usr/bin/env bash
# Fills corpus/TARGET with what the targets start from: seeds/, the real files of tests/data and, where it is set, of VOXMILL_DATA.
# Larger files than the cut are left out, since small inputs make fuzzing fast; so are all but eight of the files whose places differ in (hexadecimal) numbers alone.
set -euo pipefail
cd "$(dirname "$0")"
from=(seeds ../data ${VOXMILL_DATA:+"$VOXMILL_DATA"})
# fill TARGET FIND-TEST…: under the hash of their content, so that a second run adds nothing
fill() {
    local to=corpus/$1
    shift
    mkdir -p "$to"
    find "${from[@]}" -type f -size "-${CUT_KIB:-32}k" \( "$@" \) | LC_ALL=C sort | awk '{ k = $0; gsub(/[0-9a-f]+/, "", k) } n[k]++ < 8' |
        tr '\n' '\0' | xargs -0 sha1sum | while read -r hash path; do
        [ -e "$to/$hash" ] || install -m 644 "$path" "$to/$hash"
    done
    echo "$to: $(find "$to" -type f | wc -l) files"
}
fill header -not -name '*.nii*' -not -name '*.md' -not -name 'LICENSE*'
for target in pixels seg rtstruct deid; do
    mkdir -p "corpus/$target"
    cp -rn corpus/header/. "corpus/$target"
done
fill containers -name '*.zip' -o -name '*.tar' -o -name '*.gz' -o -name '*.tgz' -o -name '*.zst'
fill nifti -name '*.nii' -o -name '*.nii.gz'
