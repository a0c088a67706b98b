"""Which metrics of a run share a chart: train and val of the same metric, losses, shares, rates, the rest."""

from collections.abc import Callable, Mapping, Sequence

from vqgan.report.line_chart import LineChart, Points, line_chart
from vqgan.report.records import Records, curves

_SAME_AS = {
    "next_token": {"nats_per_code": "loss"},
    "text_encoder": {"masked_nats": "loss_masked"},
    "mae": {"masked_mse": "loss"},
    "simmim": {"masked_l1": "loss"},
    "beit": {"masked_nats": "loss"},
    "mpp": {"masked_nats": "loss"},
    "fused_captioning": {f"nats_row_{row}": f"loss_row_{row}" for row in (3, 7, 11, 14)},
}
"""By objective: what evaluations call a loss of training, which is the same metric of other images."""
_NOT_CHARTED = {"seconds"}
_SHARES = ("accuracy", "usage", "share", "fraction")
_MORE_SHARES = {"cut_captions", "dead_codes", "matched_real", "skipped_share"}
_MOST_LINES = 6
"""Of one chart: as many as there are colors."""
_MOST_POINTS = 400
"""Of one line: more cannot be seen."""

Curves = Mapping[str, Points]


def is_share(name: str) -> bool:
    """Whether a metric is a share in [0, 1], shown in percent."""
    return name.endswith(_SHARES) or name.startswith("exact_") or name in _MORE_SHARES


def spoken(name: str) -> str:
    """A metric's name for people."""
    return name.replace("_", " ").replace("psnr", "PSNR").replace("ssim", "SSIM").replace("r1 ", "R1 ")


def run_charts(records: Records, objective: str) -> dict[str, list[LineChart]]:
    """Every metric of a run in one chart, by groups: heading -> charts."""
    train, val = _charted(curves(records, "train")), _charted(curves(records, "val"))
    same = _SAME_AS.get(objective, {})
    both: dict[str, tuple[str, Curves]] = {}
    for name in list(val):
        if (other := name if name in train else same.get(name)) in train and other is not None:
            both[name] = (other, {"train": train[other], "val": val[name]})
    for name, (other, _) in both.items():
        val.pop(name)
        train.pop(other)
    groups = {
        "Training and validation": [
            _chart(
                spoken(name), f"Training ({spoken(other)}) and validation of the same metric.", lines, is_share(name)
            )
            for name, (other, lines) in both.items()
        ],
        "Validation": [
            *_together("Shares, validation", "On validation images.", _taken(val, is_share), percent=True),
            *_one_each(val, "On validation images."),
        ],
        "Losses": _together("Loss terms", "Training: each with its weight.", _taken(train, _is_loss)),
        "Training": _together("Shares, training", "On training batches.", _taken(train, is_share), percent=True),
        "Optimizer": [
            *_together("Gradient norm", "Before clipping.", _taken(train, lambda name: "gradient_norm" in name)),
            *_together("Learning rate", "Of each optimizer.", _taken(train, lambda name: "learning_rate" in name)),
        ],
        "Speed": _together(
            "Images a second", "Between two log lines.", _taken(train, lambda n: n == "images_per_second")
        ),
    }
    groups["Other"] = _one_each(train, "Training.")
    return _present(groups)


def compared_charts(runs: Mapping[str, Records]) -> dict[str, list[LineChart]]:
    """A chart of each metric and split, with a line for each run."""
    groups: dict[str, list[LineChart | None]] = {}
    for split, heading in (("val", "Validation"), ("train", "Training")):
        of_runs = {name: _charted(curves(records, split)) for name, records in runs.items()}
        names = dict.fromkeys(metric for metrics in of_runs.values() for metric in metrics)
        groups[heading] = [
            _chart(
                f"{spoken(metric)}, {split}",
                "",
                {run: metrics[metric] for run, metrics in of_runs.items() if metric in metrics},
                is_share(metric),
            )
            for metric in names
        ]
    return _present(groups)


def thinned(points: Points, most: int = _MOST_POINTS) -> Points:
    """Every n-th of many points, and the last one."""
    every = -(-len(points) // most)
    return points if every <= 1 else [*points[:-1:every], points[-1]]


def _is_loss(name: str) -> bool:
    return name == "loss" or (name.startswith("loss_") and name != "loss_scale")


def _charted(metrics: Curves) -> dict[str, Points]:
    return {name: thinned(points) for name, points in metrics.items() if name not in _NOT_CHARTED}


def _taken(metrics: dict[str, Points], wanted: Callable[[str], bool]) -> dict[str, Points]:
    """The wanted metrics, which are taken out."""
    return {name: metrics.pop(name) for name in list(metrics) if wanted(name)}


def _together(title: str, note: str, metrics: Curves, *, percent: bool = False) -> list[LineChart | None]:
    """Charts of at most as many lines as there are colors."""
    names = list(metrics)
    parts = [names[at : at + _MOST_LINES] for at in range(0, len(names), _MOST_LINES)]
    return [
        _chart(
            f"{title} ({number} of {len(parts)})" if len(parts) > 1 else title,
            note,
            {spoken(name).removeprefix("loss ") or "loss": metrics[name] for name in part},
            percent,
        )
        for number, part in enumerate(parts, start=1)
    ]


def _one_each(metrics: Curves, note: str) -> list[LineChart | None]:
    return [_chart(spoken(name), note, {spoken(name): points}, is_share(name)) for name, points in metrics.items()]


def _chart(title: str, note: str, lines: Curves, percent: bool) -> LineChart | None:
    # A share above 1 is none: another project's name, or a damaged line.
    within = all(not value > 1.0 and not value < 0.0 for points in lines.values() for _, value in points)
    return line_chart(title, note, lines, percent=percent and within)


def _present(groups: Mapping[str, Sequence[LineChart | None]]) -> dict[str, list[LineChart]]:
    present = {heading: [chart for chart in charts if chart is not None] for heading, charts in groups.items()}
    return {heading: charts for heading, charts in present.items() if charts}
