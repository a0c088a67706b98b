"""A plan as text, and as a row of a table."""

from vqgan.planning.plan import Plan

ROW_HEADER = (
    "| Config | GPUs | images at a time | weights | gradients | optimizer | averaged copy | activations "
    "| all else | in all, GB | days | cache to draw one, MB | seconds at least |\n"
    "|---|---|---|---|---|---|---|---|---|---|---|---|---|"
)


def as_text(plan: Plan) -> str:
    """For the console."""
    hardware, gpu = plan.hardware, plan.hardware.gpu
    parallelism = hardware.parallelism
    lines = [f"{plan.name}: {plan.what}", *([plan.note] if plan.note else []), "", "parameters"]
    lines += [f"  {name:<28}{number:>18,}" for name, number in plan.parts.items()]
    lines += [f"  {'in all':<28}{sum(plan.parts.values()):>18,}"]
    lines += [f"  {name + ', frozen':<28}{number:>18,}" for name, number in plan.frozen_parts.items()]

    micro = plan.batch // (parallelism.gpus * plan.at_a_time)
    where = "one GPU" if parallelism.gpus == 1 else f"each of {parallelism.gpus} GPUs ({parallelism.strategy})"
    lines += ["", f"memory on {where}, {plan.at_a_time} images at a time, GB"]
    lines += [f"  {name:<28}{size / 1e9:>18.2f}" for name, size in plan.memory.items()]
    verdict = "fits" if plan.needed <= plan.room else "does not fit"
    lines += [f"  {'in all':<28}{plan.needed / 1e9:>18.2f}  of {gpu.memory:g}: {verdict} (a tenth is left free)"]
    if plan.sampling_copy:
        too_much = "" if plan.sampling_copy <= plan.room else ": more than a GPU has, previews and the end will fail"
        lines.append(f"  between steps, to draw: a whole copy of {plan.sampling_copy / 1e9:.2f}{too_much}")
    if plan.suggestions:
        lines += ["", "what to change, and GB on each GPU after it"]
        for remedy in plan.suggestions:
            fits = "fits" if remedy.bytes <= plan.room else "not enough alone"
            lines.append(f"  {remedy.change:<44}{remedy.bytes / 1e9:>8.2f}  {fits}")
        if all(remedy.bytes > plan.room for remedy in plan.suggestions):
            lines.append("  nothing of this is enough: take larger GPUs, more of them, or a smaller model")
    elif not plan.fits:
        lines += ["", "one image at a time already: take larger GPUs, or a smaller model"]

    lines += ["", "arithmetic"]
    lines += [f"  an image, forward and backward: {_amount(plan.flops_a_image)}FLOP"]
    parts = "one part" if micro == 1 else f"{micro} parts"
    lines += [f"  a step of {plan.batch:,}, in {parts}: {_amount(plan.flops_a_image * plan.batch)}FLOP"]
    seen = plan.steps * plan.batch
    codes = f", {seen * plan.codes_a_image:.3g} image codes" if plan.codes_a_image else ""
    lines += ["", f"to the end: {plan.steps:,} steps, {seen:.3g} images{codes}"]
    if plan.days is not None and plan.seconds_a_step is not None:
        reached = f"{hardware.mfu:.0%} of {parallelism.gpus} x {gpu.tflops:g} TFLOPS"
        lines.append(f"  {_time(plan.seconds_a_step)} a step, {_time(plan.days * 86_400)} in all, at {reached}")
        if hardware.price is not None:
            cost = plan.days * 24 * parallelism.gpus * hardware.price
            lines.append(f"  {_cost(cost)} at {hardware.price:g} a GPU-hour")
    if plan.sampling_cost is not None:
        sampling_cost = plan.sampling_cost
        at = f"at least at {gpu.bandwidth:g} TB/s" if gpu.bandwidth else ""
        seconds = "" if sampling_cost.seconds is None else f", {_time(sampling_cost.seconds)} {at}"
        lines += ["", f"drawing an image ({sampling_cost.settings})"]
        lines += [f"  {_amount(sampling_cost.flops)}FLOP, key-value cache {sampling_cost.cache / 1e6:.1f} MB{seconds}"]
    return "\n".join(lines)


def as_row(plan: Plan) -> str:
    """For a table; memory in GB."""
    parallelism, memory = plan.hardware.parallelism, plan.memory
    shown = ("weights", "gradients", "optimizer state", "averaged copy", "activations")
    others = plan.needed - sum(memory.get(kind, 0) for kind in shown)
    sampling_cost = plan.sampling_cost
    cells = [
        plan.name,
        f"{parallelism.gpus} x {plan.hardware.gpu.memory:g} GB, {parallelism.strategy}",
        str(plan.at_a_time),
        *(f"{memory.get(kind, 0) / 1e9:.1f}" for kind in shown),
        f"{others / 1e9:.1f}",
        f"{plan.needed / 1e9:.1f}" + ("" if plan.fits else " (too much)"),
        "" if plan.days is None else f"{plan.days:.3g}",
        "" if sampling_cost is None else f"{sampling_cost.cache / 1e6:.0f}",
        "" if sampling_cost is None or sampling_cost.seconds is None else f"{sampling_cost.seconds:.2f}",
    ]
    return f"| {' | '.join(cells)} |"


def _amount(number: float) -> str:
    """With the prefix of its thousands."""
    for prefix in ("", "k", "M", "G", "T", "P"):
        if number < 1000:
            return f"{number:.3g} {prefix}"
        number /= 1000
    return f"{number:.3g} E"


def _cost(cost: float) -> str:
    """In whole units from 10 on."""
    if 0 < cost < 0.005:
        return "less than 0.01"
    return f"{cost:,.0f}" if cost >= 9.995 else f"{cost:.2f}"


def _time(seconds: float) -> str:
    for unit, length in (("days", 86_400), ("h", 3600), ("min", 60), ("s", 1)):
        if seconds >= 2 * length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds:.3g} s" if seconds >= 0.1 else f"{1000 * seconds:.3g} ms"
