"""What pyproject.toml cannot say: the wheel carries the lessons and the figures.

They are copied into the package as course/material, where `course.lab.places` finds them. The
description on a package index gets links to the repository in place of relative ones.
"""

import re
import shutil
import tomllib
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
CARRIED = ("notebooks", "figures")
UNTRACKED = shutil.ignore_patterns(".*", "__pycache__")
RELATIVE = re.compile(r'(\]\(|src=")(?!https?:|#)([^)"]+)')


class WithMaterial(build_py):
    """Build the packages and copy what the lessons are made of into them."""

    def run(self):
        """Copy anew, since build/ may still hold what an earlier build copied."""
        super().run()
        if self.editable_mode:  # the checkout itself is then what is used
            return
        home = Path(self.build_lib) / "course" / "material"
        shutil.rmtree(home, ignore_errors=True)
        for folder in CARRIED:
            shutil.copytree(ROOT / folder, home / folder, ignore=UNTRACKED)


def described():
    """The README with absolute links: pictures raw, everything else as a page of the repository."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pages = project["urls"]["Repository"]

    def absolute(found):
        kind = "raw" if found[2].endswith(".png") else "blob"
        return f"{found[1]}{pages}/{kind}/main/{found[2]}"

    return RELATIVE.sub(absolute, (ROOT / "README.md").read_text(encoding="utf-8"))


if __name__ == "__main__":  # a test imports this file for its functions
    setup(
        cmdclass={"build_py": WithMaterial},
        long_description=described(),
        long_description_content_type="text/markdown",
    )
