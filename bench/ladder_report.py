#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The ladder as a page and pictures, from `cowsnap-bench ladder --json=FILE`.

ladder_report.py FILE [DIRECTORY]     writes ladder.md and ladder-*.svg (gnuplot), to docs/bench
"""

import json
import os
import re
import subprocess
import sys

RUNGS = {
    "bare": "the same I/O, no tables",
    "a-one-lock": "(a) one lock, one copy thread, in order",
    "b-fine-locks": "(b) fine locks, one copy thread, in order",
    "c-parallel-in-order": "(c) parallel, in order",
    "d-cowsnap-waiting": "(d) cowsnap, threads that wait",
    "d-cowsnap": "(d) cowsnap, a queue for each thread",
}
COLOURS = ["#8a8a8a", "#d95f02", "#e6ab02", "#7570b3", "#7fb3d9", "#1b6ca8"]
DEVICES = {"mem": "memory device", "sim": "simulated NVMe array"}
COLUMNS = ["mean us", "p50 us", "p99 us", "p99.9 us", "io min", "io max"]


def rows(result):
    """(device, threads, rung) -> variant"""
    found = {}
    for group in result["groups"]:
        for variant in group["variants"]:
            match = re.fullmatch(r"(.+)-(mem|sim)-(\d+)t", variant["name"])
            if match and match[1] != "scaling":
                found[match[2], int(match[3]), match[1]] = variant
    return found


def picture(found, device, value, label, log, path):
    threads = sorted({t for d, t, _ in found if d == device})
    blocks, plots = "", []
    for number, (rung, title) in enumerate(RUNGS.items()):
        if rung == "d-cowsnap-waiting" and device == "sim":
            continue  # one request in flight for each thread: another load
        lines = [
            f"{t} {value(found[device, t, rung])}" for t in threads if (device, t, rung) in found
        ]
        blocks += f"$r{number} << EOD\n" + "\n".join(lines) + "\nEOD\n"
        style = f"with linespoints lw 2 pt 7 ps 0.7 lc rgb '{COLOURS[number]}'"
        plots.append(f"$r{number} {style} title '{title}'")
    script = f"""{blocks}
set terminal svg size 980,440 font 'sans-serif,12' background '#ffffff'
set output '{path}'
set title '{DEVICES[device]}: first touches'
set ylabel '{label}'
set xlabel 'threads'
set border 3 lc '#444444'
set grid y lc '#dddddd' lt 1
set tics nomirror out scale 0.5
set key outside right top
set xtics ({", ".join(str(t) for t in threads)})
set logscale x 2
{"set logscale y" if log else "set yrange [0:*]"}
plot {", ".join(plots)}
"""
    subprocess.run(["gnuplot"], input=script, text=True, check=True)


def number_text(value):
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def table(found, device):
    columns = ["threads", "rung", "first touches a second [min - max]", *COLUMNS, "of bound"]
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for (where, threads, rung), v in sorted(found.items(), key=lambda item: item[0][:2]):
        if where != device:
            continue
        details = v.get("details", {})
        cells = [number_text(details[c]) if c in details else "" for c in COLUMNS]
        bound = details.get("of bound")
        lines.append(
            f"| {threads} | {rung} | {v['median']:,.0f} [{v['min']:,.0f} - {v['max']:,.0f}] | "
            + " | ".join(cells)
            + f" | {f'{bound:.2f}' if bound is not None else ''} |"
        )
    return "\n".join(lines)


def main():
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__.strip())
    top = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    out = sys.argv[2] if len(sys.argv) == 3 else os.path.join(top, "docs", "bench")
    with open(sys.argv[1], encoding="utf-8") as file:
        result = json.load(file)
    found = rows(result)
    machine = result["machine"]
    page = [
        "# The ladder",
        "",
        "Made by `bench/ladder_report.py` from `cowsnap-bench ladder --json=FILE`; what it",
        "measures is explained in [bench.md](../bench.md#ladder). Do not edit.",
        "",
        f"{machine['cores']} CPUs ({machine['cpu']}), {machine['kernel']}, {machine['compiler']};",
        f"load average {machine['load_1min']:.1f} at the start; {result['rounds']} rounds.",
    ]
    for device, name in DEVICES.items():
        if not any(d == device for d, _, _ in found):
            continue
        files = {"rate": f"ladder-{device}-rate.svg", "latency": f"ladder-{device}-latency.svg"}
        rate, latency = (os.path.join(out, file) for file in files.values())
        picture(found, device, lambda v: v["median"] / 1000, "thousand a second", False, rate)
        picture(found, device, lambda v: v["details"]["mean us"], "mean latency, us", True, latency)
        page += ["", f"## {name}", ""]
        page += [f"![{what}, {name}]({file})" for what, file in files.items()]
        page += ["", table(found, device)]
    with open(os.path.join(out, "ladder.md"), "w", encoding="utf-8") as file:
        file.write("\n".join(page) + "\n")


main()
