"""API keys: the file is refused rather than misread, the right key alone is let in, and no message gives one away."""

import json
import pickle
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from retina_ray.cli import serve_keys
from retina_ray.errors import ConfigError
from retina_ray.serving.keys import ApiKey, ApiKeys, add, issue, new_key
from retina_ray.serving.refusals import RefusedError

CLINIC, SCRAPER = "rr_the-key-of-the-clinic", "rr_the-key-of-the-scraper"


def digest(text: str) -> str:
    return sha256(text.encode()).hexdigest()


FILE = f"""\
# who may ask
keys:
  - id: clinic-a  # asks on weekdays
    sha256: {digest(CLINIC)}
    per_minute: 600
    scopes: [grade, metrics]
  - {{id: scraper, sha256: {digest(SCRAPER)}, per_minute: 1, scopes: [metrics]}}
"""


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "keys.yaml"
        path.write_text(text)
        return path

    return write


@pytest.fixture
def keys(write: Callable[[str], Path]) -> ApiKeys:
    return ApiKeys.load(write(FILE))


def test_a_key_is_let_in_for_its_scopes_alone(keys: ApiKeys) -> None:
    assert keys.check(CLINIC, "grade").id == keys.check(CLINIC, "metrics").id == "clinic-a"
    assert keys.check(SCRAPER, "metrics").id == "scraper"
    with pytest.raises(RefusedError, match="scraper is not for grade") as refused:
        keys.check(SCRAPER, "grade")
    assert (refused.value.kind, refused.value.status) == ("unauthenticated", 401)
    assert keys.per_minute == {"clinic-a": 600, "scraper": 1}


@given(st.one_of(st.text(), st.text(alphabet=st.characters(categories=["Cs"])), st.sampled_from([CLINIC, SCRAPER])))
def test_anything_else_is_kept_out_and_not_repeated(presented: str) -> None:
    keys = ApiKeys([ApiKey(id="clinic-a", sha256=digest(CLINIC), per_minute=600)])
    if presented == CLINIC:
        assert keys.check(presented, "grade").id == "clinic-a"
        return
    with pytest.raises(RefusedError) as refused:
        keys.check(presented, "grade")
    assert refused.value.kind == "unauthenticated"
    assert len(presented) < 10 or presented not in refused.value.detail


def test_the_hash_of_a_key_is_no_key(keys: ApiKeys) -> None:
    with pytest.raises(RefusedError):
        keys.check(digest(CLINIC), "grade")


def test_every_key_is_compared_whichever_is_right(keys: ApiKeys, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[str] = []

    def count(left: str, right: str) -> bool:
        compared.append(left)
        return left == right

    monkeypatch.setattr("retina_ray.serving.keys.hmac.compare_digest", count)
    keys.check(CLINIC, "grade")  # the first
    keys.check(SCRAPER, "metrics")
    with pytest.raises(RefusedError):
        keys.check("rr_none", "grade")
    assert compared == [digest(CLINIC), digest(SCRAPER)] * 3


def test_keys_travel_to_other_processes_and_show_no_hash(keys: ApiKeys) -> None:
    key = pickle.loads(pickle.dumps(keys)).check(CLINIC, "grade")
    assert key == keys.check(CLINIC, "grade")
    assert digest(CLINIC) not in repr(key)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (digest(CLINIC), CLINIC, r"keys\.yaml, keys\.0\.sha256; write the SHA-256"),
        (digest(CLINIC), digest(CLINIC)[:-1], r"keys\.0\.sha256; write the SHA-256"),
        (digest(CLINIC), digest(CLINIC).upper(), r"keys\.0\.sha256; write the SHA-256"),
        (digest(CLINIC), "12345", r"keys\.0\.sha256; write the SHA-256"),  # a number, says YAML
        (digest(SCRAPER), digest(CLINIC), "one API key has two ids: clinic-a, scraper; make each"),
        ("id: scraper", "id: clinic-a", "two API keys have the same id: clinic-a; give"),
        ("id: scraper", "id: anonymous", r"keys\.1\.id; anonymous means requests without a key; choose another id"),
        ("id: scraper", "id: a b", r"keys\.1\.id; it should match pattern"),
        ("id: scraper", "ident: scraper", r"missing field: .*keys\.1\.id; add it"),
        ("per_minute: 600", "per_minute: 0", r"keys\.0\.per_minute; it should be greater than or equal to 1"),
        ("per_minute: 600", "per_minute: 0.5", r"keys\.0\.per_minute; it should be a valid integer"),
        ("per_minute: 600", "per_hour: 600", r"missing field: .*keys\.0\.per_minute; add it"),
        (
            "per_minute: 600",
            "per_minute: 600\n    key: rr_it",
            r"unknown field: .*keys\.0\.key; use id, sha256, per_mi",
        ),
        ("keys:", "admin: true\nkeys:", "unknown field: .*, admin; use keys$"),
        ("[grade, metrics]", "[grade, admin]", r"keys\.0\.scopes\.1; it should be 'grade' or 'metrics'"),
        ("[grade, metrics]", "[]", r"keys\.0\.scopes; "),
        ("[grade, metrics]", "grade", r"keys\.0\.scopes; write it as"),
        (FILE, "keys: []", "keys; "),
        (FILE, "", r"keys\.yaml; write it as `retina-ray serve keys new` prints it"),
        (FILE, "- id: clinic-a", r"keys\.yaml; write it as"),
        (FILE, "keys: [", "not a YAML file"),
    ],
)
def test_a_bad_file_is_refused_with_the_place(
    write: Callable[[str], Path], before: str, after: str, message: str
) -> None:
    assert before in FILE
    with pytest.raises(ConfigError, match=message) as refused:
        ApiKeys.load(write(FILE.replace(before, after)))
    assert "rr_" not in str(refused.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read the file of API keys: .*none\.yaml; check the path"):
        ApiKeys.load(tmp_path / "none.yaml")


def test_a_file_may_be_read_by_all_but_not_written(write: Callable[[str], Path]) -> None:
    path = write(FILE)
    path.chmod(0o644)  # as Kubernetes mounts secrets
    ApiKeys.load(path)
    path.chmod(0o646)
    with pytest.raises(ConfigError, match=r"everybody may write to the file of API keys: .*; .*chmod o-w"):
        ApiKeys.load(path)


def test_new_keys_are_long_and_all_different() -> None:
    drawn = [new_key() for _ in range(50)]
    assert len({text for text, _ in drawn}) == 50
    for text, hashed in drawn:
        assert text.startswith("rr_")
        assert len(text) == 46
        assert set(text) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")
        assert hashed == digest(text)


@pytest.mark.parametrize(
    "before",
    [
        None,
        "",
        FILE,
        FILE.rstrip("\n"),
        f"keys:\n- id: clinic-a\n  scopes:\n    - grade\n  per_minute: 600\n  sha256: {digest(CLINIC)}\n\n# the end\n",
    ],
)
def test_a_key_is_appended_and_the_rest_left_alone(tmp_path: Path, before: str | None) -> None:
    path = tmp_path / "keys.yaml"
    if before is not None:
        path.write_text(before)
    old = list(ApiKeys.load(path).per_minute) if before else []
    for name in ("clinic-b", "clinic-c"):
        text, key = issue(name, 60, ["grade", "metrics"])
        add(path, key)
        assert ApiKeys.load(path).check(text, "grade") == key
    assert list(ApiKeys.load(path).per_minute) == [*old, "clinic-b", "clinic-c"]
    assert path.read_text().startswith(before or "keys:")
    if before is None:
        assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("before", "message"),
    [
        (FILE.replace("scraper", "clinic-b"), "two API keys have the same id: clinic-b"),
        (f"keys: [{{id: a, sha256: {digest(CLINIC)}, per_minute: 1}}]\n", "nothing can be appended to"),
        ("keys: 3\n", "does not fit"),
    ],
)
def test_a_file_that_cannot_take_the_key_stays_as_it_is(
    write: Callable[[str], Path], before: str, message: str
) -> None:
    path = write(before)
    with pytest.raises(ConfigError, match=message):
        add(path, issue("clinic-b", 60, ["grade"])[1])
    assert path.read_text() == before


def test_a_place_without_a_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot write to the file of API keys: .*keys\.yaml; check the path"):
        add(tmp_path / "none" / "keys.yaml", issue("clinic-b", 60, ["grade"])[1])


def run(*arguments: str) -> None:
    app = typer.Typer()
    app.add_typer(serve_keys.app, name="keys")
    app(["keys", *arguments], standalone_mode=False)


def test_the_command_prints_a_key_and_an_entry_that_fits_it(
    capsys: pytest.CaptureFixture[str], write: Callable[[str], Path]
) -> None:
    run("new", "clinic-a", "--per-minute", "90")
    text, _, entry = capsys.readouterr().out.partition("\n")
    keys = ApiKeys.load(write(entry[entry.index("keys:") :]))
    assert keys.check(text, "grade").per_minute == 90


def test_the_command_adds_to_the_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    run("new", "clinic-a", "--per-minute", "90", "--file", str(path))
    first = capsys.readouterr().out.splitlines()[0]
    run("new", "scraper", "--per-minute", "6", "--scope", "metrics", "--file", str(path), "--json")
    second = json.loads(capsys.readouterr().out)
    keys = ApiKeys.load(path)
    assert keys.check(first, "grade").id == "clinic-a"
    assert keys.check(second["key"], "metrics").scopes == tuple(second["scopes"]) == ("metrics",)
    assert first not in path.read_text()
    assert second["key"] not in path.read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("clinic a", "--per-minute", "9"), "the new key clinic a, id; it should match"),
        (("clinic-a", "--per-minute", "0"), "the new key clinic-a, per_minute; it should be greater"),
        (("clinic-a", "--per-minute", "9", "--scope", "all"), r"the new key clinic-a, scopes\.0; it should be 'grade'"),
    ],
)
def test_the_command_explains_what_does_not_fit(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run("new", *arguments)
