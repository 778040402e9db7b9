"""The file of keys: what it holds, who may touch it, and what a server makes of it."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from typing import TYPE_CHECKING

import pytest

from mlx_pharos.config import ConfigValidator, Settings, ValidationError
from mlx_pharos.doctor.checks import check_network
from mlx_pharos.keys.key_file import KeyFile, KeyFileError
from support.served import serve_model

if TYPE_CHECKING:
    from pathlib import Path

    from mlx_pharos.doctor.finding import Finding


def _keys(*arguments: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    flags = ["--api-keys-file", str(path)] if path else []
    return subprocess.run(
        [sys.executable, "-m", "mlx_pharos", "keys", *arguments, *flags],
        capture_output=True,
        text=True,
        timeout=18,
        check=False,
    )


def test_a_key_is_printed_once_and_only_its_hash_is_kept(tmp_path: Path) -> None:
    """Standard output is the key alone; the file has its name and hash, for its owner alone."""
    path = tmp_path / "keys"
    done = _keys("add", "laptop", path=path)
    key = done.stdout.strip()
    assert done.returncode == 0, done.stderr
    assert key.startswith("pk-")
    assert len(key) >= 40
    assert key not in path.read_text() + done.stderr
    assert f"laptop sha256:{hashlib.sha256(key.encode()).hexdigest()}" in path.read_text()
    assert 0o600 == stat.S_IMODE(path.stat().st_mode)
    assert [path] == [*tmp_path.iterdir()]


def test_keys_are_listed_and_removed_by_name(tmp_path: Path) -> None:
    """Names are one a line; a removed one is gone, and the rest stays as it was."""
    path = tmp_path / "keys"
    for name in ("a", "b"):
        KeyFile(path).add(name)
    assert _keys("list", path=path).stdout == "a\nb\n"
    kept = KeyFile(path).read()[1]
    assert _keys("remove", "a", path=path).returncode == 0
    assert (kept,) == KeyFile(path).read()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("add", "a"), "already"),
        (("add", "no spaces"), "letters"),
        (("remove", "b"), "no key of the name b"),
    ],
)
def test_what_cannot_be_done_is_said(tmp_path: Path, arguments: tuple[str, str], said: str) -> None:
    """A name that is taken, is none, or is not there ends with 2 and changes nothing."""
    path = tmp_path / "keys"
    KeyFile(path).add("a")
    before = path.read_bytes()
    done = _keys(*arguments, path=path)
    assert (2, "") == (done.returncode, done.stdout)
    assert said in done.stderr
    assert before == path.read_bytes()


def test_without_a_file_the_setting_is_named() -> None:
    """Nobody wonders where a key was put: the place is a setting, and it has to be set."""
    done = _keys("add", "a")
    assert done.returncode == 2
    assert "PHAROS_API_KEYS_FILE" in done.stderr


def test_two_at_once_lose_no_key(tmp_path: Path) -> None:
    """Whoever changes the file has it alone: ten keys made at once are ten keys."""
    file = KeyFile(tmp_path / "keys")
    makers = [threading.Thread(target=file.add, args=(f"k{number}",)) for number in range(10)]
    for maker in makers:
        maker.start()
    for maker in makers:
        maker.join()
    assert {f"k{number}" for number in range(10)} == {each.name for each in file.read()}


@pytest.mark.parametrize(
    ("mode", "said"),
    [(0o644, "read by every user"), (0o620, "written by other"), (0o602, "written by other")],
)
def test_a_file_that_others_may_touch_is_refused(tmp_path: Path, mode: int, said: str) -> None:
    """Who could write a hash could come in, so the file is its owner's; the mend is a chmod."""
    path = tmp_path / "keys"
    KeyFile(path).add("a")
    path.chmod(mode)
    with pytest.raises(KeyFileError, match=rf"{said}.*chmod 600"):
        KeyFile(path).read()
    with pytest.raises(KeyFileError, match=said):
        KeyFile(path).add("b")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_file_of_another_user_is_refused(tmp_path: Path) -> None:
    """A file that belongs to somebody else could change under the server."""
    path = tmp_path / "keys"
    KeyFile(path).add("a")
    os.chown(path, 12345, -1)
    with pytest.raises(KeyFileError, match="another user"):
        KeyFile(path).read()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"laptop pk-geheim\n", "line 1"),
        (b"# fine\n\nlaptop sha256:abc\n", "line 3"),
        (b"a sha256:" + b"0" * 64 + b"\na sha256:" + b"1" * 64, "same name twice"),
        (b"a sha256:" + b"0" * 64 + b"\nb sha256:" + b"0" * 64, "same key twice"),
        (b"\xff\xfe", "no text"),
        (b"#" * (1 << 21), "larger"),
    ],
)
def test_a_file_that_is_none_is_refused_without_showing_it(
    tmp_path: Path, content: bytes, said: str
) -> None:
    """A line that is not a name and a hash is named by its number: it may hold a key."""
    path = tmp_path / "keys"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(KeyFileError, match=said) as caught:
        KeyFile(path).read()
    assert "geheim" not in str(caught.value)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    """A folder or a pipe in place of the file is an error at once, not a wait."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe, 0o600)
    for path in (tmp_path, pipe):
        with pytest.raises(KeyFileError, match="is not a file"):
            KeyFile(path).read()
    with pytest.raises(KeyFileError, match="pharos keys add"):
        KeyFile(tmp_path / "none").read()


def test_an_empty_file_never_opens_the_server(tmp_path: Path) -> None:
    """No key in the file means that nobody comes in, so the server does not start."""
    path = tmp_path / "keys"
    KeyFile(path).add("a")
    KeyFile(path).remove("a")
    validator = ConfigValidator(Settings(api_keys_file=path, port=0))
    with pytest.raises(ValidationError, match="holds no key"):
        validator.validate_keys()
    assert str(path) in {each.subject for each in validator.validate_all_config()}


def test_a_server_takes_every_key_of_the_file(tmp_path: Path, tiny_model: Path) -> None:
    """Two clients' keys are good, a third is not, on the network's address too."""
    path = tmp_path / "keys"
    good = [KeyFile(path).add(name) for name in ("a", "b")]
    flags = ["--api-keys-file", str(path), "--host", "0.0.0.0"]

    def status(port: str, key: str) -> int:
        url = f"http://127.0.0.1:{port}/v1/models"
        request = urllib.request.Request(url, headers={"Authorization": f"Bearer {key}"})
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                json.load(answer)
                return int(answer.status)
        except urllib.error.HTTPError as error:
            error.close()
            return error.code

    with serve_model(tiny_model, *flags) as served:
        port = served.address.rpartition(":")[2]
        assert [200, 200, 401] == [status(port, key) for key in (*good, "pk-wrong")]


def test_the_doctor_says_who_may_come_in(tmp_path: Path) -> None:
    """The report has the keys' names where they are good, and the error where they are not."""
    path = tmp_path / "keys"
    KeyFile(path).add("laptop")
    settings = Settings(api_keys_file=path, port=0, host="0.0.0.0")

    def access() -> Finding:
        findings = check_network(settings, ConfigValidator(settings))
        return next(each for each in findings if each.name == "Access")

    assert ["laptop"] == access().figures["names"]
    path.chmod(0o666)
    assert ("error", f"chmod 600 {path}") == (access().status, access().mend)
