"""Writes a Bazel workspace whose every action is new to any cache, and the repositories that Bazel
would download.

Text only: nothing is run here. Actions give random output on purpose: a rerun can't reproduce it,
so equal outputs can only have come out of the cache.
"""

import textwrap
import uuid
from dataclasses import dataclass
from pathlib import Path

BULK = 32 * 1024 * 1024 + 1
"""Size in bytes of the largest output, //:bulk."""

LOUD_LINES = 400

_CC = ("binary", "import", "library", "proto_library", "test", "toolchain", "toolchain_suite")
_JAVA = ("binary", "import", "library", "proto_library", "runtime", "test", "toolchain")
_REPOSITORIES = {
    "rules_cc": ("cc", (*(f"cc_{rule}" for rule in _CC), "objc_library")),
    "rules_java": ("java", tuple(f"java_{rule}" for rule in _JAVA)),
}
"""For each repository that Bazel's own BUILD files load: its package, and rules that it defines."""

_TREE_RULE = """\
def _scatter(ctx):
    out = ctx.actions.declare_directory(ctx.label.name)
    ctx.actions.run_shell(
        mnemonic = "Scatter",
        inputs = [ctx.file.seed],
        outputs = [out],
        arguments = [out.path, ctx.file.seed.path],
        command = '''
            set -eu
            mkdir -p "$1/deep/er/still" "$1/side"
            for n in 1 2 3 4 5 6 7 8 9; do
                head -c $((n * n * 3000)) /dev/urandom > "$1/side/part$n"
            done
            cp "$1/side/part3" "$1/deep/twin"
            cat "$2" > "$1/deep/er/seed"
            true > "$1/deep/er/still/nothing"
            echo '#!/bin/sh' > "$1/side/go"
            chmod 755 "$1/side/go"
        ''',
    )
    return [DefaultInfo(files = depset([out]))]

scatter = rule(
    implementation = _scatter,
    attrs = {"seed": attr.label(allow_single_file = True)},
)
"""

_ROOT_BUILD = """\
load("//:scatter.bzl", "scatter")

SEED = ["seed.txt"]

genrule(name = "nothing", srcs = SEED, outs = ["nothing.bin"], cmd = "true > $@")

genrule(name = "bulk", srcs = SEED, outs = ["bulk.bin"], cmd = "head -c {bulk} /dev/urandom > $@")

genrule(
    name = "token",
    srcs = SEED,
    outs = ["token.txt"],
    cmd = "head -c 24 /dev/urandom | base64 > $@",
)

genrule(
    name = "several",
    srcs = SEED,
    outs = ["several/copy.txt", "several/five-mb.bin", "several/zero.bin"],
    cmd = "cp $< $(location several/copy.txt); " +
          "head -c 5000000 /dev/urandom > $(location several/five-mb.bin); " +
          "true > $(location several/zero.bin)",
)

genrule(
    name = "program",
    srcs = SEED,
    outs = ["program.sh"],
    cmd = "echo '#!/bin/sh' > $@; echo \\"echo $$(date +%s%N)\\" >> $@",
    executable = True,
)

genrule(
    name = "loud",
    srcs = SEED,
    outs = ["loud.txt"],
    cmd = "echo said-on-stdout-$$(cat $<); " +
          "for n in $$(seq {lines}); do echo said-on-stderr-$$n-in-many-words >&2; done; " +
          "cp $< $@",
)

scatter(name = "scattered", seed = "seed.txt")

genrule(
    name = "listed",
    srcs = [":scattered"],
    outs = ["listed.txt"],
    cmd = "(cd $(SRCS) && find . -type f | sort) > $@",
)
"""


_SAID = """\
genrule(
    name = "said",
    srcs = ["seed.h"],
    outs = ["said.txt"],
    cmd = "$(location :say) > $@",
    tools = [":say"],
)"""


@dataclass(frozen=True)
class Workspace:
    """A generated workspace. `seed` is in every action's inputs; `least_actions` is a floor of
    how many there are.
    """

    path: Path
    seed: str
    units: int
    repositories: dict[str, Path]

    @property
    def least_actions(self) -> int:
        return 2 * self.units + 10


def write_workspace(root: Path, units: int) -> Workspace:
    """Writes it below `root`: `units` C++ libraries, two programs of them, and genrules of every
    awkward kind.
    """
    seed = uuid.uuid4().hex
    path = root / "workspace"
    _put(path / "WORKSPACE", 'workspace(name = "clientcheck")\n')
    _put(path / "scatter.bzl", _TREE_RULE)
    _put(path / "seed.txt", seed + "\n")
    _put(path / "BUILD", _ROOT_BUILD.format(bulk=BULK, lines=LOUD_LINES))
    _write_units(path / "units", seed, units)
    return Workspace(path, seed, units, _write_repositories(root))


def _write_units(package: Path, seed: str, units: int) -> None:
    build = ['package(default_visibility = ["//visibility:public"])']
    for unit in range(units):
        below = (unit - 1) // 3 if unit else None
        deps = "" if below is None else f'":u{below}"'
        build.append(
            f'cc_library(name = "u{unit}", srcs = ["u{unit}.cc"], '
            f'hdrs = ["u{unit}.h", "seed.h"], deps = [{deps}])'
        )
        _put(package / f"u{unit}.h", f"int u{unit}(int n);\n")
        include = "" if below is None else f'#include "units/u{below}.h"\n'
        rest = "n" if below is None else f"u{below}(n)"
        _put(
            package / f"u{unit}.cc",
            f'#include "units/u{unit}.h"\n#include "units/seed.h"\n{include}'
            f"int u{unit}(int n) {{ return {rest} + {unit} + (kSeed[0] == 0); }}\n",
        )
    _put(package / "seed.h", f'static const char kSeed[] = "{seed}";\n')
    every = ", ".join(f'":u{unit}"' for unit in range(units))
    build += [
        f'cc_binary(name = "sum", srcs = ["sum.cc"], deps = [{every}])',
        'cc_binary(name = "say", srcs = ["say.cc"], deps = [":u0"])',
        _SAID,
    ]
    includes = "".join(f'#include "units/u{unit}.h"\n' for unit in range(units))
    total = " + ".join(f"u{unit}(1)" for unit in range(units))
    _put(
        package / "sum.cc",
        f"#include <iostream>\n{includes}int main() {{ std::cout << {total} << std::endl; }}\n",
    )
    say = """\
        #include <cstdio>
        #include "units/seed.h"
        #include "units/u0.h"
        int main() { return std::puts(kSeed) < 0 ? u0(1) : 0; }
    """
    _put(package / "say.cc", textwrap.dedent(say))
    _put(package / "BUILD", "\n".join(build) + "\n")


def _write_repositories(root: Path) -> dict[str, Path]:
    """Stands in for the two repositories that Bazel's own BUILD files load: each rule is Bazel's
    native one.
    """
    found = {}
    for name, (package, rules) in _REPOSITORIES.items():
        home = root / name
        text = "".join(f"def {rule}(**kwargs):\n    native.{rule}(**kwargs)\n\n" for rule in rules)
        _put(home / "WORKSPACE", f'workspace(name = "{name}")\n')
        _put(home / package / "BUILD", "")
        _put(home / package / "defs.bzl", text)
        found[name] = home
    return found


def _put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
