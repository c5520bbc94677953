"""Job ids: unguessable, URL-safe, and able to say that another process minted them."""

from __future__ import annotations

import copy
import os
import re
import secrets

import pytest

from raincheck.ids import Ids, Origin


def another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    pid = os.getpid() + 1
    monkeypatch.setattr(os, "getpid", lambda: pid)


def test_an_id_is_thirty_url_safe_letters() -> None:
    ids = Ids("/jobs")
    minted = [ids.mint() for _ in range(1000)]
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{30}", id) for id in minted)
    assert len(set(minted)) == 1000


def test_an_id_carries_128_bits_from_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    token_bytes = secrets.token_bytes

    def counted(size: int) -> bytes:
        asked.append(size)
        return token_bytes(size)

    ids = Ids("/jobs")
    monkeypatch.setattr(secrets, "token_bytes", counted)
    minted = [ids.mint() for _ in range(64)]
    assert asked == [3, 64 * 16]  # what marks the process, and 128 bits for each
    minted += [ids.mint() for _ in range(64)]
    assert asked == [3, 64 * 16, 64 * 16]
    assert len({id[:22] for id in minted}) == 128


def test_a_fork_shares_no_random_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    parent = Ids("/jobs")
    parent.mint()
    child = copy.deepcopy(parent)
    another_process(monkeypatch)
    minted = {child.mint()[:21] for _ in range(64)}
    monkeypatch.undo()
    assert minted.isdisjoint(parent.mint()[:21] for _ in range(64))


def test_no_random_bit_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = Ids("/jobs")
    for _ in range(64):
        ids.mint()
    drawn = [(1 << bit).to_bytes(16, "big") for bit in range(128)]
    halves = [b"".join(drawn[:64]), b"".join(drawn[64:])]
    monkeypatch.setattr(secrets, "token_bytes", lambda _: halves.pop())
    assert len({ids.mint()[:22] for _ in range(128)}) == 128


def test_an_id_of_this_process_is_known() -> None:
    ids = Ids("/jobs")
    id = ids.mint()
    assert ids.origin(id) is Origin.HERE
    assert ids.origin(id) is Origin.HERE


def test_an_id_of_another_process_with_this_mount_is_known() -> None:
    assert Ids("/jobs").origin(Ids("/jobs").mint()) is Origin.ELSEWHERE


def test_an_id_of_another_mount_is_unknown() -> None:
    assert Ids("/jobs").origin(Ids("/other").mint()) is Origin.UNKNOWN


def test_a_fork_mints_ids_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = Ids("/jobs")
    of_the_parent = ids.mint()
    another_process(monkeypatch)
    of_the_child = ids.mint()
    assert ids.origin(of_the_child) is Origin.HERE
    assert ids.origin(of_the_parent) is Origin.ELSEWHERE


def test_a_fork_knows_its_parents_ids_before_it_mints_one(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = Ids("/jobs")
    of_the_parent = ids.mint()
    another_process(monkeypatch)
    assert ids.origin(of_the_parent) is Origin.ELSEWHERE


@pytest.mark.parametrize("place", range(30))
def test_an_id_with_any_letter_changed_is_unknown(place: int) -> None:
    ids = Ids("/jobs")
    id = ids.mint()
    other = "A" if id[place] != "A" else "B"
    assert ids.origin(id[:place] + other + id[place + 1 :]) is Origin.UNKNOWN


@pytest.mark.parametrize(
    "id",
    [
        "",
        "x",
        "x" * 29,
        "x" * 30,
        "x" * 31,
        "é" * 30,
        "\ud800" * 30,
        "\x00" * 30,
        "../../../../../../etc/passwd..",
        "x" * 100_000,
    ],
)
def test_any_string_is_safe_to_ask_about(id: str) -> None:
    assert Ids("/jobs").origin(id) is Origin.UNKNOWN
