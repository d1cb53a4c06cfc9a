"""Our parts against numbers that other libraries' own code computed, in float64: every record, value and gradient.

`peer_values.json` holds losses, divergences, advantages, importance weights, rejection masks and more of verl, TRL,
SkyRL, AReaL, OpenRLHF, ART and Tinker's cookbook. `GOLDEN_VALUES=/path/to/file.json pytest tests/golden` reads another
file of the same format. How a record is said in our functions stands in the `peer_*` modules beside this one.
"""

import json
import os
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import peer_credit
import peer_pairs
import peer_policy
import pytest

Case = Mapping[str, np.ndarray]
Outputs = dict[str, np.ndarray]
Record = Mapping[str, Any]

OTHER_FILE = os.environ.get("GOLDEN_VALUES") or None
FILE = json.loads(Path(OTHER_FILE or Path(__file__).with_name("peer_values.json")).read_text())
RECORDS: list[Record] = FILE["records"]
CASES: dict[str, Case] = {
    name: {field: np.asarray(values, np.float64) for field, values in case.items()}
    for name, case in FILE["cases"].items()
}

NOT_COMPARED: Mapping[str, str] = {}
"""Records, by the beginning of `kind/id`, that are left out, and why."""

PEERS: Mapping[str, Callable[[Record, Case], Outputs]] = {
    "policy_loss/verl.": peer_policy.verl_loss,
    "policy_loss/trl.rloo": peer_policy.trl_rloo,
    "policy_loss/trl.gmpo": peer_policy.trl_gmpo,
    "policy_loss/trl.": peer_policy.trl_loss,
    "policy_loss/areal.sapo": peer_policy.areal_sapo,
    "policy_loss/areal.": peer_policy.areal_ppo,
    "policy_loss/openrlhf.": peer_policy.openrlhf_ppo,
    "policy_loss/art.": peer_policy.art_loss,
    "sft/": peer_policy.sft_loss,
    "is_weights/verl.": peer_policy.verl_is,
    "rejection_mask/verl.": peer_policy.verl_rejection,
    "value_loss/": peer_policy.critic_loss,
    "advantage/verl.gae": partial(peer_credit.gae, skip_masked=True),
    "advantage/skyrl.gae": partial(peer_credit.gae, skip_masked=False),
    "advantage/verl.reinforce_plus_plus!": peer_credit.verl_reinforce_pp,
    "advantage/verl.remax": peer_credit.verl_remax,
    "advantage/verl.otb": peer_credit.verl_otb,
    "advantage/skyrl.maxrl": peer_credit.skyrl_maxrl,
    "advantage/skyrl.rloo": peer_credit.skyrl_rloo,
    "advantage/trl.grpo_adv": peer_credit.trl_advantage,
    "advantage/trl.gdpo_adv": peer_credit.trl_gdpo,
    "advantage/areal.": peer_credit.areal_normalisation,
    "preference/trl.dpo": peer_pairs.trl_dpo,
    "preference/trl.kto": peer_pairs.trl_kto,
    "preference/openrlhf.": peer_pairs.openrlhf_dpo,
    "preference/": peer_pairs.plain_dpo,
    "reward_model/": peer_pairs.reward_model,
    "distillation/trl.sdft.sampled": peer_pairs.trl_sampled,
    "distillation/trl.sdft": peer_pairs.trl_sdft,
    "distillation/trl.gold": peer_pairs.trl_gold,
    "distillation/tinker_cookbook.": peer_pairs.tinker_sdft,
}
"""By the beginning of `kind/id`; the whole of it where it ends in "!". The first that fits counts."""


def ours(record: Record) -> Outputs:
    """What we say to a record."""
    name, case, args = f"{record['kind']}/{record['id']}!", CASES[record["case"]], record["args"]
    peer, _, short = record["id"].partition(".")
    if name.startswith("policy_loss/skyrl.tinker."):
        return peer_policy.tinker_loss(short.split(".")[1], args, case)
    if name.startswith("policy_loss/skyrl."):
        return peer_policy.skyrl_loss(short, args, case)
    if name.startswith("kl/"):
        return peer_policy.kl_term(peer, args, case)
    match = next((function for beginning, function in PEERS.items() if name.startswith(beginning)), None)
    if match is None:
        assert name.startswith("advantage/verl."), f"nothing compares {name}"
        return peer_credit.verl_advantage(short, args, case)
    return match(args, case)


def tolerance(record: Record) -> float:
    """Some peers compute in float32 on the way."""
    peer, kind = record["peer"], record["kind"]
    single = peer == "skyrl" or (kind == "kl" and peer in ("areal", "openrlhf"))
    single |= peer == "areal" and kind in ("value_loss", "advantage", "preference")
    single |= record["id"].startswith("verl.gdpo")
    return 2e-5 if single else 1e-6


@pytest.mark.parametrize("record", RECORDS, ids=[f"{r['kind']}/{r['id']}/{r['case']}" for r in RECORDS])
def test_record(record: Record) -> None:
    for beginning, why in NOT_COMPARED.items():
        if f"{record['kind']}/{record['id']}".startswith(beginning):
            pytest.skip(why)
    with jax.enable_x64(True):
        found = ours(record)
    # What stands outside the mask means nothing in advantages and returns; several peers leave something there.
    inside = np.asarray(CASES[record["case"]]["mask"]) > 0 if record["kind"] == "advantage" else np.array(True)
    assert found, "nothing was computed"
    for name, value in found.items():
        expected = np.asarray(record["outputs"][name], np.float64)
        assert value.shape == expected.shape
        if record["kind"] == "advantage" and value.shape == inside.shape and "gdpo" not in record["id"]:
            value, expected = value * inside, np.where(inside, expected, 0.0)
        np.testing.assert_allclose(value, expected, rtol=tolerance(record), atol=1e-9, err_msg=name)
    gradients = {name for name in record["outputs"] if name.startswith("grad_")}
    assert gradients <= found.keys()


def test_how_much_is_compared(capsys: pytest.CaptureFixture[str]) -> None:
    compared = [r for r in RECORDS if not any(f"{r['kind']}/{r['id']}".startswith(b) for b in NOT_COMPARED)]
    by_peer = Counter(record["peer"] for record in compared)
    with capsys.disabled():
        listed = ", ".join(f"{peer} {count}" for peer, count in by_peer.most_common())
        print(f"\n{len(compared)} of {len(RECORDS)} records compared: {listed}", end="")
    if OTHER_FILE is None:
        assert by_peer == {
            "verl": 116,
            "trl": 90,
            "skyrl": 46,
            "areal": 39,
            "openrlhf": 37,
            "art": 12,
            "tinker_cookbook": 2,
        }
