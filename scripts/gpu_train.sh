#!/usr/bin/env bash
# The tiny recipe on a machine with a GPU, slice by slice: the stages of configs/distill/tiny in larger batches, on clips
# that are made and encoded on the device. A slice ends by itself and keeps what it has; the same command goes on.
#
#   scripts/gpu_train.sh RUNS                      one slice of at most 8 minutes; runs, caches and exports lie in RUNS
#   scripts/gpu_train.sh RUNS KEY=VALUE...         with overrides, such as causal.max_minutes=40 or seed=1
#   SLICE_MINUTES=20 scripts/gpu_train.sh RUNS     longer ones
#   PACK=DIR scripts/gpu_train.sh RUNS             for machines that are lost in between: what a slice needs of the ones before
#                                                  is taken from DIR, and put there in files of 15 MiB (caches are made anew)
#   PYTHON=.venv/bin/python RECIPE=FOLDER scripts/gpu_train.sh RUNS
#
# Exit code: 0 all stages are done, 75 there is more to do, else that of the stage that failed.
set -uo pipefail

(($# >= 1)) || { echo "gpu_train: expected a folder for the runs" >&2; exit 2; }
root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
mkdir -p -- "$1" && runs=$(cd -- "$1" && pwd) || exit 2
shift
recipe=${RECIPE:-$root/configs/distill/tiny}
minutes=${SLICE_MINUTES:-8}
python=${PYTHON:-python3}
[[ $python != */* || $python == /* ]] || python="$PWD/$python"
# a checkout that is not installed will do, if its dependencies are there
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"

# Batches that keep a large GPU busy, and minutes in the proportions of the recipe's own; not measured on one yet.
gpu=(
    report=null "trackers=[]" prefetch=true checkpoint.every_minutes=2 preview.at_start=false preview.every_minutes=null
    tokenizer.max_minutes=8 tokenizer.data.image_batch=192 tokenizer.data.video_batch=32
    words.max_minutes=2 words.batch=512
    causal.max_minutes=32 causal.mixture.images.batch=1024 causal.mixture.beginnings.batch=160
    causal.mixture.clips.batch=24 causal.mixture.changes.batch=48
    init.max_minutes=6 init.mixture.images.batch=256 init.mixture.beginnings.batch=160
    init.mixture.clips.batch=24 init.mixture.changes.batch=48
    self_forcing.max_minutes=16 self_forcing.rollout.batch=96 self_forcing.rollout.first_batch=384
)

if [[ -n ${PACK:-} && ! -e $runs/runs ]] && compgen -G "$PACK/runs.tar.*" >/dev/null; then
    cat -- "$PACK"/runs.tar.* | tar --extract --directory "$runs" || exit 1
    echo "gpu_train: went on from what lies in $PACK" >&2
fi

# whole seconds; what is under way has a minute to be kept
seconds=$("$python" -c 'import sys; print(max(1, round(60 * float(sys.argv[1]) - 60)))' "$minutes") || exit 2
cd -- "$runs"
timeout --signal=TERM --kill-after=60 "$seconds" "$python" -m distill "$recipe" "${gpu[@]}" "$@" </dev/null
code=$?

if [[ -n ${PACK:-} ]]; then
    mkdir -p -- "$PACK" && rm -f -- "$PACK"/runs.tar.*
    # of each stage its result, or the last checkpoint to go on from
    kept=()
    for stage in runs/*/*/; do
        if compgen -G "$stage/export/*.safetensors" >/dev/null; then
            kept+=("${stage}export")
        elif last=$(compgen -G "$stage/checkpoints/step-*" | sort | tail -n 1) && [[ -n $last ]]; then
            kept+=("$last")
        fi
    done
    ((${#kept[@]} == 0)) || tar --create "${kept[@]}" | split --bytes=15M --numeric-suffixes --suffix-length=3 - "$PACK/runs.tar."
fi

# 124: timeout's own word for a command that it has stopped
if ((code == 124 || code == 143)); then
    echo "gpu_train: the slice is over; the same command goes on" >&2
    exit 75
fi
exit "$code"
