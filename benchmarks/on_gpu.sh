#!/usr/bin/env bash
# Builds, verifies and benches the TensorRT targets on this NVIDIA machine, with the demo's network.
#
#   benchmarks/on_gpu.sh                 all of it
#   benchmarks/on_gpu.sh --dry-run       shows the commands and runs none
#   benchmarks/on_gpu.sh --flavour rtx   with TensorRT for RTX in place of the full one
#   benchmarks/on_gpu.sh trt-int8        one target
#
# Results go to benchmarks/results/<GPU>/, a JSON file a step and report.md.
# PYTHON is the interpreter (python3), VENV the environment (.venv-gpu). On a Jetson, TensorRT is the
# system's: SYSTEM_TENSORRT=1 makes an environment that sees it.
set -euo pipefail
cd "$(dirname "$0")/.."

python="${PYTHON:-python3}"
venv="${VENV:-.venv-gpu}"
dry=
flavour=tensorrt
targets=()
while (($#)); do
    case "$1" in
        --dry-run) dry=1 ;;
        --flavour)
            flavour="${2:?--flavour takes tensorrt or rtx}"
            shift
            ;;
        trt-fp32 | trt-fp16 | trt-int8) targets+=("$1") ;;
        *)
            echo "usage: $0 [--dry-run] [--flavour tensorrt|rtx] [trt-fp32|trt-fp16|trt-int8 ...]" >&2
            exit 2
            ;;
    esac
    shift
done
case "$flavour" in
    tensorrt) extra=tensorrt ;;
    rtx) extra=tensorrt-rtx ;;
    *)
        echo "unknown flavour $flavour: tensorrt or rtx" >&2
        exit 2
        ;;
esac
((${#targets[@]})) || targets=(trt-fp32 trt-fp16 trt-int8)

run() {
    printf '+'
    printf ' %q' "$@"
    printf '\n'
    [[ -n $dry ]] || "$@"
}

if [[ -n $dry ]]; then
    gpu=GPU
elif command -v nvidia-smi >/dev/null; then
    gpu="$(nvidia-smi --query-gpu=name --format=csv,noheader | head -n 1)"
elif [[ -r /proc/device-tree/model ]]; then
    gpu="$(tr -d '\0' </proc/device-tree/model)"
else
    echo "there is no NVIDIA GPU here: neither nvidia-smi nor a Jetson's device tree" >&2
    exit 3
fi
out="benchmarks/results/$(tr -cs '[:alnum:]\n' '-' <<<"$gpu" | sed 's/-*$//')"
bundles="bundles/on-gpu"
app=("$venv/bin/vggdeploy")

# PyCUDA is compiled against the toolkit's headers.
if [[ -d /usr/local/cuda/include ]]; then
    export PATH="/usr/local/cuda/bin:$PATH"
    export CPATH="/usr/local/cuda/include${CPATH:+:$CPATH}"
    export LIBRARY_PATH="/usr/local/cuda/lib64${LIBRARY_PATH:+:$LIBRARY_PATH}"
fi
if [[ -n ${SYSTEM_TENSORRT:-} ]]; then
    run "$python" -m venv --system-site-packages "$venv"
    run "$venv/bin/python" -m pip install --quiet '.[export,openvino,demo,report]' pycuda
else
    run "$python" -m venv "$venv"
    run "$venv/bin/python" -m pip install --quiet ".[export,openvino,demo,report,$extra]"
fi

# Everything of one target; fails where any step does. Where a function's failure is looked at, bash
# lets it go on whatever fails in it, so each step is looked at here.
measure() {
    local target="$1" bundle="$bundles/$1" failed=0
    # What fails shall leave no result of an earlier run in the report.
    run rm -f "$out/$target-"*.json
    run "${app[@]}" build --target "$target" --flavour "$flavour" --weights demo --max-batch 32 \
        --out "$bundle" --force --json "$out/$target-build.json" || return
    run "${app[@]}" verify "$bundle" --data demo --native --force \
        --json "$out/$target-verify.json" || failed=1
    for batch in 1 8 32; do
        run "${app[@]}" bench "$bundle" --batch "$batch" --seconds 10 --force \
            --json "$out/$target-bench-$batch.json" || failed=1
    done
    run "${app[@]}" gate "$out/$target-verify.json" --min-agreement 0.99 --force \
        --json "$out/$target-gate.json" || failed=1
    return "$failed"
}

failed=0
run mkdir -p "$out"
run "${app[@]}" doctor --json "$out/doctor.json" --force
for target in "${targets[@]}"; do
    measure "$target" || failed=1 # the other targets are measured all the same
done
run "$venv/bin/python" -m vggdeploy.benchmarks.gpu_report "$out" || failed=1
exit "$failed"
