"""The README, the check of a fresh clone and the repository agree with one another."""

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LARGEST = 5 * 1024**2  # bytes


def setup_commands() -> list[str]:
    """Contents of the fenced bash blocks of the README that install something."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```bash[ \t]*\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    return [block.strip() for block in blocks if "pip install" in block]


def test_readme_has_two_setup_commands():
    commands = setup_commands()
    assert len(commands) == 2, "one to install, one to test"
    assert all("\n" not in command for command in commands), "each is a single line"
    assert sum("pytest" in command for command in commands) == 1


def test_ci_runs_the_test_command_of_the_readme():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    shown = subprocess.run([script, "--show-command"], capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    assert [shown.stdout.strip()] == [command for command in setup_commands() if "pytest" in command]


def test_no_large_file_is_tracked():
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    files = [ROOT / name for name in listed.stdout.split("\0") if name]
    large = [file.name for file in files if file.is_file() and file.stat().st_size > LARGEST]
    assert large == [], f"over {LARGEST // 1024**2} MB"
