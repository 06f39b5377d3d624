"""What setuptools cannot be told in pyproject.toml: links to folders belong in the source archive."""

from pathlib import Path

from setuptools import setup
from setuptools.command.sdist import sdist


class SourceArchive(sdist):
    """setuptools archives files alone, and without these links tools that read files see half of the package."""

    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        """The tree that is archived."""
        super().make_release_tree(base_dir, files)
        for room in ("passes", "backends"):
            Path(base_dir, "pccompile", room).symlink_to(f"../{room}", target_is_directory=True)


setup(cmdclass={"sdist": SourceArchive})
