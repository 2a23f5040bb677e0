"""The part table of this package: one line per part, imported only when a model names it."""

from __future__ import annotations

from vistoken.core.registry import PartEntry

_LLAVA = "LLaVA-1.5, arXiv 2310.03744"
_LLAVA_NEXT = "LLaVA-NeXT, llava-vl.github.io/blog/2024-01-30-llava-next"
_LLAVA_SP = "LLaVA-SP, arXiv 2507.00505"
_SAISA = "SAISA, arXiv 2502.02458"
_YOPO = "YOPO, arXiv 2410.06169"
_INF = "INF-LLaVA, arXiv 2407.16198"
_UHD = "LLaVA-UHD, arXiv 2403.11703"
_MONKEY = "Mini-Monkey, arXiv 2408.02034"
_HERE = "vistoken.systems"

PARTS: tuple[PartEntry, ...] = (
    PartEntry("views", "pad", f"{_HERE}.llava.views:Pad", "one view, padded to a square", _LLAVA),
    PartEntry(
        "views",
        "square",
        f"{_HERE}.llava.views:Square",
        "one view, as the tower's own processor makes it (CLIP cuts the long side)",
        _LLAVA,
    ),
    PartEntry(
        "views",
        "anyres",
        f"{_HERE}.llava.views:AnyRes",
        "the whole picture, then tiles of it on the best-fitting tile grid",
        _LLAVA_NEXT,
    ),
    PartEntry(
        "views",
        "uhd-slices",
        f"{_HERE}.llava_uhd.views:UhdSlices",
        "the whole picture and slices of it, all at their own shape",
        _UHD,
    ),
    PartEntry(
        "project",
        "uhd-resampler",
        f"{_HERE}.llava_uhd.resampler:UhdResampler",
        "a fixed number of tokens per view, each from its own region",
        _UHD,
    ),
    PartEntry(
        "layout",
        "uhd-schema",
        f"{_HERE}.llava_uhd.layout:UhdSchema",
        "a comma between slices of a row, a newline behind each row of them",
        _UHD,
    ),
    PartEntry(
        "importer",
        "llava-uhd",
        f"{_HERE}.llava_uhd.release_keys:UhdKeys",
        "parameter names of official LLaVA-UHD v1 releases",
        _UHD,
    ),
    PartEntry(
        "views",
        "inf-dcm",
        f"{_HERE}.inf_llava.views:InfDcm",
        "n*n tiles, n*n strided views of the whole scene, and the undivided picture",
        _INF,
    ),
    PartEntry(
        "fuse",
        "inf-dem",
        f"{_HERE}.inf_llava.stage:InfDem",
        "tiles and strided views correct each other and become one view's tokens",
        _INF,
    ),
    PartEntry(
        "importer",
        "inf-llava",
        f"{_HERE}.inf_llava.release_keys:InfLlavaKeys",
        "parameter names of official INF-LLaVA releases",
        _INF,
    ),
    PartEntry(
        "views",
        "msac",
        f"{_HERE}.mini_monkey.views:Msac",
        "two tilings of a picture with different cut lines, then the undivided picture",
        _MONKEY,
    ),
    PartEntry(
        "project",
        "pixel-shuffle",
        f"{_HERE}.mini_monkey.shuffle:PixelShuffle",
        "four neighbouring patches as the channels of one token, then norm and MLP",
        _MONKEY,
    ),
    PartEntry(
        "mechanism",
        "scm",
        f"{_HERE}.mini_monkey.scm:Scm",
        "detailed tiles' tokens that the first layers attend to least leave the prompt",
        _MONKEY,
    ),
    PartEntry(
        "importer",
        "mini-monkey",
        f"{_HERE}.mini_monkey.release_keys:MiniMonkeyKeys",
        "parameter names of InternVL2 releases, Mini-Monkey's among them",
        _MONKEY,
    ),
    PartEntry(
        "fuse",
        "concat-grid",
        f"{_HERE}.llava.stages:ConcatGrid",
        "several towers' features side by side on the first tower's grid",
    ),
    PartEntry("project", "mlp", f"{_HERE}.llava.stages:Mlp", "two-layer MLP per patch", _LLAVA),
    PartEntry(
        "project",
        "llava-sp",
        f"{_HERE}.llava_sp.stage:LlavaSP",
        "six visual spatial tokens in front of the MLP's patch tokens",
        _LLAVA_SP,
    ),
    PartEntry(
        "reduce",
        "pool",
        f"{_HERE}.llava.stages:Pool",
        "average pooling of the patch tokens to a smaller grid; other tokens stay",
    ),
    PartEntry(
        "reduce",
        "rms-scale",
        f"{_HERE}.llava.stages:RmsScale",
        "every token normalised to one learned magnitude",
    ),
    PartEntry(
        "reduce",
        "row-col",
        f"{_HERE}.positions.stage:RowCol",
        "learned row and column embeddings added to the patch tokens",
    ),
    PartEntry(
        "append",
        "free-tokens",
        f"{_HERE}.llava.stages:FreeTokens",
        "learned tokens that do not look at the picture (control for spatial tokens)",
    ),
    PartEntry(
        "layout", "plain", f"{_HERE}.llava.layouts:Plain", "each view's tokens, view after view"
    ),
    PartEntry(
        "layout",
        "anyres-unpad",
        f"{_HERE}.llava.layouts:AnyResUnpad",
        "tiles joined to one un-padded map with a newline row after each of its rows",
        _LLAVA_NEXT,
    ),
    PartEntry(
        "mechanism",
        "no-op",
        "vistoken.models.decoder:NoOp",
        "changes nothing; sends the decoder through our layer loop (tests, benchmarks)",
    ),
    PartEntry(
        "objective",
        "next-token",
        "vistoken.train.objectives.next_token:NextToken",
        "answers, token by token",
    ),
    PartEntry(
        "objective",
        "keep-language",
        "vistoken.train.objectives.keep_language:KeepLanguage",
        "next-token, while rows without a picture hold the language model where it was",
    ),
    PartEntry(
        "objective",
        "name-alignment",
        "vistoken.train.objectives.name_alignment:NameAlignment",
        "patch tokens near the names of what they show; no pass of the language model",
    ),
    PartEntry(
        "mechanism",
        "saisa",
        f"{_HERE}.saisa.mechanism:Saisa",
        "visual tokens as keys and values only, projected for each layer from encoder features",
        _SAISA,
    ),
    PartEntry(
        "mechanism",
        "naavit",
        f"{_HERE}.saisa.naavit:Naavit",
        "no attention among visual tokens; they still pass every layer's FFN",
        _SAISA,
    ),
    PartEntry(
        "mechanism",
        "yopo",
        f"{_HERE}.yopo.mechanism:Yopo",
        "visual tokens attend to neighbours in few heads, with part of the FFN, in early layers",
        _YOPO,
    ),
    PartEntry(
        "pruner",
        "yopo",
        f"{_HERE}.yopo.pruner:YopoPruner",
        "heads that look at the picture, found on about 100 samples; no training",
        _YOPO,
    ),
    PartEntry(
        "importer",
        "llava",
        f"{_HERE}.llava.release_keys:LlavaKeys",
        "parameter names of official LLaVA-1.5 releases",
        _LLAVA,
    ),
    PartEntry(
        "importer",
        "llava-sp",
        f"{_HERE}.llava_sp.release_keys:LlavaSPKeys",
        "parameter names of official LLaVA-SP releases",
        _LLAVA_SP,
    ),
    PartEntry(
        "importer",
        "yopo",
        f"{_HERE}.yopo.release_keys:YopoKeys",
        "options and head mask of official YOPO releases, whose weights are LLaVA's",
        _YOPO,
    ),
    PartEntry(
        "importer",
        "saisa",
        f"{_HERE}.saisa.release_keys:SaisaKeys",
        "parameter names of official SAISA releases",
        _SAISA,
    ),
)
"""Every part of this package; published under the entry-point group ``vistoken.parts``."""
