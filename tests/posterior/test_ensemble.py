"""Ensembles: each draw is what a member was when it was saved."""

from __future__ import annotations

import errno
import io
import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    MixtralConfig,
    MixtralForSequenceClassification,
    PreTrainedModel,
    TrainerCallback,
    TrainingArguments,
)

from baal_hf import BaalTransformersTrainer, Ensemble, train_ensemble
from baal_hf.posterior import weights
from tests.posterior.laws import drawn, llama, tokens

# peft reads a property that transformers has since renamed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

INPUTS = tokens([5, 8])


@pytest.fixture
def checkpoints(tmp_path: Path) -> Path:
    """A folder as a Trainer leaves it: checkpoint-2, checkpoint-10 and checkpoint-30, the last in shards."""
    for step in (2, 10, 30):
        llama(seed=step).save_pretrained(tmp_path / f"checkpoint-{step}", max_shard_size="4KB" if step == 30 else "1GB")
    (tmp_path / "runs").mkdir()
    return tmp_path


def logits(model: nn.Module) -> Tensor:
    """One plain pass."""
    with torch.no_grad():
        return model(**INPUTS).logits


def test_members_are_the_checkpoints_in_order(checkpoints: Path) -> None:
    """The folder's checkpoints are members in the order of their steps, in one file or in shards."""
    ensemble, model = Ensemble(checkpoints), llama()
    assert ensemble.size == 3
    assert (checkpoints / "checkpoint-30" / "model.safetensors.index.json").exists()
    for t, step in enumerate((2, 10, 30)):
        assert torch.equal(drawn(model, ensemble, t, **INPUTS), logits(llama(seed=step)))
    assert torch.equal(logits(model), logits(llama()))


def test_other_forms_of_members(checkpoints: Path, tmp_path: Path) -> None:
    """State dicts, files of safetensors and a folder of such files are members too."""
    folder = tmp_path / "files"
    folder.mkdir()
    for name, step in (("b-10", 10), ("b-2", 2)):
        save_file(llama(seed=step).state_dict(), folder / f"{name}.safetensors")
    expected = logits(llama(seed=10))
    mixed = Ensemble([llama(seed=10).state_dict(), folder / "b-10.safetensors", str(checkpoints / "checkpoint-10")])
    for posterior, t in ((mixed, 0), (mixed, 1), (mixed, 2), (Ensemble(folder), 1)):
        assert torch.equal(drawn(llama(), posterior, t, **INPUTS), expected)


def test_tied_weights_are_saved_once_and_stay_tied(tmp_path: Path) -> None:
    """A checkpoint that has a tied weight under one of its names fits, and the tie holds afterwards."""
    config = GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=99)
    model, member = GPT2LMHeadModel(config).eval(), GPT2LMHeadModel(config).eval()
    member.save_pretrained(tmp_path / "a")
    assert torch.equal(drawn(model, Ensemble(tmp_path), 0, **INPUTS), logits(member))
    assert model.lm_head.weight is model.transformer.wte.weight


def test_checkpoints_in_another_layout_than_the_models(tmp_path: Path) -> None:
    """Mixtures of experts are saved expert by expert, and are read back as the model has them."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = MixtralConfig(**sizes, intermediate_size=24, num_local_experts=2, vocab_size=99, pad_token_id=0)
    model, member = MixtralForSequenceClassification(config).eval(), MixtralForSequenceClassification(config).eval()
    member.save_pretrained(tmp_path / "a")
    torch.testing.assert_close(drawn(model, Ensemble(tmp_path), 0, **INPUTS), logits(member))


def lora(base: PreTrainedModel, seed: int) -> PeftModel:
    """The base with an adapter and a head of its own."""
    settings = LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["q_proj", "v_proj"], lora_dropout=0.2)
    model = get_peft_model(base, settings).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                weight.normal_(0, 0.5, generator=generator)
    return model


def test_adapters_are_exchanged_on_one_base(tmp_path: Path) -> None:
    """Members that are LoRA adapters exchange adapter and head; the base's weights are neither read nor written."""
    expected = []
    for seed in (1, 2):
        member = lora(llama(), seed)
        member.save_pretrained(tmp_path / f"adapter-{seed}")
        expected.append(logits(member))
    model = PeftModel.from_pretrained(llama(), tmp_path / "adapter-1").eval()
    base = model.get_base_model().model.layers[0].self_attn.q_proj.base_layer.weight
    version = base._version
    ensemble = Ensemble(tmp_path)
    for t in (1, 0):
        torch.testing.assert_close(drawn(model, ensemble, t, **INPUTS), expected[t])
    torch.testing.assert_close(logits(model), expected[0])
    assert base._version == version
    with pytest.raises(ValueError, match="is an adapter, and LlamaForSequenceClassification has none"):
        drawn(llama(), ensemble, 0, **INPUTS)


def test_adapters_inside_a_model_of_transformers(tmp_path: Path) -> None:
    """A model to which transformers itself has added an adapter takes members too."""
    settings = LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["q_proj"], init_lora_weights=False)
    model = llama()
    model.add_adapter(settings)
    model.eval()
    expected = logits(model)
    model.save_pretrained(tmp_path / "a")
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.zero_()
    assert not torch.allclose(logits(model), expected)
    torch.testing.assert_close(drawn(model, Ensemble(tmp_path), 0, **INPUTS), expected)


def test_a_failed_read_leaves_the_model(checkpoints: Path) -> None:
    """If a member's file turns out broken half-way, the model has its own weights again."""
    ensemble, model = Ensemble(checkpoints), llama()
    (checkpoints / "checkpoint-2" / "model.safetensors").write_bytes(b"broken")
    expected = logits(model)
    with pytest.raises(ValueError, match=r"checkpoint-2/model.safetensors: .*Is it whole"):
        drawn(model, ensemble, 0, **INPUTS)
    assert torch.equal(logits(model), expected)
    drawn(model, ensemble, 1, **INPUTS)


def test_bad_members(checkpoints: Path) -> None:
    """Folders without checkpoints, pickled weights, and members of other shapes or names are refused by name."""
    with pytest.raises(FileNotFoundError, match="no folder"):
        Ensemble(checkpoints / "nowhere")
    with pytest.raises(FileNotFoundError, match="no member"):
        Ensemble([checkpoints / "nowhere"])
    with pytest.raises(ValueError, match="no checkpoints in"):
        Ensemble(checkpoints / "runs")
    torch.save({}, checkpoints / "runs" / "pytorch_model.bin")
    with pytest.raises(ValueError, match="Pickled weights"):
        Ensemble([checkpoints / "runs"])
    with pytest.raises(ValueError, match="at least one member"):
        Ensemble([])
    wider = llama(num_labels=5).state_dict()
    with pytest.raises(ValueError, match=r"score.weight is \[5, 16\] there and \[3, 16\] here"):
        drawn(llama(), Ensemble([wider]), 0, **INPUTS)
    with pytest.raises(ValueError, match=r"it has no model.norm.weight\."):
        drawn(llama(), Ensemble([{n: w for n, w in llama().state_dict().items() if n != "model.norm.weight"}]), 0)
    with pytest.raises(ValueError, match="the model has no other"):
        drawn(llama(), Ensemble([{**llama().state_dict(), "other": torch.ones(1)}]), 0)


def test_a_full_disk_leaves_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the weights cannot be kept aside, nothing is written over them."""
    model = llama()
    expected = logits(model)

    class Full(io.BytesIO):
        def write(self, _: object) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(weights, "TemporaryFile", Full)
    with pytest.raises(OSError, match="No space left"):
        drawn(model, Ensemble([llama(1).state_dict()]), 0, **INPUTS)
    assert torch.equal(logits(model), expected)


def test_the_active_adapter_is_exchanged(tmp_path: Path) -> None:
    """Of several adapters that of the model's present answers; with two active ones it is not clear which."""
    for seed in (1, 2):
        lora(llama(), seed).save_pretrained(tmp_path / f"adapter-{seed}")
    model = PeftModel.from_pretrained(llama(), tmp_path / "adapter-1").eval()
    model.load_adapter(tmp_path / "adapter-1", "second")
    model.set_adapter("second")
    ensemble = Ensemble(tmp_path)
    assert not torch.allclose(*(drawn(model.eval(), ensemble, t, **INPUTS) for t in range(2)))
    settings = LoraConfig(r=2, target_modules=["q_proj"])
    both = get_peft_model(llama(), settings)
    both.add_adapter("second", settings)
    both.base_model.set_adapter(["default", "second"])
    with pytest.raises(ValueError, match="and 2 are"):
        drawn(both, ensemble, 0, **INPUTS)


def test_a_checkpoint_in_shards_is_one_member(checkpoints: Path) -> None:
    """A folder that is a checkpoint itself is an ensemble of one, not of its shards."""
    assert Ensemble(checkpoints / "checkpoint-30").size == 1
    with pytest.raises(TypeError, match="give a list"):
        Ensemble(llama().state_dict())  # type: ignore[arg-type]


def rows() -> Dataset:
    """Rows of tokens with a class."""
    inputs = tokens([6] * 12)
    columns = {name: value.tolist() for name, value in inputs.items()}
    return Dataset.from_dict({**columns, "label": [row % 3 for row in range(12)]})


def trainer(folder: Path, model: nn.Module | None = None, **settings: object) -> BaalTransformersTrainer:
    """A trainer of two epochs on a few rows."""
    given = {"num_train_epochs": 2, "save_strategy": "no", "learning_rate": 1e-2, **settings}
    arguments = TrainingArguments(
        str(folder), use_cpu=True, report_to="none", disable_tqdm=True, per_device_train_batch_size=4, **given
    )  # type: ignore[arg-type]
    return BaalTransformersTrainer(model if model is not None else llama(), arguments, train_dataset=rows())


def test_train_ensemble(tmp_path: Path) -> None:
    """Members start from the same weights, differ by their seeds, and are had again with the same seeds."""
    machine = trainer(tmp_path)
    ensemble = train_ensemble(machine, 2)
    assert machine.args.seed == 42 and [Path(member).name for member in ensemble.members] == ["member-0", "member-1"]
    machine.posterior = ensemble
    probs = machine.predict_on_dataset(rows(), iterations=2)
    assert abs(probs[..., 0] - probs[..., 1]).max() > 1e-3
    torch.testing.assert_close(logits(machine.model.eval()), drawn(llama(), ensemble, 1, **INPUTS))
    again = train_ensemble(trainer(tmp_path / "again"), 1, seeds=[43])
    torch.testing.assert_close(drawn(llama(), again, 0, **INPUTS), drawn(llama(), ensemble, 1, **INPUTS))
    with pytest.raises(ValueError, match="different seeds"):
        train_ensemble(machine, 2, seeds=[1, 1])
    with pytest.raises(ValueError, match="members >= 1"):
        train_ensemble(machine, 0)


def test_train_ensemble_of_adapters(tmp_path: Path) -> None:
    """With an adapter in the model only adapters are saved, and each starts from the first one's beginning."""
    machine = trainer(tmp_path, lora(llama(), 1))
    begun = logits(machine.model.eval())
    ensemble = train_ensemble(machine, 2)
    assert all((Path(member) / "adapter_model.safetensors").exists() for member in ensemble.members)
    fresh = lora(llama(), 1)
    torch.testing.assert_close(logits(fresh), begun)
    first, second = (drawn(fresh, ensemble, t, **INPUTS) for t in range(2))
    assert not torch.allclose(first, second, atol=1e-4) and not torch.allclose(first, begun, atol=1e-4)


def test_snapshots_of_one_run(tmp_path: Path) -> None:
    """Checkpoints of a run with warm restarts are a snapshot ensemble, with nothing but Trainer's own arguments."""
    machine = trainer(
        tmp_path, num_train_epochs=4, save_strategy="epoch", lr_scheduler_type="cosine_with_restarts",
        lr_scheduler_kwargs={"num_cycles": 4},
    )  # fmt: skip
    rates: list[float] = []

    class Noted(TrainerCallback):
        def on_step_end(self, *_: object, lr_scheduler: torch.optim.lr_scheduler.LRScheduler, **__: object) -> None:
            rates.append(lr_scheduler.get_last_lr()[0])

    machine.add_callback(Noted())
    machine.train()
    machine.posterior = Ensemble(tmp_path)
    assert machine.posterior.size == 4
    assert sum(after > before for before, after in pairwise(rates)) == 3  # restarts
    probs = machine.predict_on_dataset(rows(), iterations=4)
    assert probs.std(-1).max() > 1e-3


def test_weights_are_put_in_place_once_for_many_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Predictions read each member once for 16 batches, and are those of the members one by one."""
    machine = trainer(tmp_path, per_device_eval_batch_size=1)
    machine.posterior = Ensemble([llama(seed).state_dict() for seed in (1, 2)])
    opened: list[int] = []
    draw = Ensemble.draw
    monkeypatch.setattr(Ensemble, "draw", lambda self, model, t: (opened.append(t), draw(self, model, t))[1])
    probs = machine.predict_on_dataset(rows(), iterations=2)
    assert opened == [0, 1]
    alone = trainer(tmp_path, llama(2), per_device_eval_batch_size=5)
    alone.posterior = Ensemble([llama(2).state_dict()])
    torch.testing.assert_close(torch.tensor(probs[..., 1]), torch.tensor(alone.predict_on_dataset(rows())[..., 0]))


def test_manifest_of_shards_is_read_as_it_is(checkpoints: Path) -> None:
    """A shard that is named and not there is an error that names it."""
    index = checkpoints / "checkpoint-30" / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["score.weight"] = "missing.safetensors"
    index.write_text(json.dumps(content))
    with pytest.raises(FileNotFoundError, match=r"missing\.safetensors"):
        drawn(llama(), Ensemble(checkpoints), 2, **INPUTS)
