"""The nearest units by tiles, against a full sort; the pairs that lists make."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from miclip_core.rosetta.neighbours import Neighbours, look_up, pairs_of

ROWS, COLUMNS, K = 40, 90, 5


@pytest.fixture(scope="module")
def r() -> torch.Tensor:
    """Tenths, so that most of each list ties; some columns and two rows are dead, one row has two columns only."""
    r = torch.randint(-10, 11, (ROWS, COLUMNS), generator=torch.Generator().manual_seed(0)) / 10
    r[:, [0, 17, 89]] = -torch.inf
    r[[3, 30]] = -torch.inf
    r[7, 5:] = -torch.inf
    r[7, 1:3] = -torch.inf
    return r


def full_sort(r: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Each row by (r descending, id ascending) in plain Python."""
    ids, values = np.full((len(r), k), -1, np.int32), np.full((len(r), k), -np.inf, np.float32)
    for i, row in enumerate(r):
        best = sorted((-value, j) for j, value in enumerate(row.tolist()) if value > -np.inf)[:k]
        for place, (value, j) in enumerate(best):
            ids[i, place], values[i, place] = j, -value
    return ids, values


@pytest.mark.parametrize("rows, columns", [(ROWS, COLUMNS), (7, 13), (16, 4), (40, 1)])
@pytest.mark.parametrize("reverse", [False, True])
def test_lists_by_tiles_are_those_of_a_full_sort_in_both_directions(
    r: torch.Tensor, rows: int, columns: int, reverse: bool
) -> None:
    of_rows, of_columns = Neighbours(ROWS, K), Neighbours(COLUMNS, K)
    tiles = [(i, j) for i in range(0, ROWS, rows) for j in range(0, COLUMNS, columns)]
    for i, j in reversed(tiles) if reverse else tiles:
        tile = r[i : i + rows, j : j + columns]
        of_rows.merge(tile, j, i)
        of_columns.merge(tile.T, i, j)
    for found, table in ((of_rows, r), (of_columns, r.T)):
        ids, values = full_sort(table.numpy(), K)
        np.testing.assert_array_equal(found.ids, ids)
        np.testing.assert_array_equal(found.values, values)
        assert found.ids.dtype == np.int32 and found.values.dtype == np.float32


def test_dead_units_are_in_no_list(r: torch.Tensor) -> None:
    found = Neighbours(ROWS, COLUMNS)
    found.merge(r, 0)
    assert not np.isin(found.ids, [0, 17, 89]).any()
    assert (found.ids[[3, 30]] == -1).all()
    assert set(found.ids[7]) == {-1, 3, 4}


def test_what_workers_found_among_other_units_joins_to_what_one_finds(r: torch.Tensor) -> None:
    parts = [Neighbours(ROWS, K) for _ in range(3)]
    for n, part in enumerate(parts):
        part.merge(r[:, 30 * n : 30 * n + 30], 30 * n)
    joined = Neighbours.from_state(parts[2].state())
    joined.merge_found(parts[0])
    joined.merge_found(Neighbours.from_state(parts[1].state()))
    ids, values = full_sort(r.numpy(), K)
    np.testing.assert_array_equal(joined.ids, ids)
    np.testing.assert_array_equal(joined.values, values)


def test_a_tile_that_leaves_the_table_or_comes_twice_is_refused(r: torch.Tensor) -> None:
    found = Neighbours(ROWS, K)
    with pytest.raises(ValueError, match="of 40"):
        found.merge(r, 0, 1)
    found.merge(r, 0)
    with pytest.raises(ValueError, match="twice"):
        found.merge(r, 0)


IDS_AB = np.array([[1, 2], [0, -1]], np.int32)
IDS_BA = np.array([[1, 0], [0, -1], [-1, -1]], np.int32)


def test_each_pair_of_either_direction_is_there_once_in_order() -> None:
    assert pairs_of(IDS_AB, IDS_BA).tolist() == [[0, 0], [0, 1], [0, 2], [1, 0]]
    assert pairs_of(IDS_AB).tolist() == [[0, 1], [0, 2], [1, 0]]
    assert pairs_of(np.full((2, 2), -1, np.int32)).shape == (0, 2)


def test_what_is_known_of_pairs_is_looked_up_for_both_directions() -> None:
    pairs, r = pairs_of(IDS_AB, IDS_BA), np.array([0.0, 0.1, 0.2, 1.0])
    np.testing.assert_array_equal(look_up(pairs, r, IDS_AB), [[0.1, 0.2], [1.0, np.nan]])
    np.testing.assert_array_equal(
        look_up(pairs, r, IDS_BA, flipped=True), [[1.0, 0.0], [0.1, np.nan], [np.nan, np.nan]]
    )


def test_a_pair_that_was_not_rescored_is_told() -> None:
    with pytest.raises(KeyError, match="rescored"):
        look_up(pairs_of(IDS_AB), np.zeros(3), np.array([[0, 1]]))
