"""The commands about a model that runs: routing bundles, traces, comparisons.

`cli` has them beside those about weights. Their modules are loaded when they are used.
"""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias, TypeVar

from moe_weights.errors import CheckpointError, ExitCode
from moe_weights.routing.arguments import (
    add_capture_arguments,
    add_import_arguments,
    add_statistics_arguments,
)
from moe_weights.tracing.arguments import (
    add_compare_arguments,
    add_sweep_arguments,
    add_trace_arguments,
)

# Makes the parser of a command from its name, one line about it, and what runs it.
AddCommand: TypeAlias = Callable[
    [str, str, Callable[[argparse.Namespace], int]], argparse.ArgumentParser
]


def add_runtime_commands(add_command: AddCommand) -> None:
    """Add all of them, in the order in which a person would use them."""
    _add_inspect(add_command)
    _add_capture(add_command)
    _add_import_routing(add_command)
    _add_routing_stats(add_command)
    _add_trace(add_command)
    _add_trace_model(add_command)
    _add_trace_sweep(add_command)


def _add_inspect(add_command: AddCommand) -> None:
    def run(arguments: argparse.Namespace) -> int:
        from moe_weights.routing.inspect import show_bundle, summarize_bundle

        if arguments.quiet:
            summarize_bundle(arguments.run_dir)
        else:
            show_bundle(arguments.run_dir, as_json=arguments.json)
        return int(ExitCode.OK)

    parser = add_command("inspect", "Check a routing bundle and show what it holds.", run)
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    parser.add_argument("run_dir", metavar="RUN_DIR", help="folder of a bundle")


def _add_capture(add_command: AddCommand) -> None:
    def run(arguments: argparse.Namespace) -> int:
        from moe_weights.routing.capture_command import CaptureOptions, capture

        return capture(_to_options(CaptureOptions, arguments))

    parser = add_command(
        "capture", "Generate with a model and record which expert took which token.", run
    )
    add_capture_arguments(parser)


def _add_import_routing(add_command: AddCommand) -> None:
    def run(arguments: argparse.Namespace) -> int:
        from moe_weights.routing.import_command import ImportOptions, import_routing

        if arguments.config:
            _fill_in_from_config(arguments)
        return import_routing(_to_options(ImportOptions, arguments))

    parser = add_command(
        "import-routing", "Turn what vLLM or SGLang recorded into a routing bundle.", run
    )
    add_import_arguments(parser)


def _fill_in_from_config(arguments: argparse.Namespace) -> None:
    """Set what was not given of experts, layers and num_layers to what a config.json says."""
    from moe_weights.checkpoint.expert_expectation import expect_experts
    from moe_weights.checkpoint.model_config import load_model_config

    path = Path(arguments.config)
    search = load_model_config(path.parent, path.name)
    if search.config is None or search.config.path != path:
        raise CheckpointError(f"cannot read {path} as the config.json of a model")
    stack = expect_experts(search.config.raw).of("text")
    if stack is not None:
        arguments.experts = arguments.experts or stack.n_experts
        arguments.layers = arguments.layers or stack.moe_layers
        arguments.num_layers = arguments.num_layers or stack.n_layers


def _add_routing_stats(add_command: AddCommand) -> None:
    def run(arguments: argparse.Namespace) -> int:
        from moe_weights.routing.statistics_command import StatisticsOptions, show_statistics

        return show_statistics(_to_options(StatisticsOptions, arguments))

    parser = add_command(
        "routing-stats", "Count how evenly a run's experts are used, layer by layer.", run
    )
    add_statistics_arguments(parser)


def _add_trace(add_command: AddCommand) -> None:
    def run(arguments: argparse.Namespace) -> int:
        from moe_weights.tracing.compare_command import CompareOptions, compare_runs

        return compare_runs(_to_options(CompareOptions, arguments))

    parser = add_command(
        "trace", "Compare two runs: the first stage, step and layer that differ.", run
    )
    add_compare_arguments(parser)


def _add_trace_model(add_command: AddCommand) -> None:
    def run(arguments: argparse.Namespace) -> int:
        from moe_weights.tracing.trace_command import TraceOptions, trace_one

        return trace_one(_to_options(TraceOptions, arguments))

    parser = add_command(
        "trace-model", "Run one prompt through a model and record what happened.", run
    )
    add_trace_arguments(parser)


def _add_trace_sweep(add_command: AddCommand) -> None:
    def run(arguments: argparse.Namespace) -> int:
        from moe_weights.tracing.sweep_command import SweepOptions, sweep_model

        return sweep_model(_to_options(SweepOptions, arguments))

    parser = add_command(
        "trace-sweep", "Measure a model along prompt lengths; nothing is fitted.", run
    )
    add_sweep_arguments(parser)


_Options = TypeVar("_Options")


def _to_options(options: Callable[..., _Options], arguments: argparse.Namespace) -> _Options:
    """Return a dataclass of options, its fields filled by the arguments of their names."""
    names = inspect.signature(options).parameters
    return options(**{name: getattr(arguments, name) for name in names})
