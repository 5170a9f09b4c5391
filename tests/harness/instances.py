"""Which compiled kernels a test must have launched: every instance of every template.

The instances are those in the compiled module's symbol table, not those that some list or some
launch names, so none can be forgotten.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

#: The test file that launches all instances of a kernel.
COVERED_BY = {
    "gather_kernel": "test_kernels_on_cpu.py",
    "gather_many_kernel": "test_kernels_on_cpu.py",
    "pixel_weight_grads_kernel": "test_kernels_on_cpu.py",
    "window_tables_kernel": "test_kernels_on_cpu.py",
    "spread_kernel": "test_kernels_on_cpu.py",
    "spread_sums_kernel": "test_kernels_on_cpu.py",
    "sum_dots_kernel": "test_kernels_on_cpu.py",
    "expand_kernel": "test_expand_on_cpu.py",
    "expand_extended_kernel": "test_expand_on_cpu.py",
    "reduce_aligned_kernel": "test_reduce_on_cpu.py",
    "reduce_planar_kernel": "test_reduce_on_cpu.py",
    "reduce_channels_last_kernel": "test_reduce_on_cpu.py",
    "cross_entropy_kernel": "test_losses_on_cpu.py",
    "cross_entropy_backward_kernel": "test_losses_on_cpu.py",
    "cross_entropy_columns_kernel": "test_losses_on_cpu.py",
    "argmax_columns_kernel": "test_losses_on_cpu.py",
    "cross_entropy_strips_kernel": "test_losses_on_cpu.py",
    "binary_cross_entropy_strips_kernel": "test_losses_on_cpu.py",
    "binary_cross_entropy_kernel": "test_losses_on_cpu.py",
    "binary_cross_entropy_backward_kernel": "test_losses_on_cpu.py",
    "argmax_kernel": "test_losses_on_cpu.py",
    "loss_totals_kernel": "test_losses_on_cpu.py",
}


def template_of(instance: str) -> str:
    """``scale_kernel`` of ``msr::scale_kernel<float, 4>``."""
    return instance.split("<")[0].split("::")[-1]


def instances(module: ModuleType, test_file: str) -> dict[str, int]:
    """Launches, since the last reset, of each instance that a test file is to cover.

    Raises:
        KeyError: a kernel was compiled that no test file is to cover.
    """
    shipped = {
        name: count
        for name, count in module.compiled_kernels().items()
        if not name.startswith("msr::selftest::")
    }
    return {
        name: count
        for name, count in shipped.items()
        if COVERED_BY[template_of(name)] == Path(test_file).name
    }


def never_launched(module: ModuleType, test_file: str) -> list[str]:
    """The instances among them without a launch."""
    return sorted(name for name, count in instances(module, test_file).items() if count == 0)
