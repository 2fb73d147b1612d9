"""The gate: what a gateway refuses, in which order, and that no engine sees a model that was refused."""

import argparse
import json
import re
import subprocess
import sys
from dataclasses import replace
from datetime import date

import numpy as np
import pytest

from targets import commands
from targets.runtime import admit as gate
from targets.runtime import artifact, signing
from targets.runtime.admit import admit, examine
from targets.runtime.errors import HighwallError
from targets.runtime.footprint import measure
from targets.runtime.signing import SigningKey
from targets.runtime.trust import Trust, TrustedKey
from targets.runtime.versions import check_upgrade

ANN, BOB = SigningKey("ann", bytes(range(32))), SigningKey("bob", b"\x07" * 32)
TRUST = Trust((TrustedKey(ANN.public),), "ann.pub")


@pytest.fixture
def make(tmp_path, classifier):
    """Write an artifact signed by ann, or by `key`, with changes to its manifest."""

    def write(file="a.highwall", key=ANN, model=classifier.model, **changes):
        path = tmp_path / file
        manifest = replace(classifier.manifest, **changes)
        artifact.write(path, manifest, model, classifier.golden, classifier.receipt, key)
        return path

    return write


@pytest.fixture
def no_engine(monkeypatch):
    """Fail the test if a model is loaded."""

    def opened(*_):
        pytest.fail("a model was loaded")

    monkeypatch.setattr(gate, "open_session", opened)


def refusal(*arguments, **options) -> str:
    with pytest.raises(HighwallError) as caught:
        admit(*arguments, **options)
    assert "\n" not in str(caught.value)
    assert str(arguments[0]) in str(caught.value)
    return str(caught.value)


# --- the gate -------------------------------------------------------------------------------------------


def test_a_trusted_artifact_comes_in_loaded_and_answers(make, classifier):
    found = admit(make(), TRUST)
    assert found.artifact.manifest == classifier.manifest
    assert (found.standing.state, found.golden.passed, found.golden.n) == ("trusted", True, 3)
    white = np.full(classifier.spec.shape, 255, np.uint8)
    np.testing.assert_allclose(found.session.run(white), [1.0], rtol=1e-6)


def test_unsigned_untrusted_and_expired_are_refused_before_any_model_code_is_loaded(make, no_engine):
    assert "not signed" in refusal(make(key=None), TRUST)
    assert "calls itself bob" in refusal(make(key=BOB), TRUST)
    ended = Trust((TrustedKey(ANN.public, date(2026, 1, 1), date(2026, 2, 1)),))
    assert "until 2026-02-01" in refusal(make(), ended, today=date(2026, 2, 2))
    assert "from 2026-01-01" in refusal(make(), ended, today=date(2025, 12, 31))


def test_flipped_bytes_are_refused_before_any_model_code_is_loaded(make, no_engine):
    path = make()
    data = path.read_bytes()
    for place in range(0, len(data), 17):  # every byte is flipped in test_signing.py
        path.write_bytes(data[:place] + bytes([data[place] ^ 0x40]) + data[place + 1 :])
        refusal(path, TRUST)


def test_a_step_back_is_refused_before_any_model_code_is_loaded(make, no_engine):
    installed = artifact.read(make("old.highwall", model_version=5))
    assert "version 4 of tiny where 5" in refusal(make(model_version=4), TRUST, installed)


def test_a_version_under_the_least_is_refused_before_any_model_code_is_loaded(make, no_engine):
    assert "version 3 of tiny where 4 is the least" in refusal(make(model_version=3), TRUST, version_floor=4)
    assert "calls itself bob" in refusal(make(key=BOB, model_version=3), TRUST, version_floor=4)


def test_a_version_that_is_the_least_comes_in(make):
    assert admit(make(model_version=4), TRUST, version_floor=4).artifact.manifest.model_version == 4


def test_trust_comes_before_version_so_that_a_stranger_learns_nothing_of_what_is_installed(make):
    installed = artifact.read(make("old.highwall", model_version=5))
    assert "calls itself bob" in refusal(make(key=BOB, model_version=4), TRUST, installed)


def test_no_engine_package_is_imported_for_an_artifact_that_is_refused(make, root, tmp_path):
    (tmp_path / "ann.pub").write_text(f"{ANN.public.line}\n")
    script = (
        "import sys\nfrom pathlib import Path\nfrom targets.runtime.admit import examine\n"
        "from targets.runtime.trust import load_trust\n"
        "found = examine(Path(sys.argv[1]), load_trust(Path(sys.argv[2])))\n"
        "print(found.refusal is None, 'onnxruntime' in sys.modules)"
    )
    for path, expected in ((make(), "True True"), (make("b.highwall", key=BOB), "False False")):
        command = [sys.executable, "-c", script, path, tmp_path / "ann.pub"]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
        assert done.stdout.strip() == expected, done.stderr


def test_a_model_that_answers_otherwise_here_is_refused_though_trusted(make, make_model, classifier):
    for gain in (1.5, float("nan")):
        path = make(model=make_model(classifier.spec, "classify", gain=gain))
        assert "golden vectors" in refusal(path, TRUST)


def test_a_model_no_engine_loads_and_an_engine_unknown_here_are_refused(make):
    assert "refuses the model" in refusal(make(model=b"junk"), TRUST)
    assert "unknown runtime 'abacus'" in refusal(make(runtime="abacus"), TRUST)


def test_a_model_that_takes_too_much_memory_is_refused_before_it_is_loaded_here(make, no_engine):
    said = refusal(make(), TRUST, most_mib=1e-6)
    assert re.search(r"it takes [0-9.]+ MiB of memory to run here, at most 1e-06 are allowed", said)


def test_a_model_within_its_memory_comes_in(make):
    assert admit(make(), TRUST, most_mib=500).golden.passed


def test_a_model_that_dies_or_never_ends_is_found_in_a_process_of_its_own(make, classifier, no_engine):
    assert "does not run in a process of its own" in refusal(make(model=b"junk"), TRUST, most_mib=500)
    with pytest.raises(HighwallError, match=r"does not end within 0\.01 s"):
        measure("onnx", classifier.model, classifier.spec, runs=1, seconds=0.01)


def test_a_gateway_that_lost_its_trust_admits_nothing(make):
    assert "no trust" in refusal(make(), None)
    assert examine(make(), None).refusal is None


# --- versions -------------------------------------------------------------------------------------------


def test_only_a_higher_version_of_the_same_model_may_replace_another(make, make_model, classifier):
    def read(**changes):
        return artifact.read(make(**changes))

    installed = read(model_version=5)
    check_upgrade(installed, read(model_version=6))
    check_upgrade(installed, read(model_version=5))
    check_upgrade(installed, read(model_version=5, key=BOB))
    for says, new in (
        ("version 4 of tiny where 5 is installed", read(model_version=4)),
        ("model other where tiny is installed", read(model_version=6, name="other")),
        ("yet has that number", read(model_version=5, threshold=0.75)),
        ("yet has that number", read(model_version=5, model=make_model(classifier.spec, "classify", gain=2.0))),
    ):
        with pytest.raises(HighwallError, match=f"{says}.*--allow-downgrade"):
            check_upgrade(installed, new)
        check_upgrade(installed, new, allow_downgrade=True)


# --- the verbs ------------------------------------------------------------------------------------------


def call(verb, *words):
    parser = argparse.ArgumentParser(prog=verb)
    getattr(commands, f"{verb}_arguments")(parser)
    return getattr(commands, verb)(parser.parse_args([str(word) for word in words]))


@pytest.fixture
def keys(tmp_path):
    signing.write_pair(tmp_path / "carol", "carol")
    (tmp_path / "ann.pub").write_text(f"{ANN.public.line}\n")
    return tmp_path


def said(capsys):
    return json.loads(capsys.readouterr().out)


def test_keygen_sign_verify_is_the_whole_way(make, tmp_path, capsys):
    path = make(key=None)
    assert call("keygen", "--out", tmp_path / "dan.key", "--name", "dan@pit") == 0
    public = signing.parse_public((tmp_path / "dan.pub").read_text(), "x")
    text = capsys.readouterr().out
    assert public.fingerprint in text
    assert str(tmp_path / "dan.key") in text
    assert call("sign", path, "--key", tmp_path / "dan.key") == 0
    assert f"signed by dan@pit, fingerprint {public.fingerprint}\n" in capsys.readouterr().out
    assert call("verify", path, "--trust", tmp_path / "dan.pub") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("signed by dan@pit, trusted by")
    assert lines[-1].startswith("verified: 3 golden vectors")


def test_signing_anew_says_whose_signature_went(make, keys, capsys):
    path = make()
    assert call("sign", path, "--key", keys / "carol.key") == 0
    assert f"instead of ann, fingerprint {ANN.public.fingerprint}" in capsys.readouterr().out
    assert artifact.read(path).signer.name == "carol"


def test_verify_without_trust_passes_and_says_that_nobody_checked(make, capsys):
    for key, line in ((None, "unsigned"), (ANN, "signed by ann (not checked: give --trust")):
        assert call("verify", make(key=key)) == 0
        assert capsys.readouterr().out.splitlines()[1].startswith(line)


def test_verify_tells_the_three_states_in_json(make, keys, capsys):
    ann = {"name": "ann", "fingerprint": ANN.public.fingerprint}
    for key, trust, state, code in (
        (None, "ann.pub", "unsigned", 1),
        (ANN, "carol.pub", "untrusted", 1),
        (ANN, "ann.pub", "trusted", 0),
    ):
        assert call("verify", make(key=key), "--trust", keys / trust, "--json") == code
        found = said(capsys)
        assert (found["signature"], found["key"]) == (state, key and ann)
        assert found["ok"] is (code == 0)
        assert ("error" in found) is (code == 1)
        assert (found["golden"] is None) is (code == 1)


def test_verify_warns_of_a_key_about_to_end(make, keys, capsys, monkeypatch):
    monkeypatch.setattr(gate, "today_utc", lambda: date(2026, 11, 22))
    public = signing.to_base64(ANN.public.raw)
    text = f'[[key]]\nname = "ann"\npublic = "{public}"\nfrom = 2026-01-01\nuntil = 2026-12-01\n'
    (keys / "trust.toml").write_text(text)
    assert call("verify", make(), "--trust", keys / "trust.toml") == 0
    assert "warning: key ann ends in 9 days" in capsys.readouterr().out
    assert call("verify", make(), "--trust", keys / "trust.toml", "--json") == 0
    assert "9 days" in said(capsys)["warning"]


def test_verify_over_an_installed_one_refuses_a_step_back_unless_told(make, capsys):
    old, new = make("old.highwall", model_version=5), make(model_version=4)
    with pytest.raises(HighwallError, match="version 4 of tiny where 5"):
        call("verify", new, "--over", old)
    assert call("verify", new, "--over", old, "--allow-downgrade") == 0
    assert f"version 4 of tiny may replace {old}" in capsys.readouterr().out
    assert call("verify", new, "--over", old, "--json") == 1
    assert "where 5 is installed" in said(capsys)["error"]
    assert call("verify", old, "--over", new) == 0


def test_verify_s_flags_are_checked_before_the_artifact(make, keys, capsys):
    with pytest.raises(HighwallError, match="--over"):
        call("verify", make(), "--allow-downgrade")
    for flag, name in (("--trust", "gone.pub"), ("--over", "gone.highwall"), ("--trust", "carol.key")):
        with pytest.raises(HighwallError, match=name):
            call("verify", make(), flag, keys / name)
        assert call("verify", make(), flag, keys / name, "--json") == 1
        assert name in said(capsys)["error"]


def test_keygen_and_sign_refuse_in_one_line(make, keys):
    for words, says in (
        (("keygen", "--out", keys / "carol"), "never overwritten"),
        (("keygen", "--out", keys / "two words"), "--name"),
        (("keygen", "--out", "."), "is a folder"),
        (("sign", make(), "--key", keys / "carol.pub"), "is a public key"),
        (("sign", make(), "--key", keys / "no.key"), "does not exist"),
        (("sign", keys / "no.highwall", "--key", keys / "carol.key"), "does not exist"),
        (("sign", keys / "ann.pub", "--key", keys / "carol.key"), "not a Highwall artifact"),
    ):
        with pytest.raises(HighwallError, match=says) as caught:
            call(*words)
        assert "\n" not in str(caught.value)


def test_inspect_names_who_signed(make, capsys):
    for key in (None, ANN):
        path = make(key=key)
        assert call("inspect", path) == 0
        assert ("signature  signed by ann" if key else "signature  unsigned") in capsys.readouterr().out
        assert call("inspect", path, "--json") == 0
        named = {"name": "ann", "fingerprint": ANN.public.fingerprint}
        assert said(capsys)["signature"] == (named if key else None)
