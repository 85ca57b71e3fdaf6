# SPDX-License-Identifier: MIT
"""The pictures, by gnuplot. Bars and points are medians, whiskers go from the least to the most."""

import os
import subprocess

import report

COLOURS = {
    "cowsnap": "#1b6ca8",
    "cowsnap-memory": "#7fb3d9",
    "qemu": "#d95f02",
    "nbdkit-cow": "#8a8a8a",
}
HEAD = """
set terminal svg size 980,440 font 'sans-serif,12' background '#ffffff'
set output '{output}'
set title '{title}'
set ylabel '{label}'
set border 3 lc '#444444'
set grid y lc '#dddddd' lt 1
set tics nomirror out scale 0.5
set key outside right top
set format y '%.0f'
"""


def gnuplot(script):
    subprocess.run(["gnuplot"], input=script, text=True, check=True)


def block(name, lines):
    return f"${name} << EOD\n" + "\n".join(lines) + "\nEOD\n"


def variable(key):
    return key.replace("-", "_")


def phases(result, depth, path):
    """Clusters of bars: the phases; in each, the servers."""
    names = {
        "bare": "bare",
        "first": "first touch,\\nevery block",
        "steady": "the same\\nblocks again",
        "after": "after\\nthe drop",
        "bare-part": "bare,\\na 16th",
        "scattered": "first touch,\\na 16th of them",
    }
    title = f"4 KiB random writes over NBD, depth {depth}"
    script = HEAD.format(output=path, title=title, label="thousand writes per second")
    plots = []
    for subject in result["subjects"]:
        key = subject["key"]
        lines = []
        for phase, label in names.items():
            (row,) = report.where(result["rows"], subject=key, phase=phase, depth=depth)
            rate = row["iops"]
            lines.append(
                f'"{label}" {rate["median"] / 1000} {rate["min"] / 1000} {rate["max"] / 1000}'
            )
        script += block(variable(key), lines)
        plots.append(
            f"${variable(key)} using 2:3:4:xtic(1) title '{key}' lc rgb '{COLOURS[key]}'"
        )
    script += "set style data histograms\nset style histogram errorbars gap 1 lw 1\n"
    script += "set style fill solid\nset boxwidth 0.9\nset yrange [0:*]\nset bmargin 4\n"
    script += "set xtics scale 0 font 'sans-serif,10'\n"
    gnuplot(script + "plot " + ", ".join(plots) + "\n")


def by_count(result, phase, measure, scale, path, title, label, log):
    """Lines over the number of snapshots: the servers, a dashed line for depth 16."""
    script = HEAD.format(output=path, title=title, label=label)
    plots = []
    for subject in result["subjects"]:
        key = subject["key"]
        for depth in result["depths"]:
            lines = []
            for row in report.where(result["rows"], subject=key, phase=phase, depth=depth):
                value = {name: row[measure][name] / scale for name in ("median", "min", "max")}
                lines.append(f"{row['snapshots']} {value['median']} {value['min']} {value['max']}")
            name = f"{variable(key)}_{depth}"
            script += block(name, lines)
            plots.append(
                f"${name} using 1:2:3:4 with yerrorlines lw 2 pt {7 if depth == 1 else 6} ps 0.6 "
                f"dt {1 if depth == 1 else 2} lc rgb '{COLOURS[key]}' title '{key}, depth {depth}'"
            )
    script += "set logscale x 2\nset xrange [0.8:20]\nset xtics (1, 4, 16)\n"
    script += "set xlabel 'snapshots'\n"
    script += "set logscale y\n" if log else "set yrange [0:*]\n"
    gnuplot(script + "plot " + ", ".join(plots) + "\n")


def draw(result, directory):
    for depth in result["depths"]:
        phases(result, depth, os.path.join(directory, f"peers-phases-{depth}.svg"))
    by_count(
        result,
        "drained",
        "p99_us",
        1,
        os.path.join(directory, "peers-drained.svg"),
        "99th percentile of a guest write while an image is drained",
        "microseconds",
        True,
    )
    by_count(
        result,
        "many",
        "iops",
        1000,
        os.path.join(directory, "peers-many.svg"),
        "First touches with 1, 4 and 16 snapshots",
        "thousand writes per second",
        False,
    )
