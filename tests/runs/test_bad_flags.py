"""Flags that are refused: exit code 2 and one line with the value."""

import sys

import pytest
from helpers import GPUS
from helpers import assert_refused
from helpers import slow
from helpers import start

from tfsam.runs import methods

METHODS = tuple(methods.methods())


NETWORKS = ("preact_resnet8", "preact_resnet18", "wide_resnet")


ATTACKS = ("fgsm", "pgd", "cleverhans_pgd", "cleverhans_fgm")


PATHS = ("workdir", "cache_dir", "evaluate", "surrogate")


BAD_FLAGS = [
    (["--method=adam"], ["adam", *METHODS]),
    (["--network=lenet"], ["lenet", *NETWORKS]),
    (["--attacks=pgd,bogus"], ["bogus", *ATTACKS]),
    (["--attacks="], ["attacks", "none"]),
    (["--dataset=nosuchdata"], ["nosuchdata", "digits", "folder:PATH"]),
    (["--preset=imagenet"], ["imagenet", "digits", "cifar10", "cifar100"]),
    (["--bogus=1"], ["--bogus"]),
    (["train"], ["train"]),
    (["--rho"], ["rho"]),
    (["--rho=-0.1"], ["rho", "-0.1"]),
    (["--rho=nan"], ["rho", "nan"]),
    (["--rho=inf"], ["rho", "inf"]),
    (["--rho=1e999"], ["rho", "1e999"]),
    (["--rho=1/0"], ["rho", "1/0"]),
    (["--rho=abc"], ["rho", "abc"]),
    (["--method=st", "--rho=0.1"], ["--method=st", "--rho=0.1"]),
    (["--method=at", "--rho=0.1"], ["--method=at", "--rho=0.1"]),
    (["--method=gsam", "--rho_min=1"], ["rho_min", "1"]),
    (["--method=looksam", "--every=0"], ["every", "0"]),
    (["--method=esam", "--sample_fraction=2"], ["sample_fraction", "2"]),
    (["--method=awp", "--rho=0.1"], ["--method=awp", "--rho=0.1"]),
    (["--method=mart", "--beta=-1"], ["beta", "-1"]),
    (
        ["--method=trades", "--perturb_inputs=none"],
        ["trades needs an attack", "perturb_inputs=None"],
    ),
    (["--method=st", "--perturb_inputs=cleverhans_cw"], ["graph"]),
    (["--method=st", "--perturb_weights=adam"], ["awp", "adam"]),
    (["--method=st", "--average=mean"], ["ema", "swa", "mean"]),
    (["--method=ema", "--average_momentum=2"], ["momentum", "2"]),
    (["--method=entropy_sgd", "--inner_steps=-1"], ["inner_steps", "-1"]),
    (["--method=looksam", "--sub_batches=2"], ["state", "sub_batches=2"]),
    (["--method=wsam", "--sub_batches=2"], ["WSAM(", "sub_batches=2"]),
    (["--method=msam", "--momentum=0"], ["MSAM(", "momentum=0"]),
    (
        ["--method=msam", "--optimizer=entropy_sgd"],
        ["compile with tfsam.SGD", "optimizer=EntropySGD"],
    ),
    (["--method=sam", "--sub_batches=99"], ["sub_batches", "99"]),
    (["--method=at", "--attack_mode=eval"], ["training", "eval"]),
    (["--select=best"], ["last", "robust", "best"]),
    (["--validate_every=0"], ["validate_every", "0"]),
    (["--validation_images=50"], ["validation_images", "50"]),
    (["--method=free_at", "--attack_mode=inference"], ["attack_mode"]),
    (["--validation_steps=50"], ["validation_steps", "50"]),
    (
        ["--select=clean", "--validation_images=1437"],
        ["validation_images", "1437"],
    ),
    (["--method=at", "--epsilon=-8/255"], ["epsilon", "-0.03137"]),
    (["--method=at", "--epsilon=nan"], ["epsilon", "nan"]),
    (["--method=at", "--epsilon=inf"], ["epsilon", "inf"]),
    (["--method=at", "--epsilon=8/x"], ["epsilon", "8/x"]),
    (["--method=sam", "--epsilon=0.1"], ["--method=sam", "--epsilon=0.1"]),
    (["--method=sam", "--norm=l2"], ["--method=sam", "--norm=l2"]),
    (
        ["--preset=cifar10", "--method=sam", "--perturb_inputs=pgd"],
        ["--perturb_inputs=pgd needs --epsilon", "Received: epsilon=None"],
    ),
    (["--method=fgsm_at", "--steps=3"], ["fgsm_at", "--steps=3"]),
    (["--method=at", "--norm=l3"], ["linf", "l2", "l1", "norm=l3"]),
    (["--method=at", "--steps=-1"], ["steps", "-1"]),
    (["--method=at", "--steps=1.5"], ["steps", "1.5"]),
    (["--method=at", "--step_size=-1"], ["step_size", "-1"]),
    (["--epochs=0"], ["epochs", "0"]),
    (["--checkpoint_steps=0"], ["checkpoint_steps", "0"]),
    (["--batch_size=0"], ["batch_size", "0"]),
    (["--learning_rate=-1"], ["learning_rate", "-1"]),
    (["--momentum=2"], ["momentum", "2"]),
    (["--weight_decay=-1"], ["weight_decay", "-1"]),
    (["--augment=perhaps"], ["augment", "perhaps"]),
    (["--seed=-1"], ["seed", "-1"]),
    (["--limit_test=3"], ["limit_test", "10", "3"]),
    (["--limit_train=9"], ["limit_train", "10", "9"]),
    (["--linf_epsilons=0.1,-0.2"], ["linf_epsilons", "-0.2"]),
    (["--l2_epsilons=nan"], ["l2_epsilons", "nan"]),
    (["--attack_steps=-1"], ["attack_steps", "-1"]),
    (["--devices=gpu:4"], ["devices", "gpu:4"]),
    (["--devices=cpu:0"], ["devices", "cpu:0"]),
    (["--devices=cpu:99"], ["devices", "cpu:99"]),
    (["--devices=tpu"], ["devices", "tpu"]),
    (["--strategy=tpu"], ["strategy=tpu", "a TPU needs all of it"]),
    (["--strategy=parameter_server"], ["parameter servers do not"]),
    (["--strategy=multi_worker"], ["TF_CONFIG", "two workers"]),
    (
        ["--devices=cpu:2", "--limit_train=20", "--batch_size=64"],
        ["batch_size", "20", "64"],
    ),
    (["--devices=cpu:2", "--batch_size=33"], ["batch_size", "2", "33"]),
    (["--jit_compile=maybe"], ["auto", "jit_compile=maybe"]),
    (["--sharpness=local"], ["per_replica", "global", "local"]),
    (["--method=at", "--sharpness=global"], ["at does", "sharpness=global"]),
    (
        ["--attacks=autoattack,square", "--attack_steps=5"],
        ["autoattack,square", "attack_steps=5"],
    ),
    (["--precision=float16"], ["mixed_float16", "precision=float16"]),
    (["--evaluate=m.keras", "--method=sam"], ["--method=sam"]),
    (["--evaluate=m.keras", "--rho=0.1"], ["--rho=0.1"]),
    (["--evaluate=m.keras", "--epochs=3"], ["--epochs=3"]),
    (["--evaluate=m.keras", "--limit_train=50"], ["--limit_train=50"]),
    (["--evaluate=missing.keras"], ["missing.keras", "no such file"]),
    *(([f"--{flag}=~no_one/x"], ["~no_one/x", "home"]) for flag in PATHS),
    (["--dataset=npz:~no_one/x"], ["~no_one/x", "home"]),
    (["--dataset=folder:~no_one/x"], ["~no_one/x", "home"]),
    (["--merge=a,~no_one/x", "--workdir=w"], ["~no_one/x", "home"]),
    (["--cache_dir="], ["cache_dir", "none"]),
    (["--epochs=2147483648"], ["epochs", "2147483648"]),
    (["--epochs=1000001"], ["at most 1000000", "epochs=1000001"]),
    (["--method=at", "--steps=2000000000"], ["steps=2000000000"]),
    (["--method=sam", "--ascent_steps=2000000000"], ["ascent_steps=2000"]),
    (["--attack_steps=2000000000"], ["attack_steps=2000000000"]),
    (
        ["--method=sam", "--sub_batches=2000000000"],
        ["smallest batch", "sub_batches=2000000000"],
    ),
    ([f"--batch_size={10**19}"], ["batch_size", 10**19]),
    (["--batch_size=1e4"], ["batch_size", "whole number", "1e4"]),
    (["--method=entropy_sgd", f"--inner_steps={10**19}"], ["inner_steps"]),
    (["--average=swa", f"--average_start={10**19}"], ["average_start"]),
    (["--average=swa", "--average_start=20"], ["epochs=20", "_start=20"]),
    (["--learning_rate=1e300"], ["learning_rate", "1e300"]),
    (["--linf_epsilons=0.1,1e39"], ["linf_epsilons", "1e39"]),
]


def test_a_library_that_is_missing_is_bad_input(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "art", None)
    flags = (f"--workdir={tmp_path / 'work'}", "--perturb_inputs=art")
    assert_refused(capsys, *flags, parts=["attack", "art"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("named", [slow(False), True], ids=["", "workdir"])
@pytest.mark.parametrize(
    "arguments, parts", BAD_FLAGS, ids=[" ".join(a) for a, _ in BAD_FLAGS]
)
def test_bad_flags(tmp_path, monkeypatch, capsys, arguments, parts, named):
    if GPUS and "--devices=cpu:2" in arguments:
        pytest.skip("A GPU is in use")
    monkeypatch.chdir(tmp_path)
    workdir = [f"--workdir={tmp_path / 'work'}"] if named else []
    assert_refused(capsys, *workdir, *arguments, parts=parts)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_bad_input_of_a_process(tmp_path):
    process = start("-m", "tfsam.run", "--dataset=folder:nowhere", cwd=tmp_path)
    output, error = process.communicate(timeout=200)
    assert process.returncode == 2
    assert output == ""
    (line,) = error.splitlines()  # TensorFlow's banner is silenced.
    assert line.startswith("tfsam: ") and "nowhere" in line
    assert error.count("tfsam: ") == 1
    assert "Traceback" not in error
    assert not list(tmp_path.iterdir())
