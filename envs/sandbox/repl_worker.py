"""The Python that runs a model's calls: one JSON line in, one out. Needs nothing but the standard library."""

# It is the model's code that raises.
# ruff: noqa: BLE001, PTH108

import ast
import contextlib
import fcntl
import json
import linecache
import os
import signal
import sys
import tempfile
import traceback


def run(number: int, code: str, names: dict[str, object]) -> None:
    """Executes the code; prints the value of a last expression, or the traceback from the code on."""
    file = f"<call {number}>"
    linecache.cache[file] = (len(code), None, code.splitlines(True), file)
    try:
        tree = ast.parse(code, file)
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, file, "exec"), names)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), file, "eval"), names)
            if value is not None:
                names["_"] = value
                print(repr(value))
    except SystemExit as end:
        print(f"SystemExit: {end}")
    except BaseException as error:
        own = error.__traceback__
        while own is not None and own.tb_frame.f_code.co_filename != file:  # a SyntaxError has no frame of the code's
            own = own.tb_next
        traceback.print_exception(type(error), error, own, file=sys.stdout)


def main() -> None:
    source, sink = os.fdopen(os.dup(0), "r"), os.dup(1)
    output, path = tempfile.mkstemp()
    os.unlink(path)
    fcntl.fcntl(output, fcntl.F_SETFL, os.O_APPEND)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    # Only while a call runs: an interrupt that comes too late must not end the worker.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    names: dict[str, object] = {"__name__": "__main__", "__builtins__": __builtins__}
    for line in source:
        request = json.loads(line)
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            run(request["number"], request["code"], names)
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        except KeyboardInterrupt:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):  # the disk is full, or the code closed it
                stream.flush()
        size = os.fstat(output).st_size
        text = os.pread(output, request["most"], 0).decode("utf-8", "replace")
        os.ftruncate(output, 0)
        if size > request["most"]:
            text += f"\n[{size - request['most']} more bytes of output were thrown away]"
        answer = json.dumps({"number": request["number"], "output": text}).encode() + b"\n"
        while answer:
            answer = answer[os.write(sink, answer) :]


main()
