"""How figures look: tokens, printed size, deterministic SVG."""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import matplotlib as mpl
import matplotlib.style
import numpy as np
import numpy.typing as npt
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

from reports.text import FONTS, number, power_of_ten, safe, shorten

INK, MUTED, LINE, GRID = "#1A1D21", "#5B6470", "#D5DAE0", "#E3E7EB"
BLUE, ORANGE, RED, TEAL = "#0B4F8A", "#C2410C", "#B3261E", "#00796B"
PALE_BLUE, PALE_RED = "#9DB8D2", "#F3C9C5"
SERIES = (BLUE, ORANGE, TEAL, "#7A4E9E", "#8A6D00", MUTED, "#3F7CB3", "#A0522D")
DASHES = ("-", (0, (4, 1.4)), (0, (1, 1.2)), (0, (5, 1.2, 1, 1.2)))
LIMIT = (0, (1, 1.5))
"""Dash pattern of limits and marks; names of them stand beside the line."""

PAPER = LinearSegmentedColormap.from_list(
    "paper", ["#FFFFFF", "#D6E4F0", "#8FB4D6", "#3F7CB3", "#0B4F8A", "#06243F"]
)
"""White to navy; luminance falls all the way, so it survives a greyscale printer."""

HALO = [withStroke(linewidth=2.2, foreground="white")]
WIDTH_MM = 174.0
"""Width of the text on the page, which is the width of a figure."""

_MM = 1 / 25.4
_NAMES_SHOWN = 24
_SHEET = Path(__file__).parent / "report.mplstyle"

Values = npt.NDArray[np.float64]


@cache
def _add_fonts() -> None:
    """Make the report's fonts known to matplotlib."""
    for path in sorted(FONTS.glob("*.ttf")):
        font_manager.fontManager.addfont(path)


@contextmanager
def sheet() -> Iterator[None]:
    """Draw with the report's settings and nothing of the user's."""
    _add_fonts()
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.style.use(_SHEET)
        yield


def canvas(height: float) -> Figure:
    """Make an empty figure of the text's width; ``height`` in millimeters."""
    return Figure(figsize=(WIDTH_MM * _MM, height * _MM), layout="constrained")


def svg(figure: Figure) -> bytes:
    """Write a figure as SVG with its text as text; the same figure gives the same bytes."""
    stream = io.StringIO()
    engine = figure.get_layout_engine()
    if engine is not None:
        # Laid out once, and printed without the trial drawing of savefig: half the time.
        engine.execute(figure)
        figure.set_layout_engine("none")
    FigureCanvasSVG(figure).print_svg(stream, metadata={"Date": None, "Creator": None})  # type: ignore[no-untyped-call]
    return stream.getvalue().encode()


def letter(ax: Axes, text: str) -> None:
    """Name a panel, so that the caption can speak of it."""
    ax.set_title(text, fontweight=700, loc="left", parse_math=False)


def note(ax: Axes, x: float, y: float, text: str, **options: object) -> None:
    """Write a label beside what it names: user text is never mathematics.

    Labels take no room of their own in the layout, so that none can crowd out the axes.
    """
    settings: dict[str, object] = {"fontsize": 7, "color": INK, "in_layout": False} | options
    ax.text(x, y, safe(text), parse_math=False, **settings)  # type: ignore[arg-type]


def depth_height(names: Sequence[str], share: float = 1.0) -> float:
    """Return the height that the labels of :func:`depth_axis` add to a figure [mm]."""
    return 13 if _slanted(_labels(names, share), share) else 0


def _labels(names: Sequence[str], share: float) -> list[str]:
    """Shorten the names of layers to labels of an axis; none where they are too many."""
    if len(names) > share * _NAMES_SHOWN:
        return []
    return [shorten(name, 22 if len(names) <= 12 else 18) for name in names]


def _slanted(labels: Sequence[str], share: float) -> bool:
    """Say whether the labels need more room than they have side by side."""
    return max(map(len, labels), default=0) * len(labels) > share * 90


def depth_axis(ax: Axes, names: Sequence[str], share: float = 1.0) -> None:
    """Label the x axis with layers: by name while they fit, by number and group after that.

    Parameters
    ----------
    ax : Axes
    names : sequence of str
        Layers, from input to output.
    share : float
        Width of the axes as a share of the text's.
    """
    ax.set_xlim(-0.7, len(names) - 0.3)
    labels = _labels(names, share)
    if labels:
        slanted = _slanted(labels, share)
        ax.set_xticks(
            range(len(names)),
            labels,
            rotation=40 if slanted else 0,
            ha="right" if slanted else "center",
            rotation_mode="anchor" if slanted else "default",
            parse_math=False,
        )
        if slanted:
            ax.tick_params(axis="x", pad=1.5, labelsize=6.5)
        ax.set_xlabel("Layer, from input to output")
        return
    ax.set_xlabel("Layer number, from input to output")
    _mark_groups(ax, names)


def _mark_groups(ax: Axes, names: Sequence[str]) -> None:
    """Write the first part of the layers' names above the axes where that groups them."""
    stems = [name.split(".")[0] for name in names]
    starts = [i for i, stem in enumerate(stems) if i == 0 or stem != stems[i - 1]]
    spans = list(zip(starts, [*starts[1:], len(names)], strict=True))
    wide = [stop - start >= len(names) / 14 for start, stop in spans]
    if len(starts) > 12 or sum(wide) < 2:
        return
    for (start, stop), named in zip(spans, wide, strict=True):
        if start:
            ax.axvline(start - 0.5, color=GRID, lw=0.6, zorder=0)
        if named:
            note(
                ax,
                (start + stop - 1) / 2,
                1.01,
                shorten(stems[start], 14),
                transform=ax.get_xaxis_transform(),
                ha="center",
                va="bottom",
                fontsize=6.5,
                color=MUTED,
                in_layout=True,
            )


def log_axis(ax: Axes, values: Values, room: float = 0.06) -> bool:
    """Make the y axis logarithmic over the finite positive values; say whether there are any."""
    positive = values[np.isfinite(values) & (values > 0)]
    if positive.size == 0:
        ax.set_yticks([])
        note(ax, 0.5, 0.5, "nothing above zero was measured", transform=ax.transAxes, ha="center")
        return False
    low, high = np.log10(positive.min()), np.log10(positive.max())
    if high - low < 1:  # less than a decade would get no labelled tick
        middle = (low + high) / 2
        low, high = middle - 0.5, middle + 0.5
    pad = room * (high - low)
    ax.set_yscale("log")
    ax.set_ylim(10 ** (low - pad), 10 ** (high + pad))
    ticks = _log_ticks(low - pad, high + pad)
    powers = all(float(np.log10(tick)).is_integer() for tick in ticks)
    ax.yaxis.set_major_locator(FixedLocator(ticks))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value, powers)))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.grid(axis="y")
    return True


def _tick(value: float, powers: bool) -> str:
    """Write the label of a tick: all as powers of ten, or all as plain numbers."""
    return power_of_ten(round(np.log10(value))) if powers else number(value)


def _log_ticks(low: float, high: float) -> list[float]:
    """Choose ticks between two powers of ten: whole powers, or 1, 2, 5 where those are too few."""
    first, last = int(np.ceil(low)), int(np.floor(high))
    if last - first >= 2:
        stride = -(-(last - first + 1) // 7)
        return [10.0**power for power in range(first, last + 1, stride)]
    ticks = [step * 10.0**power for power in range(first - 1, last + 1) for step in (1, 2, 5)]
    return [tick for tick in ticks if low <= np.log10(tick) <= high]


def quantiles(values: Values, axis: int = 0) -> dict[int, Values]:
    """Return the 5, 25, 50, 75 and 95 % quantiles over the samples; nan where nothing is finite.

    Quantiles rather than moments: a gradient's distribution over samples has a long tail.
    """
    levels = (5, 25, 50, 75, 95)
    finite = np.where(np.isfinite(values), values, np.nan)
    moved = np.moveaxis(finite, axis, 0)
    found = np.full((len(levels), *moved.shape[1:]), np.nan)
    whole = np.isfinite(moved).all(axis=0) & bool(moved.shape[0])
    holey = np.isfinite(moved).any(axis=0) & ~whole
    for some, percentile in ((whole, np.percentile), (holey, np.nanpercentile)):
        if some.any():
            found[:, some] = percentile(moved[:, some], levels, axis=0)
    return dict(zip(levels, found, strict=True))


def bands(
    ax: Axes, x: Values, spread: dict[int, Values], color: str = BLUE, **line: object
) -> None:
    """Draw the median as a line within its 25-75 and 5-95 % bands."""
    ax.fill_between(x, spread[5], spread[95], color=color, alpha=0.15, lw=0)
    ax.fill_between(x, spread[25], spread[75], color=color, alpha=0.26, lw=0)
    marker = "o" if np.isfinite(spread[50]).sum() <= _NAMES_SHOWN else ""
    settings: dict[str, object] = {"color": color, "lw": 1.5, "marker": marker, "ms": 2.6} | line
    ax.plot(x, spread[50], **settings)  # type: ignore[arg-type]


def enlarge(image: Values, height: int = 160, width: int = 800) -> Values:
    """Repeat cells to a raster so fine that no viewer smears one cell into the next."""
    rows = max(1, height // max(1, image.shape[0]))
    columns = max(1, width // max(1, image.shape[1]))
    return np.repeat(np.repeat(image, rows, axis=0), columns, axis=1)
