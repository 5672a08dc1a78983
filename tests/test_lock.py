"""The lock and the ranges: what `make install` installs is within what `pip install .` allows, and each is complete."""

import configparser
import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parent.parent
LOCKS = {
    "requirements/dev.txt": ["dev"],
    "requirements/docs.txt": ["dev", "docs"],
    "requirements/slow.txt": ["dev", "quant", "deepspeed"],
}
PINNED = re.compile(
    r"^([a-z0-9][a-z0-9._-]*)==(\S+)(?: ; [^\\\n]+)?((?: \\\n +--hash=sha256:[0-9a-f]{64})+)\n", re.MULTILINE
)


def ranges(extras=None):
    """The requirements of setup.cfg; of these extras alone, or of all."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    of_extras = config["options.extras_require"]
    listed = [config["options"]["install_requires"]]
    listed += [of_extras[extra] for extra in (of_extras if extras is None else extras)]
    lines = [line.strip() for text in listed for line in text.splitlines()]
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def locked(name):
    return {name: Version(version) for name, version, _ in PINNED.findall((ROOT / name).read_text())}


@pytest.mark.parametrize("name", [*LOCKS, "requirements/uv.txt"])
def test_a_lock_is_versions_with_hashes_and_nothing_else(name):
    text = re.sub(r"^#.*\n", "", (ROOT / name).read_text(), flags=re.MULTILINE)
    assert PINNED.search(text)
    assert PINNED.sub("", text) == ""  # no host, no path, no package without hashes


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_is_within_the_ranges(name):
    versions = locked(name)
    for wanted in ranges(LOCKS[name]):
        found = versions[canonicalize_name(wanted.name)]
        assert found in wanted.specifier, f"{name} has {wanted.name} {found}; setup.cfg wants {wanted.specifier}"


@pytest.mark.parametrize("name", ["requirements/docs.txt", "requirements/slow.txt"])
def test_every_lock_has_the_versions_of_the_tests(name):
    first, second = locked("requirements/dev.txt"), locked(name)
    assert {name: second[name] for name in first} == first


def test_every_range_has_both_bounds():
    unbounded = [str(wanted) for wanted in ranges() if {bound.operator for bound in wanted.specifier} != {">=", "<"}]
    assert unbounded == []


def test_the_next_release_is_beyond_what_was_tested():
    # An upper bound is one minor or one major version above the locked one: 5.25 or 6 for 5.24.0, 19 for 18.1.0
    versions = locked("requirements/docs.txt") | locked("requirements/slow.txt")
    for wanted in ranges(["dev", "docs", "quant", "deepspeed"]):
        found = versions[canonicalize_name(wanted.name)]
        bound = next(Version(bound.version) for bound in wanted.specifier if bound.operator == "<")
        assert bound in (Version(f"{found.major}.{found.minor + 1}"), Version(str(found.major + 1))), str(wanted)
