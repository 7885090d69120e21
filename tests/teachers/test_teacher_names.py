"""``vlm:`` and ``http:`` as names: label, evaluate and ask, as a user types them."""

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_http_teacher import Reply, said, serving
from tiny_vlms import SAVERS, save_llava, save_mobilevlm
from tokenizers import Tokenizer

from stillroom import cli, registry
from stillroom.records import BadInputError
from stillroom.teachers.http_client import KEY_VARIABLE
from stillroom.teachers.label_store import open_labels
from stillroom.testing import tiny_store


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_store(tmp_path_factory.mktemp("scenes") / "tiny", scenes=2)


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llava(tmp_path_factory.mktemp("llava"))


def run(*words: object) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main([str(word) for word in words])
    return int(ended.value.code or 0)


def test_label_with_a_vlm_keeps_answers_and_logits(
    scenes: Path, llava: Path, tmp_path: Path
) -> None:
    out = tmp_path / "labels"
    assert run("label", scenes, "--teacher", f"vlm:{llava}", "--out", out) == 0
    store = open_labels(out)
    assert len(store) == 8
    label = store.labels(store.scene_ids()[0])[0]
    assert label.topk_ids.shape == (len(label.answer_ids), 32)
    told = store.settings["teacher"]
    assert (told["kind"], told["views"], told["decoding"]) == ("vlm", 8, "greedy")
    assert str(llava.parent) not in json.dumps(told)


def test_evaluate_a_vlm_and_an_endpoint(scenes: Path, llava: Path, tmp_path: Path) -> None:
    with serving(lambda number, body: said("red table")) as server:
        names = (f"vlm:{llava}", f"http:{server.url}#tiny")
        for number, name in enumerate(names):
            out = tmp_path / str(number)
            assert run("evaluate", name, scenes, "--out", out) == 0
            rows = json.loads((out / "results.json").read_text())["rows"]
            assert {name, "truth", f"shuffled:{name}"} <= set(rows)
    # Half of the questions are answered by "red table", and the photos do not matter.
    assert rows[name]["overall"]["score"] == 0.5
    assert rows[f"shuffled:{name}"]["overall"]["score"] == 0.5


def test_ask_a_mobilevlm_and_an_endpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (40, 30, 3), dtype=np.uint8)).save(photos / "a.png")
    folder = save_mobilevlm(tmp_path / "mobile")
    assert run("ask", f"vlm:{folder}", photos, "Where is the lamp?") == 0
    capsys.readouterr()
    with serving(lambda number, body: said("on the table")) as server:
        assert run("ask", f"http:{server.url}#tiny", photos, "Where is the lamp?") == 0
    assert "on the table" in capsys.readouterr().out


def test_an_endpoint_in_trouble_is_exit_code_2_and_one_line(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = Reply(body=b"<html></html>", headers={"Content-Type": "text/html"})
    with serving(lambda number, body: page) as server:
        words = ("--teacher", f"http:{server.url}#m", "--signals", "answers")
        assert run("label", scenes, *words, "--out", tmp_path / "labels") == 2
    told = capsys.readouterr().err
    assert "answered a web page instead of JSON" in told
    assert told.count("\n") == 1


def test_an_endpoint_that_fails_costs_one_scene_at_most(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "labels"

    def answer(number: int, body: object) -> Reply:
        return Reply(status=403) if number == 6 else said("one")

    with serving(answer) as server:
        words = ("--teacher", f"http:{server.url}#m", "--signals", "answers", "--out", out)
        assert run("label", scenes, *words) == 2
        assert run("labels", "status", out, "--json") == 0
        assert json.loads(capsys.readouterr().out)["rows"] == 4
        assert run("label", scenes, *words) == 0
        assert len(server.asked) == 4 + 3 + 4
    assert len(open_labels(out)) == 8


def test_labels_with_predicted_geometry_say_so_and_are_another_store(
    scenes: Path, tmp_path: Path
) -> None:
    out = tmp_path / "labels"
    words = ("label", scenes, "--teacher", "teacher_mini", "--signals", "answers", "--out", out)
    assert run(*words, "--geometry", "predicted") == 0
    revision = open_labels(out).settings["teacher"]["predicted_geometry"]
    assert revision == registry.describe("encoder_mini")["revision"]
    assert run(*words) == 2


@pytest.mark.parametrize("teacher", ["truth", "http:http://host/v1#m"])
def test_who_reads_no_geometry_gets_none_predicted(
    teacher: str, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "labels"
    words = ("--teacher", teacher, "--signals", "answers", "--geometry", "predicted")
    assert run("label", scenes, *words, "--out", out) == 2
    assert "reads no depth and poses; leave --geometry predicted out" in capsys.readouterr().err
    assert not out.exists()


def test_a_vlm_is_told_by_its_weights_and_an_endpoint_by_its_address(
    llava: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "sk-secret")
    again = save_llava(tmp_path / "again")
    one, other = (registry.describe(f"vlm:{folder}") for folder in (llava, again))
    assert one["revision"] == other["revision"]
    file = again / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "note": "another"}))
    registry.weights_digest.cache_clear()
    assert registry.describe(f"vlm:{again}")["revision"] != one["revision"]
    told = registry.describe("http:https://host/v1/#big-model")
    assert told["name"] == "http:https://host/v1#big-model"
    assert told["revision"] == "https://host/v1#big-model"
    assert "sk-secret" not in json.dumps(told)


def hub_page(cache: Path, folder: Path, *, commit: str) -> str:
    """A checkpoint as the hub's client has it in its cache, and its id."""
    page = cache / "models--someone--tiny"
    (page / "refs").mkdir(parents=True)
    (page / "refs" / "main").write_text(commit)
    shutil.copytree(folder, page / "snapshots" / commit)
    return "someone/tiny"


def test_a_vlm_of_the_hub_is_told_by_its_commit(
    llava: Path, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    commit = "0123456789abcdef0123456789abcdef01234567"
    name = hub_page(tmp_path, llava, commit=commit)
    told = registry.describe(f"vlm:{name}")
    assert (told["name"], told["revision"]) == (f"vlm:{name}", commit)
    out = tmp_path / "labels"
    assert run("label", scenes, "--teacher", f"vlm:{name}", "--out", out) == 0
    store = open_labels(out)
    assert store.settings["teacher"]["revision"] == commit
    assert store.vocabulary == registry.vocabulary(f"vlm:{llava}")
    with pytest.raises(BadInputError, match="cannot fetch someone/else from the hub"):
        registry.describe("vlm:someone/else")


@pytest.mark.parametrize("name", SAVERS)
def test_a_vlm_tells_its_vocabulary_without_its_weights(name: str, tmp_path: Path) -> None:
    folder = SAVERS[name](tmp_path)
    for file in tmp_path.glob("*.safetensors"):
        file.unlink()
    found = registry.vocabulary(f"vlm:{folder}")
    known = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert found.rows == known.get_vocab_size()
    assert [found.tokens[number] for number in known.encode("red table").ids] == (
        known.encode("red table").tokens
    )
    (folder / "tokenizer.json").rename(tmp_path / "elsewhere.json")
    if name != "mobilevlm":
        assert registry.vocabulary(f"vlm:{folder}") is None


def test_who_tells_no_tokens_has_no_vocabulary() -> None:
    assert registry.vocabulary("http:http://host/v1#m") is None
    assert registry.vocabulary("truth") is None


def test_kinds_and_parameters(llava: Path) -> None:
    assert registry.kind_of(f"vlm:{llava}") == ("vlm", str(llava))
    assert registry.kind_of("http:http://h:1/v1#m") == ("http", "http://h:1/v1#m")
    assert registry.parameters("http:http://h:1/v1#m") is None
    assert registry.parameters(f"vlm:{llava}") > 10_000
    pickle.dumps(registry.predicting(registry.teacher_loader(f"vlm:{llava}"), "encoder_mini"))


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("vlm:", "names no model behind the colon"),
        ("vlm:./nowhere", "model not found"),
        ("http:host#m", "is no web address"),
        ("http://host/v1#m", "http:https://HOST/v1#MODEL"),
        ("http:http://host/v1", "name the endpoint's model behind a #"),
        ("student_mini", r"vlm:WHERE, http:ADDRESS#MODEL or truth"),
    ],
)
def test_names_that_are_no_teacher_s_are_refused(name: str, sentence: str) -> None:
    with pytest.raises(BadInputError, match=sentence):
        registry.teacher(name)
