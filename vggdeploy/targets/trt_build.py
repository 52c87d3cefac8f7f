"""A build with TensorRT: the network, its settings, and the engine, in any flavour and version.

Differences between versions are asked for by name, as in `trt_api`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vggdeploy.errors import ConfigError, MissingError, ModelError
from vggdeploy.targets import trt_layers, trt_log
from vggdeploy.targets.trt_api import BuiltEngine

if TYPE_CHECKING:
    from pathlib import Path

    from vggdeploy.contracts import TrtOptions
    from vggdeploy.targets.trt_api import Api


def build(api: Api, onnx: Path, options: TrtOptions, timing_cache: bytes | None) -> BuiltEngine:
    """Compile a graph; see `Api.build`."""
    trt, log = api.module, trt_log.log(api.module)
    builder = api.made(trt.Builder, log)
    # DLA quantizes by itself, which a typed network forbids.
    typed = api.strongly_typed and options.dla_core is None
    network = builder.create_network(_creation_flags(api, typed))
    _parse(api, network, log, onnx)
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if hasattr(trt.BuilderFlag, "TF32"):
        # Its significands have 10 bits: single precision is what was asked for.
        config.clear_flag(trt.BuilderFlag.TF32)
    if options.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    if options.sparse:
        config.set_flag(trt.BuilderFlag.SPARSE_WEIGHTS)
    if not typed:
        _allow(api, config, network, options)
    # TensorRT does not hold on to it.
    calibrator = _place_on_dla(api, config, options)
    _aim(api, config, options)
    batches = _profile(builder, network, config, options)
    mismatch = _use_timing(api, config, log, timing_cache)
    plan = builder.build_serialized_network(network, config)
    del calibrator
    if plan is None:
        raise ModelError(
            f"{api.name} does not build {onnx.name}",
            got=log.said() or "no reason",
            expected="kernels for every layer",
            fix="build trt-fp16 or trt-int8, which leave nothing in FP32, or for another GPU",
        )
    content = bytes(plan)
    layers = _look(api, content, options)
    if layers is None and log.listed:
        layers = trt_layers.parse_log(log.listed)
    return BuiltEngine(content, layers, _timing(api, config), mismatch, batches, typed)


def _creation_flags(api: Api, typed: bool) -> int:
    kinds = api.module.NetworkDefinitionCreationFlag
    wanted = ["EXPLICIT_BATCH", *(["STRONGLY_TYPED"] if typed else [])]
    return sum(1 << int(getattr(kinds, name)) for name in wanted if hasattr(kinds, name))


def _parse(api: Api, network: Any, log: Any, onnx: Path) -> None:
    parser = api.module.OnnxParser(network, log)
    if parser.parse_from_file(str(onnx)):
        return
    errors = [_parser_error(parser.get_error(i)) for i in range(parser.num_errors)]
    raise ModelError(
        f"{api.name} does not take {onnx.name}",
        got="; ".join(errors) or log.said() or "no reason",
        expected="operators that TensorRT has",
        fix="export the model without them, or build for another target",
    )


def _allow(api: Api, config: Any, network: Any, options: TrtOptions) -> None:
    """Let a network that is not typed run in the types that its tensors have.

    With 8 bits go 16: what stays in high precision is not to fall back to 32.
    """
    trt = api.module
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    eight = options.calibration_cache is not None or any(
        layer.type == trt.LayerType.QUANTIZE for layer in layers
    )
    half = any(
        layer.get_output(index).dtype == trt.DataType.HALF
        for layer in layers
        for index in range(layer.num_outputs)
    )
    if eight:
        config.set_flag(trt.BuilderFlag.INT8)
    if eight or half:
        config.set_flag(trt.BuilderFlag.FP16)


def _place_on_dla(api: Api, config: Any, options: TrtOptions) -> Any:
    if options.dla_core is None:
        return None
    trt = api.module
    config.default_device_type = trt.DeviceType.DLA
    config.DLA_core = options.dla_core
    config.set_flag(trt.BuilderFlag.GPU_FALLBACK)
    if options.calibration_cache is None:
        return None
    calibrator = _calibrator(trt, options.calibration_cache.read_bytes())
    config.int8_calibrator = calibrator
    return calibrator


def _aim(api: Api, config: Any, options: TrtOptions) -> None:
    """Compile for the compute capabilities that are asked for."""
    if not options.compute_capabilities:
        return
    # The number comes first: without it, setting one does nothing.
    config.num_compute_capabilities = len(options.compute_capabilities)
    for index, capability in enumerate(options.compute_capabilities):
        kind = getattr(api.module.ComputeCapability, "SM" + capability.replace(".", ""))
        if config.set_compute_capability(kind, index) is False:
            raise ConfigError(
                f"{api.name} refuses compute capability {capability}",
                got=", ".join(options.compute_capabilities),
                expected="ones that go into one engine",
                fix="build for each in a bundle of its own",
            )


def _use_timing(api: Api, config: Any, log: Any, content: bytes | None) -> str:
    """Give the builder a timing cache; why it takes none of it, empty where it does."""
    if api.ahead:
        return ""
    before = len(log.lines)
    given = config.create_timing_cache(content or b"")
    taken = given is not None and config.set_timing_cache(given, False) is not False
    said = "; ".join(line for line in log.lines[before:] if "cache" in line.lower())
    if content and (said or not taken):
        mismatch = said or "TensorRT refuses it"
        if not taken:
            config.set_timing_cache(config.create_timing_cache(b""), False)
        return mismatch
    return ""


def _timing(api: Api, config: Any) -> bytes | None:
    cache = None if api.ahead else config.get_timing_cache()
    return None if cache is None else bytes(cache.serialize())


def _look(api: Api, plan: bytes, options: TrtOptions) -> list[dict[str, Any]] | None:
    """The engine's layers, where this machine can load it."""
    try:
        engine = api.deserialize(plan, options.dla_core)
    except (MissingError, ModelError):
        return None
    return api.layers(engine)


def _profile(builder: Any, network: Any, config: Any, options: TrtOptions) -> tuple[int, int, int]:
    """One optimization profile for the one input; none where its batch is fixed.

    Raises:
        ConfigError: when the graph's fixed batch is outside of what is asked for.
    """
    image = network.get_input(0)
    sides = tuple(int(side) for side in image.shape)
    if sides[0] != -1:
        if not options.min_batch <= sides[0] <= options.max_batch:
            raise ConfigError(
                f"the graph takes batches of {sides[0]} alone",
                got=f"batches {', '.join(map(str, options.batches))}",
                expected=f"{sides[0]} among them",
                fix="mend --min-batch and --max-batch, or export with a dynamic batch",
            )
        return sides[0], sides[0], sides[0]
    profile = builder.create_optimization_profile()
    profile.set_shape(image.name, *((batch, *sides[1:]) for batch in options.batches))
    config.add_optimization_profile(profile)
    return options.batches


def _parser_error(error: Any) -> str:
    """A parser's error in one line; what each version tells of the node."""
    parts = [str(error.desc())]
    name = error.node_name() if hasattr(error, "node_name") else ""
    operator = error.node_operator() if hasattr(error, "node_operator") else ""
    where = " ".join(filter(None, (operator, repr(name) if name else "")))
    return f"{where or f'node {error.node()}'}: {' '.join(parts[0].split())}"


def _calibrator(trt: Any, cache: bytes) -> Any:
    """What serves a calibration cache, and no image."""

    class FromCache(trt.IInt8EntropyCalibrator2):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IInt8EntropyCalibrator2.__init__(self)

        def get_batch_size(self) -> int:
            return 1

        def get_batch(self, names: list[str]) -> None:
            return None

        def read_calibration_cache(self) -> bytes:
            return cache

        def write_calibration_cache(self, content: bytes) -> None:
            """Not kept: it is the one that was read."""

    return FromCache()
