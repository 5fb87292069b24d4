"""Pictures: decoding, patches, rows that hold them, and what is said where one is wrong."""

import gzip
import itertools
import json
import re
import struct

import jax
import numpy as np
import pytest
from PIL import Image

from mtl_jax.analysis.ablation.device_rows import gather, resident_rows
from mtl_jax.data import datasets
from mtl_jax.data.corpus import load
from mtl_jax.data.encoding import marked_spans
from mtl_jax.data.encoding.encode import encode, leading_special_tokens
from mtl_jax.data.encoding.record_inputs import extract_inputs
from mtl_jax.data.files.location import local_path
from mtl_jax.data.labels.label_spec import LabelSpec
from mtl_jax.data.packing import pack, packed_labels
from mtl_jax.data.packing.capacities import choose_capacities
from mtl_jax.data.pictures import image_store, patches
from mtl_jax.data.pictures.image_store import PatchSpec, read_images
from mtl_jax.data.readers.generated_statements import COLORS, NUMBERS, SHAPES, statements_about
from mtl_jax.data.records import Record
from mtl_jax.data.sampler import BatchSampler, Mixing, evaluation_batches, evaluation_layout
from mtl_jax.data.tokenizers import WordTokenizer
from mtl_jax.errors import UserError

WORDS = [f"w{n}" for n in range(20)]


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MTL_JAX_CACHE", str(tmp_path / "cache"))


def noise(seed, height=8, width=12, channels=3):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels)).astype(np.uint8)


def by_hand(pixels, side):
    """Patches by loops, the values of each in the order (y, x, channel)."""
    height, width, channels = pixels.shape
    return [
        [pixels[top + y, left + x, c] for y in range(side) for x in range(side) for c in range(channels)]
        for top in range(0, height, side)
        for left in range(0, width, side)
    ]


def write(folder, name, pixels):
    Image.fromarray(pixels).save(folder / name)
    return name


def album_of(folder, values, **cut):
    records = [Record({"image": value}, "f.jsonl", n) for n, value in enumerate(values, 1)]
    album, numbers = read_images({"train": records}, "image", local_path(folder), PatchSpec(**{"patch": 4, **cut}))
    return album, numbers["train"]


def shown(album, number):
    each = album.grid[0] * album.grid[1]
    return album.pixels[1 + number * each : 1 + (number + 1) * each]


def test_patches_are_those_of_loops_and_each_picture_is_there_once(tmp_path):
    first, second = noise(0), noise(1)
    names = [write(tmp_path, "a.png", first), write(tmp_path, "b.png", second)]
    album, numbers = album_of(tmp_path, [names[0], names[1], [names[1], names[0]], first, second])
    assert numbers[:3] == [(0,), (1,), (1, 0)] and numbers[3:] == [(2,), (3,)]  # an array has no name
    assert album.grid == (2, 3) and album.size == (8, 12) and album.pixels.shape == (1 + 4 * 6, 48)
    for number, picture in ((0, first), (1, second), (2, first), (3, second)):
        np.testing.assert_array_equal(shown(album, number), by_hand(picture, 4))
    assert not album.pixels[0].any()


def test_parts_sizes_channels_and_blanks(tmp_path):
    whole = noise(2, 8, 20)
    name = write(tmp_path, "a.png", whole)
    album, _ = album_of(tmp_path, [f"{name}#xywh=8,4,4,4", f"{name}#xywh=0,0,4,4"])
    np.testing.assert_array_equal(shown(album, 0), by_hand(whole[4:8, 8:12], 4))
    album, _ = album_of(tmp_path, [name], channels=1)
    grey = np.asarray(Image.fromarray(whole).convert("L"))[:, :, None]
    np.testing.assert_array_equal(shown(album, 0), by_hand(grey, 4))
    halves = np.repeat(np.repeat(noise(3, 4, 4), 2, 0), 2, 1)  # to half its size, blocks of one value keep it inside
    album, _ = album_of(tmp_path, [halves, np.full((8, 8), 7, np.uint8), np.full((40, 4, 1), 9, np.uint8)], size=(4, 4))
    assert np.abs(shown(album, 0).astype(int) - by_hand(noise(3, 4, 4), 4)).mean() < 40
    assert (shown(album, 1) == 7).all() and (shown(album, 2) == 9).all()
    seen, blank = (album_of(tmp_path, [name], blank=b)[0] for b in (False, True))
    assert blank.pixels.shape == seen.pixels.shape and set(blank.pixels[1:].ravel()) == {image_store.BLANK_LEVEL}


def test_wrong_pictures_are_named(tmp_path):
    whole = write(tmp_path, "a.png", noise(0))
    (tmp_path / "cut.png").write_bytes((tmp_path / whole).read_bytes()[:120])
    (tmp_path / "text.png").write_text("no picture")
    other = write(tmp_path, "b.png", noise(0, 8, 16))
    for values, cut, message in (
        (["cut.png"], {}, r"f\.jsonl:1: picture .*cut\.png cannot be decoded .*a complete PNG or JPEG file is needed"),
        (["text.png"], {}, r"text\.png cannot be decoded \(UnidentifiedImageError"),
        ([whole, "c.png"], {}, r"f\.jsonl:2: picture c\.png: .*no such file.* holds: .*a\.png"),
        ([whole, other], {}, r"f\.jsonl:2: picture b\.png is 8 × 16 .* that of f\.jsonl:1 8 × 12 .*image_size"),
        ([whole], {"patch": 5}, r"8 × 12 .*patches of 5 pixels do not fill.*e\.g\. \(10, 10\)"),
        ([f"{whole}#xywh=4,0,12,4"], {}, r"is not inside the picture, which is 8 × 12"),
        ([3], {}, r"field 'image' should name a picture .* found 3"),
        ([[]], {}, "names no picture"),
        ([np.zeros((8, 8))], {}, r"should be uint8 .* found float64 \[8, 8\]"),
    ):
        with pytest.raises(UserError, match=message):
            album_of(tmp_path, values, **cut)


def illustrated(tmp_path, **settings):
    """A data set of texts with 0 to 9 words and 1 or 2 pictures each, one of words, and one of pictures alone."""
    rng = np.random.default_rng(5)
    for n in range(4):
        write(tmp_path, f"{n}.png", noise(n))
    lines = {"both": [], "alone": [], "text": []}
    for n in range(30):
        image = [f"{k}.png" for k in rng.integers(0, 4, rng.integers(1, 3))]
        text = " ".join(rng.choice(WORDS, rng.integers(1, 9)))
        lines["both"].append({"text": text, "image": image, "y": str(n % 2)})
        lines["alone"].append({"image": image[0], "y": str(n % 3)})
        lines["text"].append({"words": text.split(), "y": str(n % 2), "tags": ["a"] * len(text.split())})
    for name, actual in lines.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in actual))
    entries = {
        name: {"reader": "jsonl", "path": str(tmp_path), "splits": {"train": f"{name}.jsonl"}, **fields}
        for name, fields in (
            ("both", {"text": ("text",), "image": "image"}),
            ("alone", {"image": "image"}),
            ("text", {"words": "words"}),
        )
    }
    specs = [LabelSpec(name, name, "y") for name in entries] + [LabelSpec("tags", "text", "tags", "word")]
    tokenizer = WordTokenizer(WORDS, cls=True)
    return load(entries, specs, tokenizer, row_length=32, cut=PatchSpec(patch=4), **settings), lines


def test_rows_hold_every_example_with_its_patches(tmp_path):
    corpus, lines = illustrated(tmp_path)
    assert corpus.layout.pictured == (0, 1) and corpus.rows["text"]["train"].patch is None
    assert corpus.pictures == image_store.ImageSpec(48, 2, 3, 2, {"both": (8, 12), "alone": (8, 12)})
    tokenizer = corpus.tokenizer
    for name in ("both", "alone"):
        rows, encoded = corpus.rows[name]["train"], corpus.splits[name]["train"].encoded
        seen = []
        for r, e in zip(*np.nonzero(rows.example >= 0), strict=True):
            record = lines[name][encoded.record[rows.example[r, e]]]
            seen.append(encoded.record[rows.example[r, e]])
            span = slice(rows.start[r, e], rows.start[r, e] + rows.length[r, e])
            files = record["image"] if isinstance(record["image"], list) else [record["image"]]
            wanted = [patch for file in files for patch in by_hand(noise(int(file[0])), 4)]
            words = [WORDS.index(w) + 4 for w in record.get("text", "").split()]
            count = len(wanted)
            assert rows.tokens[r, span].tolist() == [3, *[0] * count, *words]
            assert (rows.segment[r, span] == e + 1).all()
            at = rows.patch[r, span]
            assert (at > 0).tolist() == [False, *[True] * count, *[False] * len(words)]
            np.testing.assert_array_equal(rows.pixels[at[1 : 1 + count]], wanted)
            grid = [256 * row + column for row in range(2) for column in range(3)]
            assert rows.position[r, span].tolist() == [0, *grid * len(files), *range(1, 1 + len(words))]
            assert rows.token_type[r, span].tolist() == [
                0,
                *np.repeat(range(len(files)), 6).tolist(),
                *[0] * len(words),
            ]
        assert sorted(seen) == list(range(30)) and (rows.patch[rows.segment == 0] == 0).all()
        assert rows.start.shape[1] > 1  # several to a row
    assert corpus.tokenizer is tokenizer


def test_a_data_set_without_pictures_is_as_it_was(tmp_path):
    corpus, _ = illustrated(tmp_path)
    alone, _ = illustrated(tmp_path, tasks=("text", "tags"))
    assert alone.pictures is None and alone.layout.pictured == ()
    jax.tree.map(np.testing.assert_array_equal, alone.rows["text"]["train"], corpus.rows["text"]["train"])


def test_what_does_not_fit_loses_words_not_patches(tmp_path):
    corpus, lines = illustrated(tmp_path, max_length=17)
    encoded = corpus.splits["both"]["train"].encoded
    for n, record in enumerate(encoded.record):
        span = slice(encoded.token_offsets[n], encoded.token_offsets[n + 1])
        line = lines["both"][record]
        count = 6 * len(line["image"])
        assert (encoded.patch[span] > 0).sum() == count
        assert len(encoded.tokens[span]) == min(17, 1 + count + len(line["text"].split()))
    with pytest.raises(UserError, match="no room for text in addition to 1 special tokens and 12 patches"):
        illustrated(tmp_path, max_length=13)


def test_marks_choices_and_hidden_tokens_beside_patches():
    tokenizer = WordTokenizer(WORDS, cls=True, extra=("[MASK]", *marked_spans.MARKERS))
    fields = {"text": "w1 w2 w3 w4", "a": [0, 2], "b": [6, 8], "answers": ["w5 w6", "w7"]}
    records = [Record(fields, "f", 1), Record(fields | {"text": "w9 w2 w3 w4"}, "f", 2)]
    shown = {"pictures": [(0,), (1, 0)], "grid": (1, 2)}
    for options in ({"marked": ("a", "b"), "aligned": True}, {"choices": ("answers",)}):
        units = extract_inputs(records, text=("text",), **options)
        plain, pictured = encode(units, tokenizer, 40), encode(units._replace(**shown), tokenizer, 40)
        actual = patches.insert_patches(pictured, units._replace(**shown), leading_special_tokens(units, tokenizer))
        for n, record in enumerate(plain.record):
            count = 2 * len(shown["pictures"][record])
            spans = [slice(s.token_offsets[n], s.token_offsets[n + 1]) for s in (plain, actual)]
            tokens = plain.tokens[spans[0]].tolist()
            assert actual.tokens[spans[1]].tolist() == [*tokens[:1], *[0] * count, *tokens[1:]]
            for name in ("mark_token", "word_token"):
                at, moved = (getattr(s, name) for s in (plain, actual))
                if name == "word_token":
                    at, moved = (a[plain.word_offsets[n] : plain.word_offsets[n + 1]] for a in (at, moved))
                else:
                    at, moved = at[n][at[n] >= 0], moved[n][moved[n] >= 0]
                assert moved.tolist() == (at + count).tolist()
        assert actual.choice.tolist() == plain.choice.tolist()
    with pytest.raises(UserError, match=r"2 choices share max_length 12, .* special tokens and 4 patches each"):
        encode(units._replace(**shown), tokenizer, 12)
    levels_of = choose_capacities([actual], ["text"], 40, True)
    rows = pack(actual, [], {}, levels_of)
    hidden = packed_labels.maskable_tokens(rows, tokenizer)["maskable"]
    assert hidden.any() and not (hidden & (rows.patch > 0)).any()
    words = np.isin(rows.tokens, [tokenizer.index[word] for word in WORDS]) & (rows.segment > 0)
    np.testing.assert_array_equal(hidden, words)


@pytest.mark.parametrize("mixing", [Mixing(), Mixing("round_robin", blocks=2)])
def test_batches_from_the_host_and_the_device_are_the_same(tmp_path, mixing):
    corpus, _ = illustrated(tmp_path, mixing=mixing)
    batches = BatchSampler({name: rows["train"] for name, rows in corpus.rows.items()}, corpus.layout, 0, 3, mixing)
    source, blocks = resident_rows(batches), corpus.layout.picture_blocks()
    assert blocks == (0, 1)
    for step in range(4):
        batch = batches.batch(step)
        jax.tree.map(np.testing.assert_array_equal, gather(source, corpus.layout, *batches.indices(step)), batch)
        assert batch.pixels.shape == (2, 3, 32, 48) and batch.pixels.dtype == np.uint8
        for place, block in enumerate(blocks):
            own = corpus.rows[corpus.layout.datasets[batch.dataset[block]]]["train"]
            if own.patch is None:
                assert not batch.patch[place].any() and not batch.pixels[place].any()
            else:
                np.testing.assert_array_equal(batch.pixels[place], own.pixels[own.patch[batch.row[block]]])
    for name, rows in corpus.rows.items():
        layout = evaluation_layout(corpus.layout, name)
        *_, last = evaluation_batches(rows["train"], layout, 4)
        assert (last.patch is None) == (name == "text")
        if name != "text":
            assert not last.patch[0][last.row[0] < 0].any()


def test_pictures_decide_the_fingerprint(tmp_path):
    actual = [illustrated(tmp_path)[0].fingerprint for _ in range(2)]
    changed = noise(1)
    changed[0, 0, 0] ^= 1
    corpus, _ = illustrated(tmp_path)
    write(tmp_path, "1.png", changed)
    entry = {"reader": "jsonl", "path": str(tmp_path), "splits": {"train": "alone.jsonl"}, "image": "image"}
    spec = [LabelSpec("alone", "alone", "y")]
    after = load({"alone": entry}, spec, corpus.tokenizer, row_length=32, cut=PatchSpec(patch=4)).fingerprint
    write(tmp_path, "1.png", noise(1))
    before = load({"alone": entry}, spec, corpus.tokenizer, row_length=32, cut=PatchSpec(patch=4)).fingerprint
    assert actual[0] == actual[1] and before != after


def test_duplicates_of_pictures_alone(tmp_path):
    for n in range(3):
        write(tmp_path, f"{n}.png", noise(n))
    for split, images in (("train", [0, 1, 2, 1]), ("test", [1])):
        lines = [json.dumps({"image": f"{n}.png", "y": "a"}) + "\n" for n in images]
        (tmp_path / f"{split}.jsonl").write_text("".join(lines))
    entry = {
        "reader": "jsonl",
        "path": str(tmp_path),
        "image": "image",
        "drop_duplicates": "train",
        "splits": {"train": "train.jsonl", "test": "test.jsonl"},
    }
    actual = datasets.read_dataset("d", entry, 0)
    assert [r.fields["image"] for r in actual.splits["train"]] == ["0.png", "2.png"]
    assert actual.notes == ["train: 2 records removed, their picture is in test"]


# readers


def idx(array):
    header = struct.pack(">HBB", 0, 8, array.ndim) + b"".join(struct.pack(">I", n) for n in array.shape)
    return header + array.tobytes()


def test_idx_files(tmp_path):
    images, labels = noise(0, 5, 4 * 3)[:, :, 0].reshape(5, 4, 3), np.array([1, 0, 2, 2, 1], np.uint8)
    (tmp_path / "t-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
    (tmp_path / "t-labels-idx1-ubyte").write_bytes(idx(labels))
    options = {"labels": "{}-labels-idx1-ubyte", "names": ("shirt", "bag", "coat")}
    entry = {"reader": "idx", "path": str(tmp_path), "splits": {"train": "t-images-idx3-ubyte.gz"}, "image": "image"}
    records = datasets.read_dataset("d", entry | {"options": options}, 0).splits["train"]
    assert [r.fields["label"] for r in records] == ["bag", "shirt", "coat", "coat", "bag"]
    np.testing.assert_array_equal([r.fields["image"] for r in records], images)
    for content, message in (
        (idx(labels[:4]), "5 pictures, but .*labels-idx1-ubyte has 4 labels"),
        (idx(labels)[:-1], "12 bytes, its header promises 13"),
        (b"PNG", "not an IDX file of unsigned bytes with 1 dim"),
        (gzip.compress(idx(labels))[:-9], "cannot be read: Compressed file ended"),
        (idx(labels + 1), "label 3 of picture 3, but options.names has 3"),
    ):
        (tmp_path / "t-labels-idx1-ubyte").write_bytes(content)
        with pytest.raises(UserError, match=message):
            datasets.read_dataset("d", entry | {"options": options}, 0)


def boxes(rng, tower):
    size = (lambda: 20) if tower else (lambda: int(rng.choice([10, 20, 30])))
    return [
        [
            {
                "color": str(rng.choice(["Yellow", "Black", "#0099ff"])),
                "size": size(),
                "type": "square" if tower else str(rng.choice(SHAPES)),
                "x_loc": 40 if tower else int(rng.integers(0, 70)),
                "y_loc": 80 - 21 * n,
            }
            for n in range(int(rng.integers(1, 5)))
        ]
        for _ in range(3)
    ]


def test_nlvr_folders_orders_and_statements(tmp_path):
    rng, lines = np.random.default_rng(0), []
    folder = tmp_path / "dev" / "images" / "3"
    folder.mkdir(parents=True)
    for n in range(12):
        record = {"sentence": "There is a black block.", "label": "true", "identifier": f"{n}-1", "directory": "3"}
        lines.append(record | {"structured_rep": boxes(rng, n % 2 == 0)})
        write(folder, f"dev-{n}-1-0.png", noise(n, 100, 400))
    (tmp_path / "dev" / "dev.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    entry = {"reader": "nlvr", "path": str(tmp_path), "splits": {"train": "dev/images/[0-9]"}, "text": ("sentence",)}
    plain = datasets.read_dataset("d", entry, 0).splits["train"]
    assert [r.fields["presentation"] for r in plain] == [f"dev {n}" for n in range(12)]
    ordered = datasets.read_dataset("d", entry | {"options": {"orders": 6}}, 0).splits["train"]
    assert len(ordered) == 72 and len({tuple(r.fields["image"]) for r in ordered}) == 72
    assert ordered[0].fields == plain[0].fields and set(ordered[5].fields["image"]) == set(plain[0].fields["image"])
    album, numbers = read_images({"d": plain[:1]}, "image", local_path("."), PatchSpec(20, size=(20, 20)))
    assert numbers["d"] == [(0, 1, 2)]
    box = Image.fromarray(noise(0, 100, 400)[:, 150:250]).resize((20, 20), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(shown(album, 1)[0], np.asarray(box).ravel())

    message = datasets.read_dataset("d", entry | {"options": {"statements": 300}}, 0).splits["train"]
    assert len(message) == 600 and not any(r.fields["sentence"] == "there is a black block" for r in message)
    by_sentence = {}
    for record in message:
        by_sentence.setdefault(record.fields["sentence"], []).append(record.fields["label"])
    assert all(labels.count("true") == labels.count("false") for labels in by_sentence.values())
    added = entry | {"options": {"statements": 20, "added_to": ("dev/3",)}}
    both = [r.fields["sentence"] for r in datasets.read_dataset("d", added, 0).splits["train"]]
    assert both[:12] == ["There is a black block."] * 12 and len(both) == 12 + 40
    added["options"]["added_to"] = ("dev/4",)
    assert len(datasets.read_dataset("d", added, 0).splits["train"]) == 12
    single = datasets.read_dataset("d", {**entry, "text": (), "image": "image", "options": {"single": True}}, 0).splits[
        "train"
    ]
    assert len(single) == 36
    for n, record in enumerate(single):
        items = lines[n // 3]["structured_rep"][n % 3]
        actual, names = set(record.fields["details"]), {"Yellow": "yellow", "Black": "black", "#0099ff": "blue"}
        assert f"{len(items)} items" in actual and record.fields["image"] == plain[n // 3].fields["image"][n % 3]
        upwards = [names[item["color"]] for item in items]  # as they were made, the lowest first
        assert {f"{upwards.count(color)} {color}" for color in upwards} <= actual
        of_tower = {f"top {upwards[-1]}", f"base {upwards[0]}"}
        of_tower |= {f"{upper} on {lower}" for lower, upper in itertools.pairwise(upwards)}
        assert {label for label in actual if label.startswith(("top", "base")) or " on " in label} == (
            of_tower if n // 3 % 2 == 0 else set()
        )
    with pytest.raises(UserError, match="there are 1 to 6 orders"):
        datasets.read_dataset("d", entry | {"options": {"orders": 7}}, 0)
    (tmp_path / "dev" / "dev.json").rename(tmp_path / "dev" / "other.json")
    with pytest.raises(UserError, match=r"needs folders such as dev/images/0, next to dev/dev\.json"):
        datasets.read_dataset("d", entry, 0)


COUNTED = re.compile(
    rf"there (?:is|are) (a|no|one|1|at least one|(?:exactly|at least) (?:\d|{'|'.join(NUMBERS)})) "
    rf"(?:({'|'.join(COLORS)}) )?(block|item|object|{'|'.join(SHAPES)})s?"
)


def test_statements_about_items_are_true_where_counting_says_so():
    """Of the sentences that count items, by a reading of their words of its own."""
    rng = np.random.default_rng(1)
    names = {"Yellow": "yellow", "Black": "black", "#0099ff": "blue"}
    made = [[[dict(i, color=names[i["color"]]) for i in box] for box in boxes(rng, n % 2 == 0)] for n in range(40)]
    checked = 0
    for n, sentence, label in statements_about(made, 600, "x"):
        if not (match := COUNTED.fullmatch(sentence)):
            continue
        amount, color, noun = match.groups()
        items = [item for box in made[n] for item in box]
        count = sum(
            (not color or item["color"] == color) and (noun not in SHAPES or item["type"] == noun) for item in items
        )
        last = amount.split()[-1]
        number = int(last) if last.isdigit() else NUMBERS.index(last) if last in NUMBERS else 1
        exact = amount.startswith(("exactly", "no"))
        assert (label == "true") == (count == number if exact else count >= number), (sentence, items)
        checked += 1
    assert checked > 100


def test_nlvr_itself(data_dir):
    entry = {
        "reader": "nlvr",
        "path": f"{data_dir}/nlvr",
        "text": ("sentence",),
        "image": "image",
        "splits": {"train": "dev/images/[0-5]", "test": "test/images/*"},
    }
    actual = datasets.read_dataset("nlvr", entry, 0).splits
    assert (len(actual["train"]), len(actual["test"])) == (989, 990)
    _, numbers = read_images({"test": actual["test"][:5]}, "image", local_path("."), PatchSpec(20, size=(40, 40)))
    assert len(numbers["test"]) == 5


def test_fashion_mnist_itself():
    folder = local_path("/usr/share/datasets/fashion-mnist")
    if not folder.is_folder():
        pytest.skip(f"no {folder.name}; it is in Debian's package dataset-fashion-mnist")
    entry = {
        "reader": "idx",
        "path": folder.name,
        "splits": {"train": "t10k-images-idx3-ubyte.gz"},
        "image": "image",
        "options": {"labels": "{}-labels-idx1-ubyte.gz"},
    }
    records = datasets.read_dataset("fashion", entry, 0).splits["train"]
    assert len(records) == 10_000 and records[0].fields["image"].shape == (28, 28) and records[0].fields["label"] == "9"
