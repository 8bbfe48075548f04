"""Fusion at the input: every token of text and items exactly once, in order, on either side of the padding."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.fusion.gated import Gated
from runner.fusion.interleave import Interleave
from runner.fusion.joint import Perceiver
from runner.fusion.prefix import Prefix
from runner.protocols import IGNORED, Batch, Encoder, InputFusion, Stream, Tokens

WIDTH = 3
rows_of_items = st.lists(
    st.tuples(
        st.integers(1, 6),  # text tokens
        st.lists(st.tuples(st.sampled_from(["image", "audio"]), st.integers(0, 6)), max_size=4),  # items and places
    ),
    min_size=1,
    max_size=5,
)


def batch_of(rows: list[tuple[int, list[tuple[str, int]]]]) -> tuple[Batch, torch.Tensor, dict[str, Tokens]]:
    """Every token's features are its own number, so that an output tells where it came from."""
    longest = max(length for length, _ in rows)
    text = (
        torch.arange(len(rows) * longest, dtype=torch.float32).reshape(len(rows), longest, 1).expand(-1, -1, WIDTH) + 1
    )
    labels = torch.full((len(rows), longest), IGNORED)
    places: dict[str, list[tuple[int, int, int]]] = {"image": [], "audio": []}
    for row, (length, items) in enumerate(rows):
        labels[row, :length] = torch.arange(length) + 100 * row
        for rank, (name, place) in enumerate(sorted(items, key=lambda item: item[1])):
            places[name].append((row, min(place, length), rank))
    streams, tokens = {}, {}
    for number, (name, count) in enumerate((("image", 2), ("audio", 3))):
        if places[name]:
            features = 1000 * (number + 1) + torch.arange(len(places[name]) * count, dtype=torch.float32)
            mask = torch.ones(len(places[name]), count, dtype=torch.bool)
            mask[:, -1] = name == "image"  # the last token of a sound is padding
            tokens[name] = Tokens(features.reshape(-1, count, 1).expand(-1, -1, WIDTH), mask)
            streams[name] = Stream({}, places[name])
    batch = Batch([], labels.clamp(min=0) + 7, labels, [length for length, _ in rows], streams, [], [])
    return batch, text, tokens


@settings(deadline=None, max_examples=150)
@given(rows=rows_of_items, side=st.sampled_from(["left", "right"]))
def test_every_row_is_its_text_with_the_items_at_their_places(rows, side) -> None:  # type: ignore[no-untyped-def]
    batch, text, tokens = batch_of(rows)
    fused = Interleave()(text, batch, tokens, side)
    for row, length in enumerate(batch.lengths):
        expected: list[tuple[float, int, int, int]] = []  # feature, attended, label, id
        items = sorted(
            (place, rank, name, k)
            for name, stream in batch.streams.items()
            for k, (at, place, rank) in enumerate(stream.places)
            if at == row
        )
        for position in range(length + 1):
            for place, _, name, k in items:
                if place == position:
                    features, mask = tokens[name].features[k, :, 0], tokens[name].mask[k]
                    expected += [(float(f), int(m), IGNORED, IGNORED) for f, m in zip(features, mask, strict=True)]
            if position < length:
                label, token = int(batch.labels[row, position]), int(batch.input_ids[row, position])
                expected.append((float(text[row, position, 0]), 1, label, token))
        padding = [(0.0, 0, IGNORED, IGNORED)] * (fused.embeddings.shape[1] - len(expected))
        expected = padding + expected if side == "left" else expected + padding
        assert fused.embeddings[row, :, 0].tolist() == [one[0] for one in expected]
        assert fused.attention_mask[row].tolist() == [one[1] for one in expected]
        assert fused.labels[row].tolist() == [one[2] for one in expected]
        assert fused.input_ids[row].tolist() == [one[3] for one in expected]
        attended = fused.position_ids[row][fused.attention_mask[row] == 1]
        assert attended.tolist() == list(range(len(attended)))
    assert fused.embeddings.shape[1] == max(int(mask.shape[0]) for mask in fused.attention_mask)


def test_gradients_reach_every_token_and_no_padding() -> None:
    batch, text, tokens = batch_of([(4, [("image", 1)]), (2, [])])
    text = text.clone().requires_grad_()
    features = tokens["image"].features.clone().requires_grad_()
    fused = Prefix()(text, batch, {"image": Tokens(features, tokens["image"].mask)}, "right")
    fused.embeddings.sum().backward()
    assert torch.equal(text.grad[:, :, 0], torch.tensor([[1.0, 1, 1, 1], [1, 1, 0, 0]]))
    assert torch.equal(features.grad, torch.ones_like(features))


def test_where_items_go_is_part_of_a_fusion() -> None:
    assert (Prefix().placement, Interleave().placement) == ("front", "placeholder")
    assert isinstance(Prefix(), InputFusion)
    assert not isinstance(Prefix(), Encoder)


def test_gates_start_equally_open_and_can_shut_a_modality() -> None:
    batch, text, streams = batch_of([(3, [("image", 1), ("audio", 2)]), (2, [("audio", 0)])])
    fusion = Gated(WIDTH, ["image", "audio"], opening=2.0, dropout=0.0)
    open_by = torch.sigmoid(torch.tensor(2.0))
    scaled = {name: Tokens(one.features * open_by, one.mask) for name, one in streams.items()}
    torch.testing.assert_close(
        fusion(text, batch, streams, "right").embeddings, Prefix()(text, batch, scaled, "right").embeddings
    )
    torch.nn.init.constant_(fusion.gate["audio"].bias, -1e4)
    shut = {"image": scaled["image"], "audio": Tokens(streams["audio"].features * 0, streams["audio"].mask)}
    torch.testing.assert_close(
        fusion(text, batch, streams, "left").embeddings, Prefix()(text, batch, shut, "left").embeddings
    )


def latents(
    fusion: Perceiver, rows: list[tuple[int, list[tuple[str, int]]]], values: torch.Tensor
) -> list[torch.Tensor]:
    """Of each row with an item, [k, D]; item k of the whole batch has the features values[k]."""
    batch, text, streams = batch_of(rows)
    numbered = sorted(
        (row, rank, name, k) for name, one in batch.streams.items() for k, (row, _, rank) in enumerate(one.places)
    )
    for number, (_, _, name, k) in enumerate(numbered):
        streams[name].features.data = streams[name].features.clone()
        streams[name].features[k] = values[number, : streams[name].features.shape[1]]
        streams[name].features[k][~streams[name].mask[k]] = 77.0  # padding, of which nothing may be seen
    fused = fusion(text, batch, streams, "right")
    found = []
    for row, (length, items) in enumerate(rows):
        there = int(fused.attention_mask[row].sum())
        assert there == length + (2 if items else 0)
        place = min((min(place, length) for _, place in items), default=0)
        if items:
            found.append(fused.embeddings[row, place : place + 2])
        rest = torch.cat([fused.embeddings[row, :place], fused.embeddings[row, place + (2 if items else 0) : there]])
        assert torch.equal(rest, text[row, :length])
    return found


def test_latents_see_all_items_of_their_row_and_no_other() -> None:
    torch.manual_seed(0)
    fusion = Perceiver(WIDTH, ["image", "audio"], tokens=2, layers=2, heads=1, dropout=0.0).eval()
    rows = [(3, [("image", 1), ("audio", 2)]), (2, []), (4, [("audio", 3)])]
    values = torch.randn(3, 3, WIDTH)
    with torch.no_grad():
        together = latents(fusion, rows, values)
        alone = [latents(fusion, [rows[0]], values[:2])[0], latents(fusion, [rows[2]], values[2:])[0]]
        for one, other in zip(together, alone, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
        for changed in (0, 1):
            other_values = values.clone()
            other_values[changed] += 1.0
            other = latents(fusion, rows, other_values)
            assert (other[0] - together[0]).abs().max() > 1e-3 and torch.allclose(other[1], together[1], atol=1e-6)
    assert (together[0][0] - together[0][1]).abs().max() > 1e-3, "latents that start equal would stay equal"
