"""Completeness: every dropout rate of every family that can be built small is drawn, and drawn as one network."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from inspect import signature
from types import MappingProxyType

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from baal_hf import MCDropout, dropout_report
from baal_hf.posterior import network as networks
from tests.posterior.families import TASKS, build, configuration, dropout_rates, inputs, output
from tests.posterior.family_settings import REFUSED, SHIFTED, UNBUILT

pytestmark = [
    # Models of transformers tell of their own old ways, and of tiny configurations; none of it is about draws.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

PASSES = 24
LAYOUTS = ["neighbour", "padding right", "padding left"]
FAST = {
    "sequence classification": ["albert", "bart", "bert", "deberta-v2", "distilbert", "longformer", "t5", "xlnet"],
    "token classification": ["roformer"],
    "seq2seq LM": ["pegasus", "t5"],
    "image classification": ["swin", "vit"],
    "causal LM": ["gpt2", "llama", "mixtral", "xglm"],
}


def cases(tasks: list[str], failing: Mapping[tuple[str, str], str] = MappingProxyType({})) -> list[object]:
    """All families that can be built; those that are not in the selection are slow."""

    def marks(task: str, family: str) -> list[pytest.MarkDecorator]:
        known = failing.get((task, family))
        slow = [] if family in FAST[task] else [pytest.mark.slow]
        return [*slow, pytest.mark.xfail(reason=known, strict=True)] if known else slow

    return [
        pytest.param(task, family, id=f"{task}-{family}", marks=marks(task, family))
        for task in tasks
        for family in TASKS[task]
        if family not in UNBUILT
    ]


@pytest.fixture(scope="module")
def counts(request: pytest.FixtureRequest) -> Iterator[dict[str, Counter[str]]]:
    """What was found of each mapping, shown as a table in the end."""
    found: dict[str, Counter[str]] = defaultdict(Counter)
    yield found
    # The last three: families whose rows are theirs alone without dropout, and so compared in draws.
    columns = ["families", "run", "rates", "vary in training", "fire in draws", *LAYOUTS]
    width = 25
    lines = ["", "".join(f"{name:>{width}}" for name in ["", *columns])]
    for task, count in found.items():
        count["families"] = len(TASKS[task])
        lines.append("".join(f"{cell:>{width}}" for cell in [task, *(count[name] for name in columns)]))
        missing = [f"{family} ({UNBUILT[family]})" for family in TASKS[task] if family in UNBUILT]
        lines += [f"{'not built:':>{width}} {', '.join(missing)}"] if missing else []
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print("\n".join(lines))


def spread(one: Callable[[int], Tensor]) -> float:
    """Standard deviation of outputs over passes, averaged over outputs."""
    with torch.no_grad():
        return float(torch.stack([one(t) for t in range(PASSES)]).double().std(0).mean())


def training_spread(model: nn.Module, given: dict[str, Tensor]) -> float:
    """The spread in training mode by dropout alone: batch norm keeps its statistics."""
    model.train()
    for part in model.modules():
        part.train(not isinstance(part, nn.modules.batchnorm._BatchNorm))
    torch.manual_seed(0)
    return spread(lambda _: output(model, given))


def drawn_spread(model: nn.Module, given: dict[str, Tensor], posterior: MCDropout) -> float:
    """The spread over draws; 0 where there is no dropout to draw."""

    def one(t: int) -> Tensor:
        with posterior.draw(model, t):
            return output(model, given)

    try:
        return spread(one)
    except ValueError as error:
        if "no active dropout" not in str(error):
            raise
        return 0.0


@pytest.mark.parametrize(("task", "family"), cases(list(TASKS)))
def test_each_rate_fires_alone(task: str, family: str, counts: dict[str, Counter[str]]) -> None:
    """Where a rate alone makes training vary, draws vary about as much, and evaluation does not, before or after."""
    failed = {}
    counts[task]["run"] += 1
    for rate in dropout_rates(configuration(task, family)):
        if (family, rate) in REFUSED:
            continue
        model = build(task, family, {rate: 0.4})
        given = inputs(task, model)
        with torch.no_grad():
            before = output(model, given)
            fresh = drawn_spread(model, given, MCDropout(masks="fresh"))
            shared = drawn_spread(model, given, MCDropout())
            assert torch.equal(output(model, given), before), rate
            assert torch.equal(output(model, given), before), rate
        training = training_spread(model, given)
        varies = training > 1e-4 * float(before.abs().mean())
        # Shared masks do not average out over P positions: pooled outputs vary up to √P times as much.
        fires = 0.4 * training < fresh < 2.5 * training and 0.2 * training < shared < 10 * training
        counts[task] += Counter({"rates": 1, "vary in training": varies, "fire in draws": varies and fires})
        if varies and not fires:
            failed[rate] = {"training": training, "fresh": fresh, "shared": shared}
    assert not failed


@pytest.mark.parametrize(("task", "family"), cases(list(TASKS)))
def test_report_has_all_that_fires(task: str, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every module in which a draw drops something is in the report as a site that fires, or has one in it."""
    rates = {rate: 0.3 for rate in dropout_rates(configuration(task, family)) if (family, rate) not in REFUSED}
    model = build(task, family, rates)
    fired: set[str] = set()
    for name in ("feature_mask", "attention_mask", "placed_attention_mask"):
        original = getattr(networks, name)

        def noted(key: str, *rest: object, original: Callable[..., Tensor] = original) -> Tensor:
            fired.add(key.split("/", 2)[2].rpartition("/")[0])
            return original(key, *rest)

        monkeypatch.setattr(networks, name, noted)
    drawn_spread(model, inputs(task, model), MCDropout())
    reported = {site.where for site in dropout_report(model).sites if site.fires}
    assert not {path for path in fired if not any(site == path or site.startswith(f"{path}.") for site in reported)}


def layouts(task: str, model: nn.Module) -> Iterator[tuple[str, dict[str, Tensor], dict[str, Tensor], slice]]:
    """A row of five tokens alone, and as the first of a batch; and where its tokens are there."""
    ids = torch.tensor([[11, 12, 13, 14, 2], [21, 22, 23, 24, 2]])
    longer = torch.tensor([[31, 32, 33, 34, 35, 36, 37, 2]])
    alone = {"input_ids": ids[:1], "attention_mask": torch.ones(1, 5, dtype=torch.long)}
    neighbour = {"input_ids": ids, "attention_mask": torch.ones(2, 5, dtype=torch.long)}
    right, left = (
        {
            "input_ids": torch.cat([F.pad(ids[:1], pads), longer]),
            "attention_mask": torch.cat([F.pad(alone["attention_mask"], pads), torch.ones_like(longer)]),
        }
        for pads in ((0, 3), (3, 0))
    )
    batches = [(neighbour, slice(5)), (right, slice(5)), (left, slice(-5, None))]
    for name, (batch, tokens) in zip(LAYOUTS, batches, strict=True):
        one, many = dict(alone), dict(batch)
        if model.config.is_encoder_decoder and task == "seq2seq LM":
            one["decoder_input_ids"] = ids[:1]
            many["decoder_input_ids"] = ids
            tokens = slice(5)
        elif "position_ids" in signature(model.forward).parameters:
            for given in (one, many):
                given["position_ids"] = (given["attention_mask"].cumsum(1) - 1).clamp(min=0)
        yield name, one, many, slice(None) if task == "sequence classification" else tokens


@pytest.mark.parametrize(("task", "family"), cases([task for task in TASKS if "image" not in task], SHIFTED))
def test_draws_do_not_see_padding(task: str, family: str, counts: dict[str, Counter[str]]) -> None:
    """Where a row's output does not depend on neighbours and padding without dropout, it does not in a draw."""
    rates = {rate: 0.3 for rate in dropout_rates(configuration(task, family)) if (family, rate) not in REFUSED}
    model = build(task, family, rates)
    changed = {}
    for name, one, many, tokens in layouts(task, model):

        def difference(one: dict[str, Tensor] = one, many: dict[str, Tensor] = many, tokens: slice = tokens) -> float:
            alone, among = output(model, one)[0], output(model, many)[0][tokens]
            return float((alone - among).abs().max() / alone.abs().max())

        with torch.no_grad():
            try:
                exact = difference()
            except (RuntimeError, TypeError, ValueError, IndexError):
                continue  # a layout that the model does not take
            if not exact < 1e-5:
                continue
            counts[task][name] += 1
            worst = 0.0
            for t in range(3):
                try:
                    with MCDropout().draw(model, t):
                        worst = max(worst, difference())
                except ValueError as error:
                    if "no active dropout" not in str(error):
                        raise
        if worst > 1e-4:
            changed[name] = {"draw": worst, "without": exact}
    assert not changed
