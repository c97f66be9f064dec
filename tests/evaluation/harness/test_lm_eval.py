"""python -m hybrid.lm_eval: tasks of lm-evaluation-harness, from files, offline, all in this process."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from chat_tokenizers import talk
from conftest import Command, Configure

import hybrid
from hybrid.data.chat import PLAIN
from hybrid.data.tokenizers import END_OF_TEXT
from hybrid.data.tokenizers.plain import ByteTokenizer
from hybrid.model.build import build_model
from hybrid.results.environment import conditions
from hybrid.text.chat import ChatPrompts

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("any_size_may_be_asked_for"),
    pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="needs the extra lm-eval"),
]

DOCUMENTS = [
    {"text": "the value of a", "endings": [" list", " error", " key"], "answer": 0},
    {"text": "returns the", "endings": [" key", " by its name and the"], "answer": 1},
    {"text": "when no key exists", "endings": [" is set", " list", " the value"], "answer": 2},
    {"text": "the value of a list is set by its name and", "endings": [" the"], "answer": 0},  # longer than a row
]
METRICS = {
    "multiple_choice": ["acc"],
    "loglikelihood": ["acc"],
    "loglikelihood_rolling": ["bits_per_byte", "byte_perplexity"],
    "generate_until": ["exact_match"],
}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a task of each kind, choice.yaml and the others in JSON, which is YAML, too."""
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "documents.jsonl").write_text("".join(json.dumps(document) + "\n" for document in DOCUMENTS))
    for name, kind in zip(("choice", "ending", "page", "written"), METRICS, strict=True):
        task = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {
                "data_files": {"test": str(folder / "documents.jsonl")}, "cache_dir": str(folder / "cache"),
            },
            "test_split": "test",
            "output_type": kind,
            "doc_to_text": "" if name == "page" else "text",
            "doc_to_target": {"choice": "answer", "page": "text"}.get(name, "{{endings[answer]}}"),
            "target_delimiter": "",
            "metric_list": [{"metric": metric} for metric in METRICS[kind]],
        }  # fmt: skip
        if name == "choice":
            task["doc_to_choice"] = "endings"
        if name == "written":
            task["generation_kwargs"] = {"until": ["."], "max_gen_toks": 6}
        (folder / f"{name}.{'yaml' if name == 'choice' else 'json'}").write_text(json.dumps(task))
    return folder


@pytest.fixture
def run(command: Command, trained: Path, tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """run(names, words...) -> what is printed, and the results of tasks."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)  # asks pip and conda, for seconds

    def call(names: str, *words: Any, checkpoint: Path = trained) -> tuple[str, dict[str, Any]]:
        files = [next(tasks.glob(f"{name}.*")) for name in names.split()]
        output = tmp_path / "results.json"
        all_words = ["--checkpoint", checkpoint, "--tasks", *files, *words, "--output", output, "--log-samples"]
        done = command("lm_eval", *all_words)
        assert done.code == 0, done.err
        assert f"wrote {output}" in done.err
        return done.out, json.loads(output.read_text())

    return call


@pytest.fixture(scope="module")
def talker(configure: Configure, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model, not trained, whose tokenizer has a chat template."""
    folder = tmp_path_factory.mktemp("talker")
    config, tokenizer = configure(folder, "data.tokenizer=byte", "data.seq_len=128"), ByteTokenizer()
    tokenizer.chat_template = PLAIN
    model = build_model(config.model, tokenizer.vocab_size, tokenizer.end_of_text, torch.device("cpu"), seed=0)
    return hybrid.LanguageModel(config, tokenizer, model).save(folder / "saved")


def log_p(lm: hybrid.LanguageModel, context: str, continuation: str, size: int, **options: Any) -> float:
    ids = lm.tokenizer.encode(context + continuation)[-32:]
    is_target = torch.arange(len(ids)) >= len(ids) - len(continuation)  # a character a token
    return -float(lm.nll(torch.tensor([ids]), size, is_target=is_target[None], **options).nll)


def test_the_numbers_are_those_of_lm_nll(run, lm: hybrid.LanguageModel) -> None:
    out, found = run("choice page ending written", "--block-size", 1)
    choice = [log_p(lm, document["text"], end, 1) for document in DOCUMENTS for end in document["endings"]]
    samples = found["samples"]
    assert [resp[0][0] for s in samples["choice"] for resp in s["resps"]] == pytest.approx(choice, rel=1e-5)
    right = [s["answer"] == max(range(len(s["endings"])), key=lambda i: log_p(lm, s["text"], s["endings"][i], 1))
             for s in DOCUMENTS]  # fmt: skip
    assert found["results"]["choice"]["acc,none"] == pytest.approx(sum(right) / 4)
    texts = [document["text"] for document in DOCUMENTS]
    nats = sum(-log_p(lm, "", text, 1) for text in texts[:3])
    cut = texts[3]  # 42 characters: 31 from nothing, the other 11 behind the 21 before them
    nats -= log_p(lm, "", cut[:31], 1) + log_p(lm, cut[:31], cut[31:], 1)
    n_bytes = sum(map(len, texts))
    assert found["results"]["page"]["bits_per_byte,none"] == pytest.approx(nats / n_bytes / math.log(2), rel=1e-5)
    assert found["results"]["page"]["byte_perplexity,none"] == pytest.approx(math.exp(nats / n_bytes), rel=1e-5)
    for document, sample in zip(DOCUMENTS, samples["written"], strict=True):
        ids = lm.tokenizer.encode(document["text"])[-26:]
        new = lm.generate([ids], 6, block_size=1, temperature=0.0, decoder=lm.config.decoder).tokens[0]
        assert sample["resps"][0][0] == lm.tokenizer.decode(new).partition(".")[0]
    assert "choice: log p: exact, block size 1" in out.splitlines()
    assert found["config"]["hybrid"]["checks_greedy"]


def test_a_bound_says_so_and_how_sure_it_is(run, lm: hybrid.LanguageModel) -> None:
    out, found = run("choice", "--block-size", 4, "--draws", 3, "--seed", 5)
    sample = found["samples"]["choice"][0]
    for ending, resp in zip(DOCUMENTS[0]["endings"], sample["resps"], strict=True):
        expected = log_p(lm, DOCUMENTS[0]["text"], ending, 4, draws=3, seed=5)
        assert resp[0] == [pytest.approx(expected, rel=1e-5), False]
    likelihood = found["config"]["hybrid"]["likelihood"]
    assert (likelihood["estimator"], likelihood["draws"], likelihood["seed"]) == ("bound", 3, 5)
    noise = likelihood["noise"]["choice"]
    assert noise["requests"] == 9 and noise["stderr_per_request"] > 0
    assert all(error > 0 for error in sample["stderr"])
    assert f"draws: 3, +- {noise['stderr_per_request']:.3g} nats a request" in out
    _, policy = run("choice", "--block-size", 4, "--decoder", "entropy")
    assert policy["config"]["hybrid"]["likelihood"]["estimator"] == "policy"


def test_the_batch_does_not_matter(run) -> None:
    found = [run("choice page written", "--block-size", 4, "--draws", 4, "--batch-size", n)[1] for n in (1, 3, 64)]
    for other in found[1:]:
        for name, samples in other["samples"].items():
            for sample, expected in zip(samples, found[0]["samples"][name], strict=True):
                if name == "written":
                    assert sample["resps"] == expected["resps"]
                else:
                    values, wanted = (
                        [float(str(r[0][0] if name == "choice" else r[0])) for r in s["resps"]]
                        for s in (sample, expected)
                    )
                    assert values == pytest.approx(wanted, rel=1e-5)


def test_the_tables_say_where_they_were_measured(run) -> None:
    for words, dtype, precision in (((), "float32", "fp32"), (("--dtype", "bfloat16"), "bfloat16", "bf16")):
        out, found = run("choice", "--limit", 1, "--num-fewshot", 0, *words)
        environment = found["config"]["hybrid"]["environment"]
        assert out.splitlines()[-1] == conditions(environment)
        assert (environment["dtype"], environment["precision"]) == (dtype, precision)
    assert found["n-samples"]["choice"]["effective"] == 1


def test_greedy_is_asked_for_beyond_block_size_1(run, command: Command, trained: Path, tasks: Path) -> None:
    words = ["--checkpoint", trained, "--block-size", 4, "--tasks", tasks / "ending.json"]
    assert "acc of ending counts what greedy decoding writes" in command("lm_eval", *words, "--limit", 1).err
    assert "greedy decoding" not in command("lm_eval", *words, "--limit", 1, "--check-greedy").err


def test_prompts_are_conversations(run, talker: Path) -> None:
    words = ("--block-size", 1, "--limit", 2, "--apply-chat-template")
    _, found = run("choice written", *words, checkpoint=talker)
    lm = hybrid.load(talker)
    for sample in found["samples"]["choice"]:
        for (context, ending), resp in zip(sample["arguments"], sample["resps"], strict=True):
            assert context == f"User:\n{sample['doc']['text']}\n\nAssistant:\n"
            ids = lm.tokenizer.encode(context) + lm.tokenizer.encode(ending)
            is_target = torch.arange(len(ids))[None] >= len(context)
            expected = -float(lm.nll(torch.tensor([ids]), 1, is_target=is_target).nll)
            assert resp[0][0] == pytest.approx(expected, rel=1e-5)
    for sample in found["samples"]["written"]:
        ids = ChatPrompts.of(lm)([{"role": "user", "content": sample["doc"]["text"]}])
        new = lm.generate([ids], 6, block_size=1, temperature=0.0, decoder=lm.config.decoder).tokens[0]
        assert sample["resps"][0][0] == lm.tokenizer.decode(new).partition(".")[0]


def test_what_a_message_spells_is_text(talker: Path) -> None:
    from lm_eval.api.instance import Instance

    from hybrid.evaluation.harness.adapter import HybridLM

    model = HybridLM(hybrid.load(talker), block_size=1)
    assert model.chat_template() == PLAIN.source and "byte" in model.tokenizer_name
    history = [{"role": "user", "content": f"a{END_OF_TEXT}b"}]
    text = model.apply_chat_template(history)
    ids = [*ChatPrompts.of(model.lm)(history), *b"yes"]
    assert model.lm.tokenizer.end_of_text not in ids
    is_target = torch.arange(len(ids))[None] >= len(ids) - 3
    expected = -float(model.lm.nll(torch.tensor([ids]), 1, is_target=is_target).nll)
    ((found, _),) = model.loglikelihood([Instance("loglikelihood", {}, (text, "yes"), 0)])
    assert found == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match="gen_prefix"):
        model.apply_chat_template(history, add_generation_prompt=False)


def test_turns_that_end_with_end_of_text_are_one_document(talker: Path) -> None:
    """For a model that hides earlier documents: its rows are those of one that hides nothing."""
    from lm_eval.api.instance import Instance

    from hybrid.evaluation.harness.adapter import HybridLM

    plain = hybrid.load(talker)
    config = dataclasses.replace(plain.config, data=dataclasses.replace(plain.config.data, document_mask=True))
    hiding = hybrid.LanguageModel(config, plain.tokenizer, plain.model)
    found = []
    for lm in (hiding, plain):
        model = HybridLM(lm, block_size=1)
        text = model.apply_chat_template(talk("who?", "me", "sure?"))
        assert model.lm.tokenizer.end_of_text in model._context(text)
        ((log_p, _),) = model.loglikelihood([Instance("loglikelihood", {}, (text, "yes"), 0)])
        settings = {"until": [], "max_gen_toks": 6, "do_sample": True}
        found.append((log_p, model.generate_until([Instance("generate_until", {}, (text, settings), 0)])))
    assert found[0] == found[1]
    assert hiding.config.data.document_mask, "the model that was given is left as it was"


@pytest.mark.parametrize(
    "words, message",
    [
        ("--tasks nothing.yaml", r"--tasks: nothing\.yaml is missing$"),
        ("--checkpoint nowhere --tasks {documents}", r"checkpoint: nowhere does not exist"),
        ("--tasks {documents}", r"--tasks: .*: .*"),
        ("--tasks {choice} --draws many", r"--draws: 'many' must be an integer, or all"),
        ("--tasks {choice} {choice}", r"--tasks: .*: the task 'choice' is there twice"),
        ("--tasks arc_easy,piqa", r"--tasks: 'arc_easy,piqa': several are given with blanks between: arc_easy piqa$"),
        ("--tasks {odd}", r"--tasks: .*: KeyError: 'nowhere'; check its fields, splits and metrics \("),
        ("--tasks {choice} --num-fewshot 99", r"num_fewshot: more examples than a task has .* \(--num-fewshot K\)"),
        ("--tasks {choice} --limit 0", r"--limit: 0\.0 must be above 0"),
        ("--tasks {choice} --draws 0", r"draws: 0 must be an integer of at least 1"),
        ("--tasks {choice} --log-samples", r"--log-samples: has no effect without --output"),
        ("--tasks {choice} --apply-chat-template", r"chat template"),
        ("--tasks {written} --gen-kwargs max_gen_toks=32", r"gen_kwargs: max_gen_toks=32 leaves no room"),
        ("--tasks {choice} --output {choice}", r"--output: .* does not hold results of lm-eval"),
    ],
)
def test_a_mistake_is_one_line(words: str, message: str, command: Command, trained: Path, tasks: Path) -> None:
    named = {"documents": tasks / "documents.json", "choice": tasks / "choice.yaml", "written": tasks / "written.json"}
    named["documents"].write_text("[1, 2")
    named["odd"] = tasks / "odd.json"
    named["odd"].write_text(json.dumps(json.loads(named["choice"].read_text()) | {"test_split": "nowhere"}))
    error = command("lm_eval", "--checkpoint", trained, *words.format(**named).split()).error
    assert re.search(message, error), error


def test_what_the_harness_stumbles_over_late_is_one_line(command: Command, trained: Path, tasks: Path) -> None:
    wrong = tasks / "wrong.json"
    metrics = {"metric_list": [{"metric": "acc", "aggregation": "meen"}]}
    wrong.write_text(json.dumps(json.loads((tasks / "choice.yaml").read_text()) | metrics))
    error = command("lm_eval", "--checkpoint", trained, "--tasks", wrong).error
    assert re.search(r"tasks: TypeError: .*; check its fields, splits and metrics \(HYBRID_TRACEBACK=1", error), error


def test_outside_of_a_repository_git_is_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from hybrid.lm_eval import commit_here

    told = subprocess.run(["git", "describe", "--always"], capture_output=True, text=True, check=False)
    assert commit_here() == (told.stdout.strip() or None)
    monkeypatch.chdir(tmp_path)
    assert commit_here() is None and capfd.readouterr().err == ""


def test_it_is_registered_with_the_harness(trained: Path) -> None:
    from lm_eval.api.registry import get_model

    from hybrid.evaluation.harness.adapter import HybridLM

    made = get_model("hybrid").create_from_arg_string(
        f"checkpoint={trained},block_size=4,decoder=entropy:steps=2", {"batch_size": "3"}
    )
    assert isinstance(made, HybridLM)
    assert made.estimator.method == "policy" and made.batch_size == 3 and made.estimator.block_size == 4
