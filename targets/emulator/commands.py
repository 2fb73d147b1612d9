"""The verb of this room: emulator."""

import argparse


def emulator_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `highwall emulator`."""
    parser.add_argument("action", choices=("setup",), help="setup: unpack boards' systems; does only what is missing")
    parser.add_argument(
        "--board", action="append", metavar="BOARD", help="only this one; may be repeated (default: all)"
    )
    parser.add_argument("--mirror", metavar="URL", help="a Debian mirror, where apt on this machine names none")


def emulator(args: argparse.Namespace) -> int:
    """Set up emulated boards: an arm64 system, aarch64 wheels, the counter."""
    from targets.board import boards as known_boards
    from targets.board import load_board
    from targets.emulator.layout import cache_home
    from targets.emulator.setup import set_up

    wanted = [load_board(name) for name in args.board or ()]
    wanted = wanted or [board for board in known_boards() if board.name != "host"]
    set_up(wanted, lambda line: print(f"- {line}", flush=True), args.mirror)
    print(f"ready: {', '.join(board.name for board in wanted)}, in {cache_home()}")
    return 0
