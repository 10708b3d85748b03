"""Where the time of a training step goes on a GPU: by kernel, on the host, and in waits for the device.

python benchmarks/gpu/profile_step.py --setting 2304,131072,4096,64
"""

import argparse
import sys
import warnings
from collections import Counter

import torch

sys.path.append(f"{__file__.rsplit('/', 2)[0]}/engine")
from arms import make_arm  # noqa: E402
from common import Setting, activations, print_table, time_in_turn  # noqa: E402

STEPS = 10


def main() -> None:
    """Print a table of kernels, one of host operations, and the counts of launches and waits in a step."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--setting", type=Setting.parse, default=Setting.parse("2304,131072,4096,64"))
    parser.add_argument("--dry", action="store_true", help="toy size on the CPU")
    args = parser.parse_args()
    device = "cpu" if args.dry else "cuda"
    setting = Setting(32, 64, 16, 4) if args.dry else args.setting
    x = activations(setting, device)
    arm = make_arm("penstock-gated", setting, x, autocast=True)
    for _ in range(3):
        arm.step(x)
    timing = time_in_turn({"step": lambda: arm.step(x)}, repeats=10, device=device)["step"]
    print(f"step: median {1e3 * timing.median:.3g} ms, alone {1e3 * min(timing.seconds):.3g} ms at best")
    activities = [torch.profiler.ProfilerActivity.CPU]
    activities += [] if args.dry else [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        for _ in range(STEPS):
            arm.step(x)
        if not args.dry:
            torch.cuda.synchronize()
    events = profile.key_averages()
    # An operator is counted with the kernels that it launches; only the kernels run on the device.
    on_device = [event for event in events if event.device_type != torch.autograd.DeviceType.CPU]
    kernels = sorted(on_device, key=lambda event: -event.self_device_time_total)[:25]
    total = sum(event.self_device_time_total for event in on_device) / STEPS / 1e3
    rows = [
        [event.key[:70], str(event.count // STEPS), f"{event.self_device_time_total / STEPS / 1e3:.3f}"]
        for event in kernels
        if event.self_device_time_total > 0
    ]
    print_table(["on the device", "per step", "ms"], rows)
    print(f"all kernels: {total:.3f} ms a step\n")
    hosts = sorted(events, key=lambda event: -event.self_cpu_time_total)[:15]
    print_table(
        ["on the host", "per step", "ms"],
        [[e.key[:70], f"{e.count / STEPS:.1f}", f"{e.self_cpu_time_total / STEPS / 1e3:.3f}"] for e in hosts],
    )
    counts = Counter({event.key: event.count for event in events})
    for name in (
        "cudaLaunchKernel",
        "cuLaunchKernel",
        "cuLaunchKernelEx",
        "cudaStreamSynchronize",
        "cudaMemcpyAsync",
        "aten::item",
    ):
        print(f"{name}: {counts[name] / STEPS:.1f} a step")
    if not args.dry:
        waits(arm, x)


def waits(arm: object, x: torch.Tensor) -> None:
    """Name the places where a step waits for the device."""
    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        arm.step(x)  # pyright: ignore[reportAttributeAccessIssue]
    torch.cuda.set_sync_debug_mode("default")
    places = Counter(f"{warning.filename.rsplit('/', 3)[-1]}:{warning.lineno}" for warning in caught)
    print_table(["waits for the device", "per step"], [[place, str(count)] for place, count in places.most_common()])


if __name__ == "__main__":
    main()
