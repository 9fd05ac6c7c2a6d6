"""``WEFT_DUMP=graph,fused,loops,llvm,asm,ptx,plan``: what each compiled graph went through, as files."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

_WRITERS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "graph": ("graph.txt", lambda exe: str(exe.graph)),
    "stages": ("stages.txt", lambda exe: "\n\n".join(f"; {n}\n{g}" for n, g in exe.stages)),
    "fused": ("fused.txt", lambda exe: str(exe.stages[-1][1])),
    "loops": ("loops.txt", lambda exe: "\n".join(k.loops for k in exe.kernels)),
    "plan": ("plan.txt", lambda exe: str(exe.plan)),
    "llvm": ("ll", lambda exe: exe.llvm()),
    "asm": ("s", lambda exe: exe.asm()),
    "ptx": ("ptx", lambda exe: exe.ptx()),
}


def wanted() -> list[str]:
    """The kinds that ``WEFT_DUMP`` asks for. ValueError for one that does not exist."""
    kinds = [k.strip() for k in os.environ.get("WEFT_DUMP", "").split(",") if k.strip()]
    for k in kinds:
        if k not in _WRITERS:
            raise ValueError(f"WEFT_DUMP={k}: expected some of {', '.join(_WRITERS)}")
    return kinds


def dump(executable: Any, key: str, kinds: list[str]) -> list[Path]:
    """Write ``kinds`` of what is known of an executable to ``WEFT_DUMP_DIR`` (``./weft-dump``)."""
    folder = Path(os.environ.get("WEFT_DUMP_DIR", "weft-dump"))
    folder.mkdir(parents=True, exist_ok=True)
    stem = re.sub(r"\W+", "_", executable.name) + "-" + key[:8]
    out = []
    for k in kinds:
        if k == "ptx" and not hasattr(executable, "ptx"):
            continue  # only a GPU's code is PTX
        ending, text = _WRITERS[k]
        out.append(folder / f"{stem}.{ending}")
        out[-1].write_text(text(executable).rstrip("\n") + "\n")
    return out
