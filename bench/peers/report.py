# SPDX-License-Identifier: MIT
"""What the samples say: medians, ratios round by round, and the page for people."""

import os
import statistics

MEASURES = ("iops", "mean_us", "p99_us", "p99.9_us", "server_cpu_us")
PHASES = {
    "bare": "bare volume, every block",
    "first": "first touch, every block once",
    "steady": "again over the same blocks",
    "after": "after the drop",
    "bare-part": "bare volume, a 16th of the blocks",
    "scattered": "first touch, a 16th of the blocks",
}
OURS, QEMU = "cowsnap", "qemu"


def spread(values):
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def where(samples, **labels):
    return [s for s in samples if all(s[key] == value for key, value in labels.items())]


def make_rows(samples):
    """One for each subject, phase, depth and number of snapshots, in the order of the run."""
    keys = ("subject", "phase", "depth", "snapshots")
    rows = []
    for labels in dict.fromkeys(tuple(s[key] for key in keys) for s in samples):
        same = where(samples, **dict(zip(keys, labels)))
        row = dict(zip(keys, labels))
        row.update({name: spread([s[name] for s in same]) for name in MEASURES})
        row["samples"] = len(same)
        rows.append(row)
    return rows


def ratio(result, measure, above, below):
    """Of two samples of the same round; the spread of that over the rounds."""
    values = []
    for number in range(result["rounds"]):
        upper = where(result["samples"], round=number, **above)
        lower = where(result["samples"], round=number, **below)
        values += [a[measure] / b[measure] for a, b in zip(upper, lower)]
    return spread(values)


def at(subject, phase, depth, snapshots):
    return {"subject": subject, "phase": phase, "depth": depth, "snapshots": snapshots}


def wanted_ratios(subjects, depths, counts):
    """What to show: its name, its target, what is compared, of which sample, to which."""
    for depth in depths:
        for phase in ("scattered", "first"):
            above, below = at(OURS, phase, depth, 1), at(QEMU, phase, depth, 1)
            name = f"{PHASES[phase]}, depth {depth}: writes of cowsnap / QEMU"
            yield name, 3, "iops", above, below
    for subject in subjects:
        for depth in depths:
            for phase, bare in (("first", "bare"), ("scattered", "bare-part")):
                above, below = at(subject, phase, depth, 1), at(subject, bare, depth, 0)
                name = f"{subject}, depth {depth}: {PHASES[phase]} / bare"
                yield name, 0.8 if subject == OURS else None, "iops", above, below
    for depth in depths:
        for count in counts:
            above, below = at(QEMU, "drained", depth, count), at(OURS, "drained", depth, count)
            name = f"image drained, depth {depth}, snapshots {count}: p99 of QEMU / cowsnap"
            yield name, 3, "p99_us", above, below
    for subject in (OURS, QEMU):
        for depth in depths:
            for count in counts[1:]:
                above, below = at(subject, "many", depth, count), at(subject, "many", depth, 1)
                name = f"{subject}, depth {depth}: first touch with {count} snapshots / with 1"
                yield name, 0.9 if subject == OURS else None, "iops", above, below


def make_figures(result):
    """The ratios with their verdicts; each is better the greater it is."""
    figures = []
    subjects = [subject["key"] for subject in result["subjects"]]
    for name, target, *compared in wanted_ratios(subjects, result["depths"], result["counts"]):
        figure = {"name": name, **ratio(result, *compared)}
        if target is not None:
            figure["target"] = target
            figure["met"] = figure["median"] >= target
        figures.append(figure)
    return figures


def rounded(value):
    """Three digits behind the point are more than was measured."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return round(value, 3) if isinstance(value, float) else value


def aggregate(result):
    return {"rows": make_rows(result["samples"]), "figures": make_figures(result)}


# ---- The page ------------------------------------------------------------------------------------


def table(head, rows):
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def number(value):
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def cell(value):
    if value["min"] == value["max"]:
        return number(value["median"])
    return f"{number(value['median'])} [{number(value['min'])} - {number(value['max'])}]"


def verdict(figure):
    if "target" not in figure:
        return ["", ""]
    return [f"at least {figure['target']:g}", "met" if figure["met"] else "**missed**"]


def figures_table(result):
    return table(
        ("ratio", "median [min - max]", "target", ""),
        [
            [
                figure["name"],
                f"{figure['median']:.2f} [{figure['min']:.2f} - {figure['max']:.2f}]",
                *verdict(figure),
            ]
            for figure in result["figures"]
        ],
    )


def figures_text(result):
    return "\n".join(
        f"{figure['median']:7.2f} [{figure['min']:.2f} - {figure['max']:.2f}]  {figure['name']}"
        + ("" if "target" not in figure else f"  (at least {figure['target']:g}: ")
        + ("" if "target" not in figure else "met)" if figure["met"] else "MISSED)")
        for figure in result["figures"]
    )


RATE = "writes per second"
SERVER_CPU = "us of the server's processor time per write"


def phase_table(result, depth, measure, title):
    def of(subject, phase):
        (row,) = where(result["rows"], subject=subject, phase=phase, depth=depth)
        return cell(row[measure])

    return table(
        (title, *PHASES.values()),
        [
            [subject["key"], *(of(subject["key"], phase) for phase in PHASES)]
            for subject in result["subjects"]
        ],
    )


def many_table(result, depth):
    lines = []
    for row in result["rows"]:
        if row["depth"] != depth or row["phase"] not in ("many", "drained"):
            continue
        lines.append(
            [
                row["subject"],
                str(row["snapshots"]),
                "yes" if row["phase"] == "drained" else "no",
                *(cell(row[name]) for name in ("iops", "mean_us", "p99_us")),
            ]
        )
    order = [subject["key"] for subject in result["subjects"]]
    lines.sort(key=lambda line: (line[2] == "yes", order.index(line[0])))
    return table(
        ("", "snapshots", "image drained", "writes per second", "mean us", "p99 us"), lines
    )


def options_text(options):
    return ", ".join(f"{key} {value}" for key, value in options.items())


def tried_text(result):
    if not result["tried"]:
        return "A quick run does not look for the peers' best settings; it takes the first of each."
    return table(
        ("peer", "settings", "writes per second", ""),
        [
            [
                row["subject"],
                options_text(row["choice"]),
                number(row["score"]),
                "used"
                if any(
                    s["key"] == row["subject"] and s["options"] == row["choice"]
                    for s in result["subjects"]
                )
                else "",
            ]
            for row in result["tried"]
        ],
    )


TEMPLATE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "template.md")


def markdown(result):
    machine = result["machine"]
    with open(TEMPLATE, encoding="utf-8") as file:
        page = file.read()
    return page.format(
        **{key: machine[key] for key in ("cores", "kernel", "filesystem", "qemu", "nbdkit", "fio")},
        size=result["size_bytes"] >> 20,
        part=result["part_bytes"] >> 10,
        rounds=result["rounds"],
        quick=" (quick: the figures mean little)" if result["quick"] else "",
        load_start=machine["load_at_start"],
        load_end=machine["load_at_end"],
        figures=figures_table(result),
        subjects=table(
            ("", "what", "settings"),
            [[s["key"], s["title"], options_text(s["options"])] for s in result["subjects"]],
        ),
        tried=tried_text(result),
        pictures="\n".join(
            f"![writes per second by phase, depth {depth}](peers-phases-{depth}.svg)"
            for depth in result["depths"]
        ),
        rates="\n".join(
            f"## Rates, depth {depth}\n\n{phase_table(result, depth, 'iops', RATE)}\n\n"
            f"{phase_table(result, depth, 'server_cpu_us', SERVER_CPU)}\n"
            for depth in result["depths"]
        ),
        many="\n".join(
            f"### Depth {depth}\n\n{many_table(result, depth)}\n" for depth in result["depths"]
        ),
    )
