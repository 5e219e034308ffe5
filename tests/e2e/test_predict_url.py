"""``retina-ray predict --url``: the command line against a real HTTP server."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from retina_ray.cli.main import run
from tests.misbehaving import PNG, Server, answer, illustrated, problem, reset, serving


@pytest.fixture
def server() -> Iterator[Server]:
    with serving(Server()) as running:
        yield running


@pytest.fixture(autouse=True)
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with photographs, two of which have one name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RETINA_RAY_API_KEY", raising=False)
    for name in ("left/eye.jpg", "right/eye.jpg", "third.jpg"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_bytes(name.encode())
    return tmp_path


def predicted(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> tuple[str, str]:
    found = run(["predict", *arguments])
    printed = capsys.readouterr()
    assert found == code, printed.err
    return printed.out, printed.err


def test_grades_are_shown(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    server.script = [answer(), answer()]
    out, err = predicted(capsys, "left/eye.jpg", "third.jpg", "--url", server.url, "--model", "grader")
    assert out.count("2 moderate") == 2
    assert "60.0%" in out
    assert err == ""
    assert [asked.body for asked in server.asked] == [b"left/eye.jpg", b"third.jpg"]
    assert {asked.path for asked in server.asked} == {"/v1/grade?model=grader"}
    assert "authorization" not in server.asked[0].headers
    assert len({asked.peer for asked in server.asked}) == 1


def test_a_key_comes_from_a_file_or_else_from_the_environment(
    server: Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("key").write_text("rr_of_file\n", encoding="utf-8")
    monkeypatch.setenv("RETINA_RAY_API_KEY", "rr_of_environment")
    server.script = [answer(), answer()]
    predicted(capsys, "third.jpg", "--url", server.url)
    predicted(capsys, "third.jpg", "--url", server.url, "--key-file", "key")
    keys = [asked.headers["authorization"] for asked in server.asked]
    assert keys == ["Bearer rr_of_environment", "Bearer rr_of_file"]


def test_pictures_are_written(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    server.script = [answer(illustrated())] * 2
    arguments = ("--explain", "gradcam", "--lesions", "--enhance", "--low-resolution", "--out", "new/pictures")
    out, _ = predicted(capsys, "left/eye.jpg", "right/eye.jpg", "--url", server.url, *arguments)
    assert server.asked[0].path == "/v1/grade?explain=gradcam&lesions=true&enhance=true&low_resolution=true"
    kinds = ("enhanced", "gradcam-dr", "lesions-MA")
    written = sorted(file.name for file in Path("new/pictures").iterdir())
    assert written == sorted(f"{stem}-{kind}.png" for stem in ("eye", "eye-2") for kind in kinds)
    assert {file.read_bytes() for file in Path("new/pictures").iterdir()} == {PNG}
    assert "right/eye.jpg: new/pictures/eye-2-gradcam-dr.png" in out
    assert "left/eye.jpg: lesions, share of the fundus disc: MA 1.25%" in out


def test_json_holds_pictures_or_where_they_are(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    server.script = [answer(illustrated())] * 2
    asked = ("third.jpg", "--url", server.url, "--enhance", "--json")
    inside: dict[str, Any] = json.loads(predicted(capsys, *asked)[0])["third.jpg"]
    assert inside == illustrated()
    apart: dict[str, Any] = json.loads(predicted(capsys, *asked, "--out", "pictures")[0])["third.jpg"]
    assert apart["pictures"]["enhanced"] == "pictures/third-enhanced.png"
    assert Path(apart["pictures"]["enhanced"]).read_bytes() == PNG
    assert apart["lesions"] == {"MA": {"area": 0.0125}}
    assert apart["tasks"] == inside["tasks"]
    assert "enhanced" not in apart


def test_no_name_that_the_service_gives_leads_out_of_the_folder(
    server: Server, desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.script = [answer(illustrated(lesion="/../../../escaped"))]
    before = set(desk.rglob("*"))
    predicted(capsys, "third.jpg", "--url", server.url, "--lesions", "--out", "pictures")
    made = set(desk.rglob("*")) - before - {desk / "pictures"}
    assert len(made) == 3
    assert {file.parent for file in made} == {desk / "pictures"}


def test_a_photograph_that_cannot_be_graded_keeps_no_other_from_it(
    server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    server.script = [problem(422, "no-fundus", "no disc found; photograph a retina"), answer()] * 2
    asked = ("left/eye.jpg", "nowhere.jpg", "third.jpg", "--url", server.url)
    out, err = predicted(capsys, *asked, code=2)
    assert "third.jpg" in out
    refused, missing = err.strip().splitlines()
    assert refused == "error: left/eye.jpg: some title: no disc found; photograph a retina"
    assert "nowhere.jpg" in missing
    shown = json.loads(predicted(capsys, *asked, "--json", code=2)[0])
    assert list(shown) == ["left/eye.jpg", "nowhere.jpg", "third.jpg"]
    assert "no disc found" in shown["left/eye.jpg"]["error"]
    assert shown["third.jpg"]["tasks"]["dr"]["grade"] == 2


@pytest.mark.parametrize(("status", "kind"), [(401, "unauthenticated"), (404, "unknown-model"), (422, "unsupported")])
def test_a_service_that_refuses_every_photograph_is_asked_once(
    server: Server, capsys: pytest.CaptureFixture[str], status: int, kind: str
) -> None:
    server.script = [answer(), problem(status, kind, "words; do this"), answer()]
    out, err = predicted(capsys, "left/eye.jpg", "right/eye.jpg", "third.jpg", "--url", server.url, code=2)
    assert out.count("2 moderate") == 1  # what was graded is shown
    assert err.strip() == "error: some title: words; do this"
    assert len(server.asked) == 2


def test_a_connection_that_breaks_off_goes_unnoticed(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    server.script = [reset, answer()]
    out, err = predicted(capsys, "third.jpg", "--url", server.url)
    assert "2 moderate" in out
    assert err == ""


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["bundle"], ["no photograph is named", "bundle"]),
        (["bundle", "third.jpg", "--explain", "gradcam"], ["--explain", "--url"]),
        (["bundle", "third.jpg", "--lesions"], ["--lesions", "--url"]),
        (["bundle", "third.jpg", "--key-file", "key"], ["--key-file", "--url"]),
        (["bundle", "third.jpg", "--model", "grader"], ["--model", "--url"]),
        (["third.jpg", "--url", "URL", "--storage", "runs"], ["--storage", "leave it out"]),
        (["third.jpg", "--url", "URL", "--explain", "gradcam"], ["--explain", "--out"]),
        (["third.jpg", "--url", "URL", "--enhance"], ["--enhance", "--out"]),
        (["third.jpg", "--url", "URL", "--explain", "guess"], ["guess", "gradcam"]),
        (["third.jpg", "--url", "URL", "--key-file", "nowhere"], ["nowhere", "check the path"]),
        (["third.jpg", "--url", "URL", "--key-file", "third.jpg", "--out", "third.jpg"], ["third.jpg", "--out"]),
        (["third.jpg", "--url", "example.org"], ["example.org", "https://"]),
        (["third.jpg", "--url", "http://example.org", "--key-file", "third.jpg"], ["unencrypted", "https://"]),
        (["--url", "URL"], ["PHOTOGRAPH"]),
    ],
    ids=lambda value: " ".join(value)[:60],
)
def test_wrong_usage_is_one_line_and_asks_nothing(
    server: Server, capsys: pytest.CaptureFixture[str], arguments: list[str], expected: list[str]
) -> None:
    out, err = predicted(capsys, *[server.url if each == "URL" else each for each in arguments], code=2)
    assert out == ""
    assert len(err.strip().splitlines()) == 1, err
    for text in expected:
        assert text in err
    assert server.asked == []
