"""The front door: finds the room that owns a verb and hands the command line to it."""

import argparse
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import NoReturn

# verb -> (room, what it does). A room's `commands` module is imported only when one of its verbs is called,
# and holds two functions per verb: VERB_arguments(parser) and VERB(args) -> exit code.
VERBS: dict[str, tuple[str, str]] = {
    "demo": ("toolkit", "build, verify and run the shipped network for a Pi 4B: start here"),
    "generate": ("toolkit", "make synthetic pit images with cracks and exact masks"),
    "slices": ("toolkit", "cut training slices from a georeferenced scene and polygons"),
    "train": ("toolkit", "train a network on a folder of images and labels"),
    "evaluate": ("toolkit", "measure a checkpoint or an artifact on labelled data"),
    "temper": ("toolkit", "make a checkpoint's probabilities mean what they say"),
    "cost": ("toolkit", "count parameters, MACs and activation bytes, layer by layer"),
    "lint": ("toolkit.export", "name what will hurt or slow a network at int8, and the mend"),
    "sensitivity": ("toolkit.export", "measure how much noise each layer brings at int8"),
    "export": ("toolkit.export", "write a plain ONNX or TFLite file from a checkpoint or any torch module"),
    "build": ("toolkit.export", "compile a checkpoint into a verified artifact for a board"),
    "rebuild": ("toolkit.export", "build an artifact again and compare every byte"),
    "boards": ("targets", "list the boards; check that wheels and libraries run on one"),
    "emulator": ("targets.emulator", "set up emulated boards, which verify and count as the real ones do"),
    "bench": ("benchmarks", "measure an artifact, the field of networks or what a client loses; report it"),
    "paper": ("benchmarks.paper", "run and render the paper's experiments"),
    "inspect": ("targets", "show what an artifact holds"),
    "verify": ("targets", "check an artifact's signature, version and golden vectors as a gateway does"),
    "keygen": ("targets", "make a key to sign artifacts with"),
    "sign": ("targets", "sign an artifact, or sign it anew with another key"),
    "predict": ("targets", "run an artifact on images"),
    "gateway": ("twin_client", "run and look after a gateway: tags, cameras, and a link that loses nothing"),
}

# Import name -> the extra that brings it; a missing module outside this table is a bug and stays a traceback.
EXTRAS = {
    "torch": "toolkit",
    "onnx": "toolkit",
    "onnxscript": "toolkit",
    "safetensors": "toolkit",
    "tqdm": "toolkit",
    "onnxruntime": "ort",
    "litert_torch": "tflite",
    "ai_edge_quantizer": "tflite",
    "ai_edge_litert": "litert",
    "flatbuffers": "tflite",
    "rasterio": "geo",
    "shapefile": "geo",
    "pycocotools": "bench",
    "matplotlib": "bench",
}


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints fit on one line."""

    def error(self, message: str) -> NoReturn:
        """Print what is wrong and where to look, and exit 2."""
        from targets.runtime.guard import USAGE_ERROR

        self.exit(USAGE_ERROR, f"{self.prog}: {message}; see `{self.prog} --help`\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (default: the process's own) and return its exit code: 0, 1, 2, 130 or 141."""
    verb, *rest = list(sys.argv[1:] if argv is None else argv) or [""]
    if verb in ("-h", "--help"):
        return _guard("help", lambda: print(usage()))
    if verb == "--version":
        return _guard("version", lambda: print(f"highwall {version()}"))
    if verb not in VERBS:
        return _guard(verb, lambda: _unknown(verb))
    return _guard(verb, lambda: _call(verb, rest))


def usage() -> str:
    """The text of `highwall --help`."""
    width = max(map(len, VERBS))
    lines = [f"  {verb:{width}}  {summary}" for verb, (_, summary) in VERBS.items()]
    return "\n".join(
        [
            "usage: highwall VERB [ARGUMENTS]   (or: --help, --version)",
            "",
            "Compiles a crack-watching network for the Raspberry Pi at the edge of an open pit,",
            "and proves the result.",
            "",
            *lines,
            "",
            "`highwall VERB --help` says what a verb takes.",
        ]
    )


def version() -> str:
    """The installed version of highwall, or `unknown` when it runs from a folder that was never installed."""
    from importlib import metadata

    try:
        return metadata.version("highwall")
    except metadata.PackageNotFoundError:
        return "unknown"


def _unknown(verb: str) -> int:
    import difflib

    from targets.runtime.guard import USAGE_ERROR, complain

    what = f"no verb {verb!r}" if verb else "no verb given"
    nearest = difflib.get_close_matches(verb, VERBS, n=1)
    mend = f"did you mean `{nearest[0]}`?" if nearest else "see `highwall --help`"
    return complain("highwall", f"{what}; {mend}", USAGE_ERROR)


def _call(verb: str, arguments: list[str]) -> int:
    room, summary = VERBS[verb]
    commands = import_module(f"{room}.commands")
    parser = Parser(prog=f"highwall {verb}", description=summary, allow_abbrev=False)
    getattr(commands, f"{verb}_arguments")(parser)
    code: int = getattr(commands, verb)(parser.parse_args(arguments))
    return code


def _guard(verb: str, action: Callable[[], int | None]) -> int:
    from targets.runtime.errors import HighwallError
    from targets.runtime.guard import guard

    def named() -> int | None:
        try:
            return action()
        except ModuleNotFoundError as error:
            package = (error.name or "").partition(".")[0]
            if package not in EXTRAS:
                raise
            needs = f"`{verb}` needs {package}, which is not installed"
            raise HighwallError(f"{needs}; pip install 'highwall[{EXTRAS[package]}]'") from error

    return guard("highwall", named)


if __name__ == "__main__":
    sys.exit(main())
