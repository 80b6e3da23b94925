"""All formats: what goes out comes back with the same codes, what cannot go out is refused, and files are never trusted."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch

from miclip_core.sae.foreign import FORMATS, WRITTEN, load_foreign, save_foreign
from miclip_core.sae.foreign.convert import at_least, with_pre_bias
from miclip_core.sae.sae import Sae
from schemas.errors import BadRef, BadSae, MiclipError, UnsafeCheckpoint, UnsupportedSae, UsageError
from schemas.sae import ARCHS, Arch
from tests.foreign_saes import assert_same, random_sae, tokens

CANNOT = {
    ("sparsify", "relu"), ("sparsify", "gated"), ("sparsify", "jumprelu"), ("sparsify", "batchtopk"),
    ("sparsify", "matryoshka"), ("overcomplete", "gated"),
}  # fmt: skip
KINDS = [(name, arch) for name in WRITTEN for arch in ARCHS if (name, arch) not in CANNOT]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
@pytest.mark.parametrize("pre_bias", [True, False], ids=["pre_bias", "no_pre_bias"])
@pytest.mark.parametrize(("name", "arch"), KINDS)
def test_an_sae_comes_back_with_the_same_codes(
    name: str, arch: Arch, pre_bias: bool, dtype: torch.dtype, tmp_path: Path
) -> None:
    sae = random_sae(arch, dtype, unit=False, apply_b_dec_to_input=pre_bias)
    save_foreign(name, sae, tmp_path / "out")
    back = load_foreign(name, tmp_path / "out")
    assert back.W_enc.dtype == dtype and back.config.source == ("miclip" if name == "miclip" else name)
    x = tokens(dtype)
    codes, x_hat = sae.reconstruct(x)
    assert_same(back, codes.dense(), x_hat, x, 2e-6 if dtype == torch.float32 else 1e-13)


@pytest.mark.parametrize(("name", "arch"), sorted(CANNOT))
def test_a_format_that_cannot_hold_an_sae_says_so_and_writes_nothing(name: str, arch: Arch, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedSae, match="saelens"):
        save_foreign(name, random_sae(arch), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", [name for name in WRITTEN if name != "miclip"])
@pytest.mark.parametrize(
    ("facts", "holders"),
    [
        ({"post_topk_relu": False}, ()),
        ({"groupmax": True}, ("sparsify",)),
        ({"input_norm": "layer_norm"}, ("saelens",)),
        ({"input_norm": "constant_norm"}, ("saelens",)),
    ],
    ids=str,
)
def test_what_few_formats_hold_goes_to_those_only(
    name: str, facts: dict[str, object], holders: tuple[str, ...], tmp_path: Path
) -> None:
    sae, x = random_sae("topk", **facts), tokens()
    if name not in holders:
        with pytest.raises(UnsupportedSae, match="export it as miclip"):
            save_foreign(name, sae, tmp_path / "out")
        return
    save_foreign(name, sae, tmp_path / "out")
    codes, x_hat = sae.reconstruct(x)
    assert_same(load_foreign(name, tmp_path / "out"), codes.dense(), x_hat, x)


def test_our_own_file_keeps_every_fact(tmp_path: Path) -> None:
    sae = random_sae("matryoshka", model="demo:clip-p8", site="resid_post.2@patch", tokens=5000, seed=3, norm_scale=2.5)
    save_foreign("miclip", sae, tmp_path / "out")
    for place in (tmp_path / "out", tmp_path / "out" / "sae.safetensors"):
        back = load_foreign("miclip", place)
        assert back.config == sae.config
        assert all(torch.equal(tensor, back.tensors()[name]) for name, tensor in sae.tensors().items())


def test_several_thresholds_fit_where_there_is_one_for_each_latent(tmp_path: Path) -> None:
    even = random_sae("batchtopk")
    assert even.threshold is not None
    uneven = Sae.from_tensors(even.config, {**even.tensors(), "threshold": even.threshold + torch.arange(40) / 100})
    with pytest.raises(UnsupportedSae, match="one threshold"):
        save_foreign("dictionary_learning", uneven, tmp_path / "a")
    save_foreign("saelens", uneven, tmp_path / "b")
    assert load_foreign("saelens", tmp_path / "b").config.arch == "jumprelu"


# ---------------------------------------------------------------- exact rewritings


@pytest.mark.parametrize("arch", ARCHS)
def test_moving_the_bias_changes_no_code(arch: Arch) -> None:
    sae, x = random_sae(arch, torch.float64), tokens(torch.float64)
    codes, x_hat = sae.reconstruct(x)
    moved = with_pre_bias(sae, False)
    assert not moved.config.apply_b_dec_to_input
    assert_same(moved, codes.dense(), x_hat, x, 1e-13)
    assert_same(with_pre_bias(moved, True), codes.dense(), x_hat, x, 1e-13)
    assert with_pre_bias(sae, True) is sae


def test_at_least_becomes_more_than_the_number_just_below() -> None:
    at = at_least(torch.tensor([0.5, 0.0]))
    assert bool(torch.tensor(0.5) > at[0]) and not bool(torch.nextafter(torch.tensor(0.5), torch.tensor(0.0)) > at[0])
    assert float(at[1]) == 0  # values of 0 are no codes


# ---------------------------------------------------------------- folders


def test_nothing_is_ever_written_over(tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.mkdir()
    with pytest.raises(UsageError, match="is there already"):
        save_foreign("saelens", random_sae("topk"), there)
    assert list(there.iterdir()) == []
    with pytest.raises(UsageError, match="no folder"):
        save_foreign("saelens", random_sae("topk"), tmp_path / "no" / "out")
    with pytest.raises(UsageError, match="expected one of miclip, saelens, sparsify"):
        save_foreign("attributing_clip", random_sae("topk"), tmp_path / "out")


def test_a_writer_that_fails_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path, settings: object) -> None:
        path.write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("miclip_core.sae.foreign.saelens.write_settings", fail)
    with pytest.raises(OSError, match="No space"):
        save_foreign("saelens", random_sae("topk"), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", FORMATS)
def test_a_place_with_nothing_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(BadRef, match="nowhere: is not there; expected"):
        load_foreign(name, tmp_path / "nowhere")
    with pytest.raises(BadRef, match="holds no"):
        load_foreign(name, tmp_path)


@pytest.mark.parametrize("name", WRITTEN)
def test_what_is_written_may_be_read_by_whoever_may_read_new_files(name: str, tmp_path: Path) -> None:
    (tmp_path / "new").touch()
    save_foreign(name, random_sae("topk"), tmp_path / "out")
    modes = {file.stat().st_mode for file in (tmp_path / "out").iterdir()}
    assert modes == {(tmp_path / "new").stat().st_mode}


def test_a_folder_of_folders_names_those_that_hold_one(tmp_path: Path) -> None:
    for layer in (3, 7):
        save_foreign("sparsify", random_sae("topk"), tmp_path / f"layers.{layer}")
    with pytest.raises(BadRef, match=r"these folders in it do: layers\.3, layers\.7"):
        load_foreign("sparsify", tmp_path)


# ---------------------------------------------------------------- hostile files


class _Code:
    """Unpickled by a careless reader, it creates a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize(
    ("name", "file"),
    [("dictionary_learning", "ae.pt"), ("overcomplete", "sae.pt"), ("attributing_clip", "last.ckpt")],
)
@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_a_pickle_with_code_is_refused_with_advice_and_never_run(
    name: str, file: str, how: str, tmp_path: Path
) -> None:
    mark = tmp_path / "ran"
    bomb = {"state_dict": {"encoder.weight": torch.zeros(2, 2)}, "callbacks": _Code(mark)}
    (tmp_path / "config.json").write_text('{"trainer": {"dict_class": "AutoEncoder"}}')
    if how == "torch":
        torch.save(bomb, tmp_path / file)
    else:
        (tmp_path / file).write_bytes(pickle.dumps(bomb))
    with pytest.raises(UnsafeCheckpoint, match="safetensors"):
        load_foreign(name, tmp_path)
    assert not mark.exists()


@pytest.mark.parametrize("name", [name for name in WRITTEN if name != "overcomplete"])
def test_damaged_files_are_an_error_that_names_the_file(name: str, tmp_path: Path) -> None:
    """Every file of a folder cut short in turn."""
    save_foreign(name, random_sae("topk"), tmp_path / "whole")
    for file in sorted((tmp_path / "whole").iterdir()):
        data = file.read_bytes()
        for keep in (0, len(data) // 2, len(data) - 3):
            file.write_bytes(data[:keep])
            with pytest.raises(MiclipError, match=str(tmp_path / "whole")):
                load_foreign(name, tmp_path / "whole")
        file.write_bytes(data)
    load_foreign(name, tmp_path / "whole")


def test_weights_that_are_not_finite_or_a_k_beyond_the_width_are_refused(tmp_path: Path) -> None:
    sae = random_sae("topk")
    bad = sae.W_enc.clone()
    bad[3, 1] = torch.nan
    folder = tmp_path / "a"
    folder.mkdir()
    from miclip_core.sae.foreign import sparsify

    sparsify.save(Sae.from_tensors(sae.config, {**sae.tensors(), "W_enc": bad}), folder)
    with pytest.raises(BadSae, match=r"/a: W_enc holds NaN"):
        load_foreign("sparsify", folder)
    save_foreign("sparsify", sae, tmp_path / "b")
    settings = tmp_path / "b" / "cfg.json"
    settings.write_text(settings.read_text().replace('"k": 5', '"k": 41'))
    with pytest.raises(BadSae, match="k is 41, but there are 40 latents"):
        load_foreign("sparsify", tmp_path / "b")
    settings.write_text(settings.read_text().replace('"k": 41', '"k": 0'))
    with pytest.raises(BadSae, match="/b: k 0: "):
        load_foreign("sparsify", tmp_path / "b")


def test_the_page_has_a_row_for_every_format() -> None:
    page = (Path(__file__).parents[4] / "docs" / "saes.md").read_text()
    rows = {
        cells[1].strip(): cells for line in page.splitlines() if (cells := line.split("|"))[0] == "" and len(cells) == 6
    }
    assert {f"`{name}:`" for name in FORMATS} == set(rows) - {"ref", "---", "`sae:…`"}
    assert {name for name in FORMATS if rows[f"`{name}:`"][4].strip()} == set(WRITTEN)
