#!/usr/bin/env bash
# What a machine with a GPU does with streamgen: ceilings of the device, the attention kernels it really takes, whether
# it computes what the CPU does, every runner against the plain one, and the speed of the Wan 1.3B shape with random
# weights. Nothing is downloaded but the package's own dependencies, and those only where they are missing.
#
#   scripts/gpu_check.sh                      results in gpu_check.json, a table at the end
#   scripts/gpu_check.sh FILE [PART...]       results elsewhere; some parts only (python -m streamgen.check parts)
#   CHECK_SECONDS=900 scripts/gpu_check.sh    more time than the eight minutes that it takes at most
#   PYTHON=.venv/bin/python scripts/gpu_check.sh
#
# A part that is done in the file is not done again: run it once more for what was cut short or had no time left.
set -uo pipefail

cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
file=${1:-gpu_check.json}
budget=${CHECK_SECONDS:-480}
options=(${CHECK_OPTIONS:-})
python=${PYTHON:-python3}
# a checkout that is not installed will do, if its dependencies are there
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"

# what these parts import, and no more: the demo's packages and the trainer's are not needed here
needed=(torch einops omegaconf safetensors typer numpy av pillow)
look='import sys; from importlib.util import find_spec; sys.exit(any(find_spec(n) is None for n in sys.argv[1:]))'
if ! "$python" -c "$look" "${needed[@]/pillow/PIL}"; then
    echo "gpu_check: installing what is missing for $python" >&2
    "$python" -m pip install --quiet "${needed[@]}" || exit 2
fi

parts=$("$python" -m streamgen.check parts) || exit 2
if (($# > 1)); then
    parts=$(grep -E "^($(IFS='|'; echo "${*:2}")) " <<<"$parts") || { echo "gpu_check: no such part" >&2; exit 2; }
fi
code=0
while read -r name seconds; do
    left=$((budget - SECONDS))
    if ((left < 15)); then
        echo "gpu_check: no time left for $name; run the script again" >&2
        code=1
        continue
    fi
    limit=$((seconds < left ? seconds : left))
    timeout --kill-after=5 "$limit" "$python" -m streamgen.check run "$name" -o "$file" "${options[@]}" </dev/null
    ended=$?
    ((ended == 124 || ended == 137)) && echo "gpu_check: $name was cut short after $limit s" >&2
    ((ended == 2)) && exit 2
    ((ended == 0)) || code=1
done <<<"$parts"

"$python" -m streamgen.check table -o "$file"
exit "$code"
