"""Nothing is unpickled or run that comes from a file, and no secret is printed or written."""

import ast
from pathlib import Path

import pytest

from lora_jax.errors import UserError, redact

ROOT = Path(__file__).parents[1]
MODULES = {"pickle", "cPickle", "_pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
CALLS = {"eval", "exec", "compile", "os.system", "os.popen", "tempfile.mktemp", "torch.load", "yaml.load", "jnp.load"}
TRUE_KEYWORDS = {"shell", "allow_pickle", "trust_remote_code"}
# Suffixes of pickles and of formats that hold them.
SUFFIXES = {".pkl", ".pickle", ".pt", ".pth", ".joblib", ".dill"}


def dangers(tree: ast.AST) -> list[str]:
    """Returns what runs code from data, or a command through a shell."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.partition(".")[0] in MODULES]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [node.module] if node.module.partition(".")[0] in MODULES else []
            found += [name for alias in node.names if (name := f"{node.module}.{alias.name}") in CALLS]
        elif isinstance(node, ast.Call):
            found += [ast.unparse(node.func)] if ast.unparse(node.func) in CALLS else []
            found += [
                f"{keyword.arg}={ast.unparse(keyword.value)}"
                for keyword in node.keywords
                if keyword.arg in TRUE_KEYWORDS and ast.unparse(keyword.value) != "False"
            ]
    return found


def test_no_source_runs_what_it_reads():
    files = [path for top in ("lora_jax", "experiments", "hydra_plugins") for path in (ROOT / top).rglob("*.py")]
    assert len(files) > 100
    assert {str(path): found for path in files if (found := dangers(ast.parse(path.read_text())))} == {}


@pytest.mark.parametrize(
    "code",
    [
        *(
            "import pickle",
            "from joblib import load",
            "eval(x)",
            "import os\nos.system(x)",
            "from tempfile import mktemp",
        ),
        *("torch.load(f)", "np.load(f, allow_pickle=True)", "yaml.load(f)", "subprocess.run(x, shell=True)"),
    ],
)
def test_such_code_would_be_found(code):
    assert dangers(ast.parse(code))


@pytest.mark.slow
def test_a_sweep_writes_no_pickle(swept):
    files = [path for path in swept[0].rglob("*") if path.is_file()]
    assert any(path.suffix == ".safetensors" for path in files)
    for path in files:
        with path.open("rb") as file:
            start = file.read(2)
        # A pickle of protocol 2 and above begins with PROTO and its number.
        assert path.suffix not in SUFFIXES and not (
            start[:1] == b"\x80" and start[1:] in (b"\2", b"\3", b"\4", b"\5")
        ), path


SECRETS = {
    "WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567",
    "HF_TOKEN": "hf_plantedplantedplantedplanted",
    "AWS_ACCESS_KEY_ID": "AKIAPLANTEDPLANTED00",
    "AWS_SECRET_ACCESS_KEY": "planted/secret/access/key",
    "PIP_EXTRA_INDEX_URL": "https://user:planted-password@index.invalid/simple",
}
TYPED = "https://somebody:typed-password@host.invalid/model"
PLANTED = [*(value for name, value in SECRETS.items() if "URL" not in name), "planted-password", "typed-password"]


@pytest.mark.parametrize(
    "text, expected",
    [
        (f"model.source={TYPED}", "model.source=https://***@host.invalid/model"),
        ("token hf_abcdefghijklmnopqrstuvwxyz0123 end", "token *** end"),
        ("hf://owner/name@main and pypi://a==1.0", "hf://owner/name@main and pypi://a==1.0"),
        ("a@b.example", "a@b.example"),
    ],
)
def test_secrets_are_known_by_their_form(text, expected):
    assert redact(text) == expected and str(UserError(text)) == expected


@pytest.mark.parametrize("name", ["WANDB_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "MY_PASSWORD"])
def test_secrets_are_known_by_their_variable(monkeypatch, name):
    monkeypatch.setenv(name, "value-of-variable")
    monkeypatch.setenv("MONKEY", "no-secret-at-all")
    assert str(UserError("x=value-of-variable, y=no-secret-at-all")) == "x=***, y=no-secret-at-all"


def written(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_a_refused_command_shows_no_secret(command, tmp_path):
    done = command(
        "train", f"model.source={TYPED}", "wandb.mode=disabled", f"hydra.run.dir={tmp_path / 'run'}", **SECRETS
    )
    assert done.returncode == 2 and "model source" in done.stderr and "host.invalid" in done.stderr
    text = done.stdout + done.stderr + written(tmp_path).decode(errors="replace")
    assert not [secret for secret in PLANTED if secret in text]


@pytest.mark.slow
def test_a_sweep_writes_no_secret(command, tmp_path):
    overrides = ["rank=4", "baseline=none", "steps=2", "wandb.mode=offline"]
    done = command.sweep(tmp_path / "sweep", *overrides, **SECRETS)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.rglob("offline-run-*"))
    content = written(tmp_path) + done.stdout.encode() + done.stderr.encode()
    assert not [secret for secret in PLANTED if secret.encode() in content]
