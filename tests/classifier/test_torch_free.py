"""Inference needs numpy, pillow and onnxruntime, nothing else."""

from __future__ import annotations

import subprocess
import sys

BLOCKED = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        blocked = "torch torchvision onnx onnxscript safetensors matplotlib pyarrow jinja2".split()
        if name.split(".")[0] in blocked:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Block())
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter in which training libraries cannot be imported."""
    command = [sys.executable, "-c", BLOCKED + code]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_predict_and_evaluate_work_without_torch() -> None:
    """A worker's environment has no torch."""
    done = run(
        "from classifier import Classifier, evaluate, validation_set\n"
        "model = Classifier.load()\n"
        "accuracy = evaluate(model, validation_set(), limit=200).accuracy\n"
        "print(accuracy > 0.8, model.predict([b'x'])[0].reason)\n"
        "model.self_test()\n"
    )
    assert (done.stdout.strip(), done.returncode) == ("True not-an-image", 0), done.stderr


def test_training_without_torch_names_the_extra() -> None:
    """The error says what to install."""
    for code in (
        "from classifier import train",
        "from classifier import Classifier; Classifier.load(engine='torch')",
    ):
        done = run(code)
        assert "pip install -e '.[train]'" in done.stderr


def test_the_train_command_without_torch_exits_78() -> None:
    """Wrong configuration, one line, no traceback."""
    done = run("import sys; sys.argv = ['x', 'train']\nfrom classifier.__main__ import app\napp()")
    assert done.returncode == 78
    assert "pip install -e '.[train]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_importing_the_package_imports_no_library() -> None:
    """``import classifier`` and the command module stay cheap for ``--help``."""
    code = (
        "import sys, classifier, classifier.cli\n"
        "print(sorted({'numpy', 'PIL', 'onnxruntime'} & set(sys.modules)))"
    )
    assert run(code).stdout.strip() == "[]"


def test_every_public_name_resolves_and_all_is_sorted() -> None:
    """``__all__`` is complete, in ruff's order, and every name can be had."""
    import classifier

    listed = classifier.__all__
    assert len(set(listed)) == len(listed)
    assert set(listed) == set(classifier._WHERE) | {"load"}
    for name in listed:
        if classifier._WHERE.get(name) not in classifier._NEEDS_TORCH:
            assert getattr(classifier, name) is not None
