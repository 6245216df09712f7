"""Command line of the synthesis: area by module, LUT per binary MAC, and the fit against the part."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from hw.boards import PARTS
from hw.commands import options
from hw.design import load_design
from hw.files import save_picture, write_atomically

#: modules of each part of the picture
GROUPS = {
    "dot products": ("dot_product_unit",),
    "operand sums": ("operand_sum_unit", "dot_product_array"),
    "operand network": ("operand_network",),
    "buffers": ("buffer_a", "buffer_g", "buffer_w"),
    "loader": ("loader",),
    "drain": ("shadow_lane", "drain", "accumulators", "code_buffer"),
    "epilogue": ("epilogue", "moments", "rounding"),
    "memory front end": ("memory_front_end", "control_bridge"),
    "control": ("sequencer", "command_queue", "control_registers", "fabric"),
}


def report_text(data: dict[str, Any]) -> str:
    """Report as text."""
    lines = [
        f"{data['design']} on {data['part']}, {data['tool']}",
        f"{'module':<20}{'inst':>6}{'LUT each':>10}{'LUT':>9}{'FF':>9}{'BRAM36':>8}{'DSP':>6}{'s':>7}",
    ]
    for row in data["modules"]:
        each, every = row["one"], row["all"]
        lines.append(
            f"{row['module']:<20}{row['instances']:>6}{each['lut']:>10}{every['lut']:>9}{every['ff']:>9}"
            f"{every['bram36']:>8g}{every['dsp']:>6}{row['seconds']:>7.0f}"
        )

    def line(name: str, area: dict[str, Any]) -> str:
        return f"{name:<37}{area['lut']:>8}{area['ff']:>9}{area['bram36']:>8g}{area['dsp']:>6}"

    if "total" in data:
        lines += [
            line("reset controller (estimate)", data["system_reset"]),
            line("total with all that a bitstream holds", data["total"]),
            line("percent of the part", data["percent_of_part"]),
            f"{'fits' if data['fits'] else 'does not fit'}: up to {data['routable_percent_of_lut']} % of the LUT are taken "
            "to be routable",
            *_placement_lines(data),
        ]
    if "flattened" in data:
        flat = data["flattened"]
        lines += [line("total, flattened", flat), line("percent of the part", flat["percent_of_part"])]
    if "lut_per_binary_mac" in data:
        ratio = data["lut_per_binary_mac"]
        lines.append(
            f"LUT per binary MAC ({data['binary_macs']} per cycle): array {ratio['array']}, "
            f"with the operand network {ratio['array_and_operand_network']}"
        )
    return "\n".join(lines)


def _placement_lines(data: dict[str, Any]) -> list[str]:
    """What the placement needs of the part's slices and columns, as text."""
    if not data["placement"]:
        return [f"placement: the columns of {data['part']} are not known in slices of the 7 series"]
    return [
        'placement, lower bounds (a verdict is "tight" beyond its margin):',
        *(
            f"  {row['kind']:<13}{row['needed']:>7} of {row['has']:>6} {row['percent']:>6.1f} %, margin "
            f"{row['margin_percent']:g} %, {row['verdict']}: {row['words']}"
            for row in data["placement"]
        ),
    ]


def timing_table(data: dict[str, Any]) -> str:
    """Worst path of every module by both net models, as text."""
    lines = ["", "", "static estimate: it ranks paths and promises nothing, for placement and routing decide", ""]
    lines.append(f"{'module':<20}{'real ns':>9}{'ideal ns':>9}  worst path by the real nets")
    flat = [{"module": "flattened", **data["flattened"]}] if "flattened" in data else []
    rows = [*data["modules"], *data.get("joined", ()), *flat]
    for row in rows:
        if not row["timing"]["real"]:
            continue  # wires only
        real, ideal = row["timing"]["real"][0], row["timing"]["ideal"][0]
        lines.append(
            f"{row['module']:<20}{real['ns']:>9.2f}{ideal['ns']:>9.2f}  {real['start']} -> {real['end']} ({real['pin']}): "
            f"{real['luts']} LUT, {real['carries']} CARRY4, {real['dsps']} DSP, nets {real['net_ns']:.2f} ns, "
            f"greatest fan-out {real['fan_out']}"
        )
    return "\n".join(lines)


def measure_variants(arguments: argparse.Namespace) -> int:
    """``fractrain synth --variants``: longest paths of modules at other parameters, for the model of the clock."""
    from importlib.metadata import version

    from hw.generate import generate
    from hw.model.frequency import varied_designs
    from hw.tools import yosys

    rows = []
    for design, modules in varied_designs():
        grade = PARTS[design.part].grade
        with tempfile.TemporaryDirectory() as folder:
            generate(design, Path(folder))
            for piece in (p for p in yosys.pieces(design) if p.name in modules):
                print(f"synthesising {piece.name} of {design.name} ...", file=sys.stderr, flush=True)
                done = yosys.synthesize(piece, Path(folder), grade=grade, seconds=arguments.seconds)
                worst = done.timing["real"][0]
                row = {"module": piece.name, "grade": grade, "ns": worst["ns"], "net_ns": worst["net_ns"]}
                rows.append({**row, "design": asdict(design), "sources": done.sources})
    data = {"command": "fractrain synth --variants --save FILE", "tool": f"Yosys {version('pyosys')}", "paths": rows}
    text = json.dumps(data, indent=1)
    if arguments.save:
        write_atomically(arguments.save, text + "\n")
    if arguments.json or not arguments.save:
        print(text)
    return 0


def run(arguments: argparse.Namespace) -> int:
    """``fractrain synth``: 0 if the design with its platform fits its part, 1 if not."""
    from hw.generate import generate
    from hw.tools import area_report, yosys

    if arguments.variants:
        return measure_variants(arguments)
    design = load_design(arguments.design)
    if arguments.accumulators:
        design = replace(design, accumulators=arguments.accumulators)
    pieces = yosys.chosen_pieces(design, arguments.module)
    folder = generate(design, arguments.out or options.usable_folder(Path("build") / design.name))
    results, flat, grade = [], None, PARTS[design.part].grade
    joined = yosys.joined_pieces(design) if arguments.joined else []
    for piece in (*pieces, *joined):
        print(f"synthesising {piece.name} ...", file=sys.stderr, flush=True)
        results.append(yosys.synthesize(piece, folder, grade=grade, seconds=arguments.seconds))
    if arguments.flatten:
        print("synthesising the whole, flattened ...", file=sys.stderr, flush=True)
        flat = yosys.synthesize(yosys.whole_design(design), folder, grade=grade, seconds=arguments.seconds)
    data = area_report.report(design, results[: len(pieces)], flat, results[len(pieces) :])
    if arguments.accumulators:
        data["command"] += f" --accumulators {arguments.accumulators}"
    if arguments.module:  # no claim about the whole from a part of it
        data = {k: v for k, v in data.items() if k in ("design", "part", "tool", "accumulators", "modules", "joined")}
    text = json.dumps(data, indent=1)
    if arguments.save:
        write_atomically(arguments.save, text + "\n")
    print(text if arguments.json else report_text(data) + (timing_table(data) if arguments.timing else ""))
    return 0 if data.get("fits", True) else 1


def figure(arguments: argparse.Namespace) -> int:
    """``fractrain area``: stacked bars of what each module takes of its part, from saved results."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from hw.tools.area_report import read_report

    reports = [read_report(path) for path in arguments.results]
    keys = {"lut": "LUT", "ff": "FF", "bram36": "BRAM36", "dsp": "DSP"}
    plt.rcParams["svg.hashsalt"] = "area"  # the same results give the same bytes
    fig, axes = plt.subplots(1, len(reports), figsize=(4.6 * len(reports), 4.2), sharey=True, squeeze=False)
    tops = [0.0]
    for axis, data in zip(axes[0], reports, strict=True):
        bottom = [0.0] * len(keys)
        for label, names in GROUPS.items():
            rows = [r["all"] for r in data["modules"] if r["module"] in names]
            share = [100 * sum(r[key] for r in rows) / data["part_has"][key] for key in keys]
            axis.bar(list(keys.values()), share, bottom=bottom, label=label, width=0.7)
            bottom = [a + b for a, b in zip(bottom, share, strict=True)]
        for x, height in enumerate(bottom):
            axis.text(x, height + 1, f"{height:.0f} %", ha="center")
        tops.extend(bottom)
        axis.axhline(100, color="black", linewidth=0.8)
        axis.set_title(f"{data['design']}: {data['binary_macs']:,} binary MAC per cycle\n{data['part']}")
    axes[0][0].set_ylabel("percent of the part")
    axes[0][0].set_ylim(0, 1.12 * max(100.0, *tops))
    fig.tight_layout()
    axes[0][-1].legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.02, 1))
    save_picture(fig, arguments.out, bbox_inches="tight")
    print(arguments.out)
    return 0


def register(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add ``synth`` and ``area`` to the command line."""
    parser = subparsers.add_parser("synth", help="area of a design by module, from Yosys")
    parser.add_argument("--design", default="sim-small", help="name in configs/designs, or a TOML file")
    parser.add_argument("--tool", choices=("yosys",), default="yosys", help="who synthesises")
    parser.add_argument("--module", help="one module only, or modules joined to one: front_half, all_but_units")
    parser.add_argument("--accumulators", choices=("dsp", "lut"), help="other accumulators than the design says")
    parser.add_argument("--flatten", action="store_true", help="also synthesise the whole as one module (long)")
    parser.add_argument(
        "--variants", action="store_true",
        help="longest paths of single modules at other parameters than the designs', for the model of the clock (long)",
    )  # fmt: skip
    parser.add_argument("--timing", action="store_true", help="also print the estimate of every module's worst path")
    parser.add_argument(
        "--joined", action="store_true",
        help="also the pieces that join modules to one, whose paths cross the borders between those; with --timing (long)",
    )  # fmt: skip
    parser.add_argument("--seconds", type=options.number, default=3600.0, help="most time for one module")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--save", type=options.output_file, help="also write the JSON to this file")
    parser.add_argument(
        "--out", type=options.output_folder, help="folder for the generated design (default: build/DESIGN)"
    )
    parser.set_defaults(run=run)
    parser = subparsers.add_parser("area", help="figure of saved synthesis results")
    parser.add_argument("results", nargs="+", type=options.input_file, help="results of fractrain synth --save")
    parser.add_argument(
        "--out", type=options.picture_file, default=Path("area.svg"), help="picture to write (SVG or PNG)"
    )
    parser.set_defaults(run=figure)
