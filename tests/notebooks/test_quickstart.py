"""The notebook is run as a reader runs it, smaller; its own variables say afterwards what it did."""

import json
import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "quickstart.ipynb"

SMALL = """
documents_per_class, num_hidden_layers, max_length = 12, 2, 16
initial, query_size, rounds, iterations, pool_sample, num_train_epochs = 5, 6, 2, 4, 25, 1
output_dir = {output_dir!r}
"""

FINDINGS = """
import json
print(json.dumps({
    "records": records,
    "shape": predictions.shape,
    "sums": [float(predictions.sum(axis=1).min()), float(predictions.sum(axis=1).max())],
    "draws_differ": bool(np.ptp(predictions, axis=-1).max() > 0),
    "scores": scores[ranks].tolist(),
    "off": float(np.abs(scores - by_hand).max()),
    "labelled_columns": dataset.labelled.column_names,
    "pool_columns": dataset.pool.column_names,
    "queried": row_ids.tolist(),
    "labels": {row["__row_id__"]: row["labels"] for row in mine.labelled},
    "truth": train["labels"][:],
    "lengths": [len(text) for text in train["text"]],
}))
"""


@pytest.fixture(scope="module")
def notebook() -> nbformat.NotebookNode:
    return nbformat.read(NOTEBOOK, as_version=4)


@pytest.fixture(scope="module")
def executed(notebook: nbformat.NotebookNode, tmp_path_factory: pytest.TempPathFactory) -> nbformat.NotebookNode:
    """The notebook after a run at a small size: `install` is left out, a cell after `parameters` overrides them."""
    folder = tmp_path_factory.mktemp("notebook")
    cells = [cell for cell in notebook.cells if "install" not in cell.metadata.get("tags", [])]
    (place,) = (i for i, cell in enumerate(cells) if "parameters" in cell.metadata.get("tags", []))
    cells.insert(place + 1, nbformat.v4.new_code_cell(SMALL.format(output_dir=str(folder / "quickstart"))))
    cells.append(nbformat.v4.new_code_cell(FINDINGS))
    small = nbformat.v4.new_notebook(cells=cells, metadata=notebook.metadata)
    client = NotebookClient(small, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(folder)}})
    return client.execute(env={**os.environ, "OMP_NUM_THREADS": "1"})


@pytest.fixture(scope="module")
def findings(executed: nbformat.NotebookNode) -> dict:
    (output,) = executed.cells[-1].outputs
    return json.loads(output.text)


def outputs(executed: nbformat.NotebookNode, cell_id: str) -> list[nbformat.NotebookNode]:
    (cell,) = (cell for cell in executed.cells if cell.id == cell_id)
    return cell.outputs


def test_file_is_clean_and_opens_in_colab(notebook: nbformat.NotebookNode) -> None:
    """No outputs are stored, one cell installs, one has the settings, ids are names, and the badge opens this file."""
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)
    tags = [tag for cell in code for tag in cell.metadata.get("tags", [])]
    assert tags == ["install", "parameters"]
    link = "https://colab.research.google.com/github/baal-hf/baal_hf/blob/main/notebooks/quickstart.ipynb"
    assert link in notebook.cells[0].source
    assert "git+https://github.com/baal-hf/baal_hf" in code[0].source


def test_labels_are_hidden_in_the_pool(executed: nbformat.NotebookNode, findings: dict) -> None:
    """Labelled rows have labels, the pool has none."""
    assert "labels" in findings["labelled_columns"]
    assert set(findings["labelled_columns"]) - set(findings["pool_columns"]) == {"labels"}
    assert "48 rows to label, 12 rows to test on" in outputs(executed, "documents")[0].text


def test_predictions_are_probabilities_of_draws_that_differ(findings: dict) -> None:
    """The reader sees [N, C, T], sums of 1 over classes, and draws that are different networks."""
    assert findings["shape"] == [25, 5, 4]
    assert findings["sums"] == pytest.approx([1, 1], abs=1e-5)
    assert findings["draws_differ"]


def test_texts_are_shown_from_most_to_least_informative(executed: nbformat.NotebookNode, findings: dict) -> None:
    """Scores fall along the ranking, equal the formula, and those printed are the first and the last."""
    scores = findings["scores"]
    assert scores == sorted(scores, reverse=True) and scores[0] > scores[-1] >= 0
    assert findings["off"] < 1e-5
    printed = "".join(output.text for output in outputs(executed, "scores"))
    for score in scores[:5] + scores[-5:]:
        assert f"  {score:.4f}  " in printed


def test_a_persons_answers_become_labels(executed: nbformat.NotebookNode, findings: dict) -> None:
    """The queried rows and one pool position have the answers given, and an unknown class was refused."""
    assert len(set(findings["queried"])) == 3 and all(
        findings["lengths"][row_id] < 1200 for row_id in findings["queried"]
    )
    labels = {int(row_id): label for row_id, label in findings["labels"].items()}
    assert set(findings["queried"]) < set(labels) and len(labels) == 4
    assert all(findings["truth"][row_id] == label for row_id, label in labels.items())
    assert "refused: Unknown label 'weather'" in outputs(executed, "label")[-1].text


def test_rounds_grow_by_query_size_from_the_same_start(findings: dict) -> None:
    """BALD and Random label alike many rows, and share the first accuracy."""
    records = findings["records"]
    assert [(r["heuristic"], r["labelled"]) for r in records] == [
        ("BALD", 5),
        ("BALD", 11),
        ("Random", 5),
        ("Random", 11),
    ]
    assert all(0 <= r["accuracy"] <= 1 for r in records)
    assert records[0]["accuracy"] == records[2]["accuracy"]


def test_learning_curve_is_shown_inline(executed: nbformat.NotebookNode) -> None:
    """The last code cell shows a PNG."""
    assert any("image/png" in output.get("data", {}) for output in outputs(executed, "curve"))
