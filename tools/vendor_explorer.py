"""Build pccompile/explorer/vendor anew from npm: `python tools/vendor_explorer.py`, which needs npm and the network.

Each package is downloaded in one version, whose SHA-512 is pinned below; what is written depends on nothing else, so
that running this changes nothing unless a pin has changed. `--check` compares instead of writing.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

VENDOR = Path(__file__).parents[1] / "pccompile" / "explorer" / "vendor"
PINS = {
    "@viz-js/viz@3.31.0": "r7zlQdRvcwvIpjHGgs+KNWHeE/P5/Dq7k8ZAKaMCbZqomxCBJV78gVuQYaHzFVca+kB0mX0fMW9UFevCOBG50A==",
    "katex@0.19.0": "v6Tznz3zJ7u3niRCoDTsumM2+HA2XXcCu+WAacCeHD2z3p9A9Ks987o5FzfTGBN0e8A0vjEgIDvLbICrXpdw/Q==",
    "uplot@1.6.32": "KIMVnG68zvu5XXUbC4LQEPnhwOxBuLyW1AHtpm6IKTXImkbLgkMy+jabjLgSLMasNuGGzQm/ep3tOkyTxpiQIw==",
}
SCRIPTS = {
    "viz.js.gz": ("@viz-js/viz@3.31.0", "dist/viz-global.js"),
    "katex.js.gz": ("katex@0.19.0", "dist/katex.min.js"),
    "uplot.js.gz": ("uplot@1.6.32", "dist/uPlot.iife.min.js"),
}
STYLES = (("katex@0.19.0", "dist/katex.min.css"), ("uplot@1.6.32", "dist/uPlot.min.css"))
FONTS = (
    "Main-Regular", "Main-Bold", "Main-Italic", "Math-Italic", "AMS-Regular", "SansSerif-Regular",
    "Size1-Regular", "Size2-Regular", "Size3-Regular", "Size4-Regular",
)  # fmt: skip
"""Those of KaTeX's fonts that equations of pccompile need."""
FACE = re.compile(r"@font-face\{[^}]*\}")
MIT = """\
Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""
NOTICE = f"""\
The explorer's page contains these packages, which are not part of pccompile's own licence.

Viz.js 3.31.0, Copyright (c) Michael Daines, https://github.com/mdaines/viz-js, MIT licence (below). It contains in
object code form:
  Graphviz, https://www.graphviz.org, under the Eclipse Public License 2.0, https://www.eclipse.org/legal/epl-2.0/;
  its source code is at https://gitlab.com/graphviz/graphviz
  Expat, https://libexpat.github.io, Copyright (c) 1998-2000 Thai Open Source Software Center Ltd and Clark Cooper,
  Copyright (c) 2001-2025 Expat maintainers, MIT licence (below)
KaTeX 0.19.0, Copyright (c) 2013-2020 Khan Academy and other contributors, https://katex.org, MIT licence (below); its
fonts are under the SIL Open Font License 1.1, https://openfontlicense.org
uPlot 1.6.32, Copyright (c) 2022 Leon Sorokin, https://github.com/leeoniya/uPlot, MIT licence (below)

The MIT licence

{MIT}"""


def packages() -> dict[str, tarfile.TarFile]:
    """Every package as npm has it. Exits where one is not what its pin says."""
    found = {}
    for name, pin in PINS.items():
        with tempfile.TemporaryDirectory() as folder:
            command = ["npm", "pack", "--silent", name]
            file = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout.strip()
            content = (Path(folder) / file).read_bytes()
        if base64.b64encode(hashlib.sha512(content).digest()).decode() != pin:
            sys.exit(f"{name} is not what was pinned")
        found[name] = tarfile.open(fileobj=io.BytesIO(content))  # noqa: SIM115
    return found


def read(package: tarfile.TarFile, path: str) -> bytes:
    """A file of a package."""
    member = package.extractfile(f"package/{path}")
    assert member is not None, path
    return member.read()


def with_fonts(css: str, katex: tarfile.TarFile) -> str:
    """KaTeX's style with the fonts that are needed in it, and without the others."""

    def face(m: re.Match[str]) -> str:
        name = re.search(r"KaTeX_([\w-]+)\.woff2", m[0])
        if name is None or name[1] not in FONTS:
            return ""
        font = base64.b64encode(read(katex, f"dist/fonts/KaTeX_{name[1]}.woff2")).decode()
        return re.sub(r"src:[^}]*", f'src:url(data:font/woff2;base64,{font}) format("woff2")', m[0])

    return FACE.sub(face, css)


def contents() -> dict[str, bytes]:
    """All files, as they are before they are packed."""
    found = packages()
    files = {name: read(found[package], path) for name, (package, path) in SCRIPTS.items()}
    css = "\n".join(read(found[package], path).decode() for package, path in STYLES)
    return files | {"vendor.css.gz": with_fonts(css, found["katex@0.19.0"]).encode()}


def main() -> int:
    """Write or compare; what is returned is the exit code."""
    files = contents()
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    manifest = json.dumps({"packages": PINS, "sha256 of what is packed": sums}, indent=2) + "\n"
    if "--check" in sys.argv:
        packed = {name: gzip.decompress((VENDOR / name).read_bytes()) for name in files}
        same = packed == files and (VENDOR / "packages.json").read_text() == manifest
        print("as pinned" if same else "not what the packages give")
        return 0 if same else 1
    VENDOR.mkdir(exist_ok=True)
    for name, content in files.items():
        (VENDOR / name).write_bytes(gzip.compress(content, 9, mtime=0))
    (VENDOR / "packages.json").write_text(manifest)
    (VENDOR / "LICENSES.txt").write_text(NOTICE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
